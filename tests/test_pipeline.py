"""A frame becomes poses; a source becomes poses in sinks; one person is found, followed and lost."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import edgepose
from edgepose import EdgePoseError, EngineError
from edgepose.geometry import boxes_around
from edgepose.metrics import Metrics
from edgepose.pipeline import Estimator, Pipeline
from edgepose.sources import Frame
from edgepose.tracking import search_windows


@pytest.fixture(scope="module")
def estimator(starter_bundle):
    return edgepose.load(starter_bundle, variant="onnx-fp32")


def person_in_the_last_frames(poses):
    """The man of the sample clip stands at x 380-545, y 5-400 of 768 x 432, seen by eye."""
    x, y, w, h = boxes_around(poses.keypoints_xy[0][poses.scores[0] > 0.2])
    return x > 360 and x + w < 560 and y < 60 and 320 < y + h < 410 and h > 280


def test_a_person_is_found_without_a_box(estimator, clip_frames):
    poses = estimator.estimate(clip_frames[60])
    assert len(poses) == 1
    assert person_in_the_last_frames(poses)


def test_boxes_give_one_pose_each_at_the_same_place(estimator, clip_frames):
    box = [380, 0, 545, 410]
    poses = estimator.estimate(clip_frames[60], boxes=[box, box])
    assert len(poses) == 2
    assert person_in_the_last_frames(poses)
    np.testing.assert_allclose(poses.keypoints_xy[0], poses.keypoints_xy[1], atol=1e-2)
    grown = poses.boxes_xyxy[0]  # to the crop's aspect ratio, around the same centre
    assert grown[2] - grown[0] == pytest.approx(0.75 * 410, abs=1)
    assert grown[0] + grown[2] == pytest.approx(925, abs=2)


def test_no_boxes_no_poses(estimator, clip_frames):
    assert len(estimator.estimate(clip_frames[0], boxes=[])) == 0
    assert len(estimator.estimate(clip_frames[0], boxes=np.zeros((0, 4)))) == 0


def test_nobody_is_an_answer(estimator):
    assert len(estimator.estimate(np.full((300, 400, 3), 127, np.uint8))) == 0


@pytest.mark.parametrize(
    ("frame", "boxes", "message"),
    [
        (np.zeros((9, 9, 3)), None, r"frame: expected a uint8 array \(h, w, 3\) in BGR order, got float64 \(9, 9, 3\)"),
        (np.zeros((0, 9, 3), np.uint8), None, r"got uint8 \(0, 9, 3\)"),
        (np.zeros((9, 9, 3), np.uint8), [[1, 2], [3]], "boxes: expected numbers of shape"),
        (np.zeros((9, 9, 3), np.uint8), [[0, 0, 1e300, 9]], "boxes: expected finite"),
        (np.zeros((9, 9), np.uint8), None, r"got uint8 \(9, 9\)"),
        (None, None, "got NoneType"),
        (np.zeros((9, 9, 3), np.uint8), [1, 2, 3, 4], r"boxes: expected shape \(N, 4\) x1, y1, x2, y2, got \(4,\)"),
        (np.zeros((9, 9, 3), np.uint8), [[5, 5, 3, 9]], "boxes: expected finite x1 < x2"),
        (np.zeros((9, 9, 3), np.uint8), [[0, 0, np.nan, 9]], "boxes: expected finite x1 < x2"),
    ],
)
def test_bad_arguments_are_named(estimator, frame, boxes, message):
    with pytest.raises(EdgePoseError, match=message):
        estimator.estimate(frame, boxes)


def test_nan_is_not_passed_on(estimator):
    class Broken:
        name, device, inputs = "broken", "cpu", (estimator.spec.input,)

        def run(self, feeds):
            return {"heatmaps": np.full((1, 14, 32, 24), np.nan, np.float32)}

    with pytest.raises(EngineError, match=r"broken on cpu answered with NaN or infinity \(onnx-int8\)"):
        Estimator(Broken(), estimator.spec, "onnx-int8").heatmaps(np.zeros((1, 128, 96, 3), np.uint8))


@pytest.mark.parametrize(("fixed", "crops", "calls"), [(None, 70, [32, 32, 6]), (4, 6, [4, 4]), (1, 3, [1, 1, 1])])
def test_batches_are_cut_and_padded_as_the_engine_needs_them(estimator, fixed, crops, calls):
    """An engine that was built for a fixed batch gets just that; the caller never sees it."""

    class Counting:
        name, device = "counting", "cpu"
        inputs = (dataclasses.replace(estimator.spec.input, shape=(fixed, *estimator.spec.input.shape[1:])),)

        def __init__(self):
            self.calls = []

        def run(self, feeds):
            self.calls.append(len(feeds["image"]))
            return {
                "heatmaps": np.broadcast_to(feeds["image"][:, :1, :1, :1], (self.calls[-1], 14, 32, 24)).astype("f4")
            }

    engine = Counting()
    pictures = np.broadcast_to(np.arange(crops, dtype=np.uint8)[:, None, None, None], (crops, 128, 96, 3))
    heatmaps = Estimator(engine, estimator.spec).heatmaps(pictures)
    assert engine.calls == calls
    assert heatmaps[:, 0, 0, 0].tolist() == list(range(crops))
    assert Estimator(engine, estimator.spec).heatmaps(pictures[:0]).shape == (0, 14, 32, 24)


def test_the_person_is_followed_through_the_clip(estimator, clip_frames):
    follow = estimator.follow()
    poses = [follow(frame) for frame in clip_frames]
    seen = [len(p) for p in poses]
    assert max(seen) == 1
    assert sum(seen[10:]) == len(seen) - 10  # he is in every frame from the tenth on
    assert sum(person_in_the_last_frames(p) for p in poses[40:]) >= 0.9 * len(poses[40:])


def test_following_costs_one_crop_and_losing_starts_a_search(estimator, clip_frames):
    calls = []

    def poses_at(frame, regions):
        calls.append(len(regions))
        return estimator.poses_at(frame, regions)

    from edgepose.tracking import Follower

    follow = Follower(poses_at, estimator.spec)
    follow(clip_frames[60])
    searched = list(calls)
    assert searched[0] > 3
    assert searched[1:] == [3, 3]  # three candidates, zoomed into twice
    follow(clip_frames[61])
    assert calls[len(searched) :] == [1]
    calls.clear()
    assert len(follow(np.full_like(clip_frames[0], 127))) == 0
    assert calls[:2] == [1, searched[0]]
    calls.clear()
    follow(clip_frames[62])
    assert calls[0] == searched[0]  # nobody is followed any more


@pytest.mark.parametrize("frame_wh", [(768, 432), (432, 768), (96, 128), (1920, 300), (50, 50)])
def test_windows_cover_the_frame_and_overlap(frame_wh):
    windows = search_windows(frame_wh, 0.75)
    width, height = frame_wh
    covered = np.zeros((height, width), int)
    for cx, cy, w, h in windows:
        assert w / h == pytest.approx(0.75)
        x1, y1 = max(0, round(cx - w / 2)), max(0, round(cy - h / 2))
        covered[y1 : round(cy + h / 2), x1 : round(cx + w / 2)] += 1
    assert covered.min() >= 1
    assert len(windows) <= 30


class Boxes:
    """A detector that knows where people are, and counts how often it looks."""

    def __init__(self, boxes):
        self.boxes, self.looks = np.array(boxes, np.float32).reshape(-1, 4), 0

    def detect(self, frame_bgr):
        self.looks += 1
        return self.boxes, np.ones(len(self.boxes), np.float32)


def clip(frames, start=60):
    return [Frame(image, i, "clip", i / 10) for i, image in enumerate(frames[start:])]


def test_a_detector_looks_now_and_then_and_people_keep_their_ids(estimator, clip_frames):
    detector = Boxes([[380, 0, 545, 410]])
    pipeline = Pipeline(estimator, detector=detector, detect_every=5)
    found = [pipeline(frame) for frame in clip(clip_frames)]
    assert detector.looks == 4
    assert all(len(poses) == 1 and poses.track_ids.tolist() == [0] for poses in found)
    assert person_in_the_last_frames(found[-1])


def test_a_detector_looks_at_once_when_nobody_is_there_any_more(estimator, clip_frames):
    detector = Boxes([[380, 0, 545, 410]])
    pipeline = Pipeline(estimator, detector=detector, detect_every=50)
    for frame in clip(clip_frames)[:6]:
        pipeline(frame)
    detector.boxes = np.zeros((0, 4), np.float32)
    grey = np.full_like(clip_frames[0], 127)
    assert all(len(pipeline(Frame(grey, i, "grey", i / 10))) == 0 for i in range(6, 12))
    assert detector.looks >= 2


def test_pictures_that_do_not_follow_each_other_are_detected_one_by_one(estimator, clip_frames):
    detector = Boxes([[380, 0, 545, 410]])
    pipeline = Pipeline(estimator, detector=detector, moving=False)
    assert [len(pipeline(frame)) for frame in clip(clip_frames)[:3]] == [1, 1, 1]
    assert detector.looks == 3


def test_without_a_detector_one_person_is_followed(estimator, clip_frames):
    follow = estimator.follow()
    pipeline = Pipeline(estimator)
    for frame in clip(clip_frames)[:4]:
        np.testing.assert_array_equal(pipeline(frame).keypoints_xy, follow(frame.image_bgr).keypoints_xy)


def ahead(pipeline, frames):
    """Every frame is begun before the one before it is finished."""
    begun, found = None, []
    for frame in frames:
        later = pipeline.begin(frame)
        found += [pipeline.finish(begun)] if begun else []
        begun = later
    return [*found, pipeline.finish(begun)]


def test_a_frame_ahead_the_person_is_followed_as_well(estimator, clip_frames):
    """By the pose of the frame before last: the crops differ a little, the poses do not get worse."""
    frames = clip(clip_frames, start=0)
    pipeline = Pipeline(estimator)
    in_turn, overlapped = [pipeline(frame) for frame in frames], ahead(Pipeline(estimator), frames)
    assert sum(map(len, overlapped)) >= sum(map(len, in_turn)) - 2
    assert sum(person_in_the_last_frames(p) for p in overlapped[40:]) >= 0.9 * len(overlapped[40:])
    scores = [np.mean([p.scores.mean() for p in poses if len(p)]) for poses in (in_turn, overlapped)]
    assert scores[1] > 0.98 * scores[0]


def test_a_frame_ahead_where_boxes_are_known_nothing_changes(estimator, clip_frames):
    def boxes(frame):
        return [[380, 0, 545, 410]] * (frame.index % 3)

    frames = clip(clip_frames)[:6]
    pipeline = Pipeline(estimator, boxes=boxes)
    for one, other in zip(map(pipeline, frames), ahead(Pipeline(estimator, boxes=boxes), frames), strict=True):
        np.testing.assert_array_equal(one.keypoints_xy, other.keypoints_xy)


def test_a_frame_ahead_several_people_are_followed_frame_by_frame(estimator, clip_frames):
    """Their regions and ids hang on the frame before: nothing is begun early, and the poses are the same."""
    frames = clip(clip_frames)[:8]
    pipelines = [Pipeline(estimator, detector=Boxes([[380, 0, 545, 410]]), detect_every=3) for _ in range(2)]
    for one, other in zip(map(pipelines[0], frames), ahead(pipelines[1], frames), strict=True):
        np.testing.assert_array_equal(one.keypoints_xy, other.keypoints_xy)
        np.testing.assert_array_equal(one.track_ids, other.track_ids)


def test_someone_who_jumps_is_found_where_the_last_pose_says(estimator, clip_frames):
    """The region that was begun is of the frame before last; where nobody is there, the newest one is tried first."""
    asked = []

    def poses_at(frame, regions):
        asked.append(regions)
        return estimator.poses_at(frame, regions)

    from edgepose.tracking import Follower

    follow = Follower(poses_at, estimator.spec)
    follow(clip_frames[60])
    stale = follow.region
    follow(clip_frames[61])
    asked.clear()
    nobody = dataclasses.replace(estimator.poses_at(clip_frames[62], stale), scores=np.zeros((1, 14), np.float32))
    assert len(follow.settle(clip_frames[62], stale, nobody)) == 1
    assert len(asked) == 1
    assert asked[0].shape == (1, 4)


def test_a_detector_aside_finds_the_same_people(estimator, clip_frames):
    pipeline = Pipeline(estimator, detector=Boxes([[380, 0, 545, 410]]), detect_every=3, detect_aside=True)
    found = [pipeline(frame) for frame in clip(clip_frames)[:9]]
    pipeline.close()
    assert [poses.track_ids.tolist() for poses in found] == [[0]] * 9


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_what_is_started_is_answered_as_what_is_run(starter_bundle, starter_openvino, engine):
    """In an engine's own queue, or in a thread; any number of batches, in any order."""
    paths = {"onnxruntime": starter_bundle / "onnx-int8.onnx", "openvino": starter_openvino / "openvino-fp32.xml"}
    model = edgepose.load(paths[engine])
    model.batch = 2
    rng = np.random.default_rng(0)
    inputs = [rng.integers(0, 256, (count, 128, 96, 3), dtype=np.uint8) for count in (1, 3, 0, 5)]
    answers = [model.start(crops) for crops in inputs]
    for crops, answer in reversed(list(zip(inputs, answers, strict=True))):
        np.testing.assert_allclose(answer(), model.infer(crops), atol=1e-6)
    model.close()


def test_a_batch_that_cannot_be(estimator):
    with pytest.raises(EdgePoseError, match="batch 0 asked, it can be 1 or more"):
        estimator.batch = 0

    class Four:
        inputs = (dataclasses.replace(estimator.spec.input, shape=(4, 128, 96, 3)),)

    with pytest.raises(EdgePoseError, match="tpu: batch 2 asked, it can be 4, for which its model was made"):
        Estimator(Four(), estimator.spec, "tpu").batch = 2


def test_boxes_say_where_people_are(estimator, clip_frames):
    pipeline = Pipeline(estimator, boxes=lambda frame: [[380, 0, 545, 410]] * (frame.index % 3))
    assert [len(pipeline(frame)) for frame in clip(clip_frames)[:3]] == [0, 1, 2]


def test_poses_are_steadied_before_they_are_lifted(estimator, clip_frames):
    """Each step sees what the one before it made."""
    calls = []

    def smooth(poses, time_s):
        calls.append(("smooth", time_s))
        return dataclasses.replace(poses, keypoints_xy=poses.keypoints_xy + 1)

    class Lift:
        def lift(self, poses, image_wh, threshold):
            calls.append(("lift", image_wh, threshold, float(poses.keypoints_xy[0, 0, 0])))
            return poses

    metrics = Metrics()
    pipeline = Pipeline(estimator, smooth=smooth, lifter=Lift(), metrics=metrics)
    frame = clip(clip_frames)[2]
    found = pipeline(frame)
    assert calls == [
        ("smooth", frame.time_s),
        ("lift", (768, 432), estimator.spec.score_threshold, float(found.keypoints_xy[0, 0, 0])),
    ]
    assert list(metrics.percentiles()) == ["pose", "smooth", "lift"]
