"""Several people keep their ids: crossing, hidden, lost and found, standing still, in crowds, at odd times."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import numpy as np
import pytest

from edgepose import EdgePoseError, ModelSpec, Poses
from edgepose.geometry import regions_from_boxes, xyxy_to_xywh
from edgepose.people import People

SPEC = ModelSpec.pose2d("test", (256, 192), "coco17")
SHAPE = np.array(
    [
        *[[0, 0.06], [0.02, 0.05], [-0.02, 0.05], [0.04, 0.06], [-0.04, 0.06], [0.12, 0.19], [-0.12, 0.19]],
        *[[0.15, 0.35], [-0.15, 0.35], [0.17, 0.49], [-0.17, 0.49], [0.08, 0.51], [-0.08, 0.51]],
        *[[0.09, 0.74], [-0.09, 0.74], [0.1, 0.96], [-0.1, 0.96]],
    ]
)
TALL = 200.0


def body(x, y=100.0, height=TALL):
    """Joints (17, 2) of someone who stands at ``x``, with the crown at ``y``."""
    return np.array([x, y]) + height * SHAPE


def boxes(*bodies):
    """What a detector says of bodies: (N, 4)."""
    return np.array([[*(b.min(axis=0) - 8), *(b.max(axis=0) + 8)] for b in bodies]).reshape(-1, 4)


def poses(bodies, scores=0.8):
    """Poses of bodies (K, 2), with a score for all or for each."""
    keypoints = np.array(bodies, float).reshape(-1, 17, 2)
    each = np.broadcast_to(np.reshape(scores, (-1, 1)), keypoints.shape[:2])
    return Poses(keypoints, each, boxes(*keypoints), "coco17")


def born(people, *bodies, time_s=0.0, scores=0.8):
    """Detect bodies where there were none, and follow them until nobody doubts them."""
    people.with_detections(boxes(*bodies), np.linspace(0.9, 0.8, len(bodies)))
    for i in range(3):
        found = people.update(poses(bodies, scores), time_s + i / 100)
        people.regions()
    return found


@dataclass
class Stage:
    """A detector and a model that see bodies, as real ones do: the pose of a region is that of the body in its middle.

    Attributes:
        pull: For each body by how many pixels it attracts the model more than others.
        interval: Detect in every so many frames, and when someone is lost.
    """

    people: People
    pull: tuple[float, ...] = ()
    interval: int = 10
    detections: int = 0
    seen: list[list[int]] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def frame(self, bodies, time_s):
        """Ids by body: the nearest of the people found. None for a body that is hidden."""
        visible = [b for b in bodies if b is not None]
        if len(self.seen) % self.interval == 0 or self.people.lost:
            self.detections += 1
            regions = self.people.with_detections(boxes(*visible), np.full(len(visible), 0.9))
        else:
            regions = self.people.regions()
        found = self.people.update(self._model(regions, bodies), time_s)
        self.seen.append(found.track_ids.tolist())
        assert len(set(self.seen[-1])) == len(self.seen[-1])
        middles = found.keypoints_xy[:, :, 0].mean(axis=1)
        return [self._id(found, middles, b) for b in bodies]

    def _id(self, found, middles, one):
        near = [] if one is None else np.flatnonzero(np.abs(middles - one[:, 0].mean()) < 15)
        return int(found.track_ids[near[0]]) if len(near) else None

    def _model(self, regions, bodies):
        answers, scores = [], []
        for cx, _, w, _ in regions:
            pulls = [*self.pull, *[0.0] * len(bodies)]
            ranked = [
                (abs(b[:, 0].mean() - cx) - pulls[i], i)
                for i, b in enumerate(bodies)
                if b is not None and abs(b[:, 0].mean() - cx) < w / 2
            ]
            answers.append(bodies[min(ranked)[1]] if ranked else body(cx))
            scores.append(0.8 if ranked else 0.05)
        noise = self.rng.standard_normal((len(answers), 17, 2))
        return poses(np.reshape(answers, (-1, 17, 2)) + noise, scores)


@pytest.mark.parametrize("fps", [10, 15, 30])
@pytest.mark.parametrize("speed", [80, 160, 300])
@pytest.mark.parametrize("front", [0, 1])
def test_two_people_who_cross_keep_their_ids(fps, speed, front):
    """They walk past each other; for as long as they overlap by more than half, only the one in front is seen."""
    stage = Stage(People(SPEC, patience_s=1.5), interval=fps // 2)
    frames = round(600 / speed * fps)
    for i in range(frames + 1):
        bodies = [body(100 + speed * i / fps), body(700 - speed * i / fps)]
        if abs(bodies[0][0, 0] - bodies[1][0, 0]) < 35:
            bodies[1 - front] = None
        ids = stage.frame(bodies, i / fps)
        if i == 0:
            first = ids
    assert None not in first
    assert ids == first
    assert {i for ids in stage.seen for i in ids} == set(first)


@pytest.mark.parametrize("pulls", [(60.0, 0.0), (0.0, 60.0)])
def test_ids_are_put_right_when_the_pose_slips_to_the_other_person(pulls):
    """The model prefers one of two, so where they meet it gives that one's pose for both."""
    stage = Stage(People(SPEC), pull=pulls)
    for i in range(61):
        ids = stage.frame([body(100 + 10 * i), body(700 - 10 * i)], i / 30)
        if i == 0:
            first = ids
    assert None not in first
    assert ids == first


@pytest.mark.parametrize(("hidden_s", "same"), [(0.3, True), (0.5, True), (0.9, True), (1.5, False), (3, False)])
def test_someone_hidden_for_a_moment_is_the_same_person(hidden_s, same):
    stage = Stage(People(SPEC))
    bodies = [body(100), body(500)]
    for i in range(30):
        before = stage.frame(bodies, i / 30)
    for i in range(30, 30 + round(hidden_s * 30)):
        ids = stage.frame([bodies[0], None], i / 30)
    assert ids == [before[0], None]  # not drawn
    for i in range(30 + round(hidden_s * 30), 60 + round(hidden_s * 30)):
        after = stage.frame(bodies, i / 30)
    assert after[0] == before[0]
    assert (after[1] == before[1]) == same
    assert after[1] is not None


def test_a_walker_who_was_hidden_is_found_further_on():
    stage = Stage(People(SPEC))
    walk = [body(100 + 200 * i / 30) for i in range(60)]
    for i, here in enumerate(walk):
        ids = stage.frame([None if 25 <= i < 42 else here], i / 30)
        if i == 20:
            before = ids
    assert ids == before


def test_someone_lost_is_looked_for_at_once_and_then_now_and_then():
    people = People(SPEC)
    assert not people.lost
    born(people, body(100), body(500))
    assert not people.lost
    people.with_detections([], [])
    people.update(poses([body(100), body(500)], [0.8, 0.1]), 0.05)
    assert people.lost
    people.with_detections(boxes(body(100)), [0.9])
    assert not people.lost
    looks = 0
    for i in range(60):
        people.update(poses([body(100)]), 0.1 + i / 30)
        if people.lost:
            looks += 1
            people.with_detections(boxes(body(100)), [0.9])
        people.regions()
    assert 2 <= looks <= 4
    assert not people.lost  # nobody is waited for any more


def test_a_newcomer_needs_a_better_score_than_someone_followed():
    """As for one person: 0.2 while followed, 0.25 to begin with."""
    people = People(SPEC)
    people.with_detections(boxes(body(100)), [0.9])
    assert len(people.update(poses([body(100)], 0.23), 0)) == 0
    born(people, body(100), time_s=0.1)
    assert people.update(poses([body(100)], 0.23), 0.2).track_ids.tolist() == [0]
    people.regions()
    assert len(people.update(poses([body(100)], 0.17), 0.3)) == 0


def test_someone_lost_comes_back_with_a_doubtful_pose():
    people = People(SPEC)
    (before,) = born(people, body(100)).track_ids
    people.update(poses([body(100)], 0.1), 0.1)
    people.with_detections(boxes(body(105)), [0.9])
    assert people.update(poses([body(105)], 0.23), 0.3).track_ids.tolist() == [before]


def test_a_newcomer_is_there_at_once_but_not_for_long_unless_confirmed():
    """A chair that was taken for a person: a good score once, then poor ones."""
    people = People(SPEC)
    people.with_detections(boxes(body(100)), [0.9])
    there = [len(people.update(poses([body(100)], 0.3), 0))]
    for i in range(1, 10):
        there.append(len(people.update(poses([body(100)] * len(people.regions()), 0.22), i / 10)))
    assert there == [1] * 6 + [0] * 4  # half a second
    assert not people.lost  # and nobody misses it


def test_a_newcomer_who_is_gone_in_the_next_frame_is_not_waited_for():
    people = People(SPEC)
    people.with_detections(boxes(body(100)), [0.9])
    people.update(poses([body(100)]), 0)
    people.regions()
    assert len(people.update(poses([body(100)], 0.05), 0.03)) == 0
    assert not people.lost
    people.with_detections(boxes(body(100)), [0.9])
    assert people.update(poses([body(100)]), 0.06).track_ids.tolist() == [1]


def test_a_detection_gets_the_region_that_its_box_would_get():
    box = boxes(body(100))
    np.testing.assert_allclose(
        People(SPEC).with_detections(box, [0.9]), regions_from_boxes(xyxy_to_xywh(box), SPEC.aspect, SPEC.crop_padding)
    )


def test_nobody_is_cropped_twice():
    """Two followed people; detections of both, of parts of them, twice of a third, and of a child before the first."""
    people = People(SPEC)
    born(people, body(100), body(300))
    regions = people.regions()
    first, second, third = boxes(body(103), body(296), body(600))
    upper = first - [0, 0, 0, 90]
    child = boxes(body(100, 200, 60))[0]
    asked = people.with_detections(
        [first, upper, second, second + 5, third, third + 4, child], [0.9, 0.8, 0.9, 0.7, 0.6, 0.7, 0.5]
    )
    np.testing.assert_array_equal(asked[:2], regions)  # followed people first, where their last pose was
    np.testing.assert_allclose(asked[2:, 0], [603.5, 99.5])
    assert len(asked) == 4


def test_two_boxes_of_one_person_become_one_with_the_better_pose():
    people = People(SPEC)
    far = boxes(body(100), body(190))  # too far apart to be taken for one
    assert len(people.with_detections(far, [0.9, 0.8])) == 2
    noise = 6 * np.random.default_rng(0).standard_normal((17, 2))
    found = people.update(poses([body(100) + noise, body(100)], [0.5, 0.7]), 0)
    assert found.track_ids.tolist() == [0]
    np.testing.assert_allclose(found.keypoints_xy[0], body(100), rtol=1e-5)


def test_an_arm_that_differs_makes_no_second_person():
    people = People(SPEC)
    people.with_detections(boxes(body(100), body(190)), [0.9, 0.8])
    raised = body(100)
    raised[[7, 9, 8, 10]] -= [0, 110]
    assert len(people.update(poses([body(100), raised]), 0)) == 1


@pytest.mark.parametrize("walker", [0, 1])
@pytest.mark.parametrize("scores", [(0.8, 0.78), (0.78, 0.8)])
def test_of_two_who_have_become_one_the_older_stays(walker, scores):
    """They drift together until they are one; neither the better crop nor the steadier pose says who it is."""
    people, rng = People(SPEC), np.random.default_rng(0)
    bodies = [body(100), body(160)]
    born(people, *bodies)
    for i in range(40):
        x = 60 * min(i / 30, 1)
        bodies[walker] = body(160 - x if walker else 100 + x)
        shaken = [bodies[0] + rng.standard_normal((17, 2)), bodies[1]]
        count = len(people.regions())
        found = people.update(poses(shaken[:count], scores[:count]), 0.1 + i / 30)
    assert found.track_ids.tolist() == [0]


def test_of_two_who_have_become_one_stays_who_was_expected_there():
    """The second's pose is in both regions: the first has gone behind the second, older or not."""
    people = People(SPEC)
    born(people, body(100), body(250))
    found = people.update(poses([body(250), body(250)]), 0.1)
    assert found.track_ids.tolist() == [1]
    assert people.lost


def test_poses_that_trade_regions_keep_their_ids():
    people = People(SPEC)
    born(people, body(100), body(180))
    found = people.update(poses([body(182), body(98)]), 0.1)
    assert found.track_ids.tolist() == [0, 1]
    np.testing.assert_allclose(found.keypoints_xy[:, 0, 0], [98, 182])


def test_two_people_side_by_side_are_two():
    people = People(SPEC)
    found = born(people, body(100), body(135))
    assert found.track_ids.tolist() == [0, 1]
    for i in range(20):  # both step to the same side, half way to where the other was
        x = 115 if i % 2 else 100
        found = people.update(poses([body(x), body(x + 35)]), 0.1 + i / 10)
        assert found.track_ids.tolist() == [0, 1]
        np.testing.assert_allclose(found.keypoints_xy[:, 0, 0], [x, x + 35])


def test_a_newcomer_is_nobody_who_is_lost_elsewhere():
    people = People(SPEC)
    born(people, body(100))
    people.with_detections(boxes(body(100), body(500)), [0.9, 0.8])
    assert people.update(poses([body(100), body(500)], [0.05, 0.8]), 0.1).track_ids.tolist() == [1]


def test_of_forty_people_the_best_ten_are_followed_and_stay():
    people = People(SPEC, most=10)
    crowd = [body(100 + 120 * (i % 10), 100 + 250 * (i // 10)) for i in range(40)]
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.5, 1, 40)
    regions = people.with_detections(boxes(*crowd), scores)
    best = np.argsort(-scores)[:10]
    np.testing.assert_allclose(regions[:, :2], regions_from_boxes(xyxy_to_xywh(boxes(*crowd)), 0.75, 1.25)[best, :2])
    first = people.update(poses([crowd[i] for i in best]), 0)
    for i in range(1, 10):
        assert len(people.with_detections(boxes(*crowd), rng.uniform(0.5, 1, 40))) == 10
        found = people.update(poses([crowd[i] for i in best]), i / 10)
        assert found.track_ids.tolist() == first.track_ids.tolist() == list(range(10))


@pytest.mark.parametrize("none", [[], np.zeros((0, 4)), np.zeros((0, 4), np.float32)])
def test_no_detections_no_people(none):
    people = People(SPEC)
    assert people.with_detections(none, []).shape == (0, 4)
    found = people.update(Poses.empty("coco17"), 0)
    assert len(found) == 0
    assert found.track_ids.dtype == np.int64
    born(people, body(100), time_s=1)
    assert people.with_detections(none, []).shape == (1, 4)


def test_broken_boxes_are_passed_over():
    good = boxes(body(100))[0]
    broken = [[np.nan, 0, 1, 1], [0, 0, np.inf, 9], [9, 9, 5, 20], [5, 5, 5, 9], [0, 0, 1e300, 1e300]]
    assert len(People(SPEC).with_detections([*broken, good], [0.9] * 6)) == 1


def test_someone_who_stands_still_is_one_person_all_day():
    stage = Stage(People(SPEC), interval=30)
    ids = {tuple(stage.frame([body(100), body(300)], i / 30)) for i in range(450)}
    assert len(ids) == 1
    assert stage.detections == 15  # nobody was lost


def test_irregular_times_are_no_trouble():
    stage = Stage(People(SPEC))
    rng = np.random.default_rng(0)
    now, seen = 0.0, set()
    for _ in range(200):
        now += rng.choice([0.0, 0.001, 0.03, 0.3, 0.9])
        seen.add(tuple(stage.frame([body(100 + 30 * np.sin(now)), body(500)], now)))
    assert len(seen) == 1


@pytest.mark.parametrize("time_s", [-5.0, 0.0, 30.0, float("nan")])
def test_after_a_jump_in_time_everybody_is_new(time_s):
    """A file that starts again, or a camera that was away: not the same scene."""
    people = People(SPEC)
    assert born(people, body(100), body(300), time_s=10).track_ids.tolist() == [0, 1]
    found = people.update(poses([body(100), body(300)]), time_s)
    assert found.track_ids.tolist() == [2, 3]
    assert not people.lost


def test_whoever_leaves_the_frame_is_not_waited_for():
    people = People(SPEC)
    born(people, body(600), body(300))
    for i, x in enumerate((620, 635)):
        assert len(people.update(poses([body(x), body(300)]), 0.1 + i / 10, frame_wh=(640, 480))) == 2
        people.regions()
    found = people.update(poses([body(660), body(300)]), 0.3, frame_wh=(640, 480))
    assert found.track_ids.tolist() == [1]
    assert not people.lost
    assert len(people.regions()) == 1


def test_nobody_for_days_leaves_memory_flat():
    people = People(SPEC)
    nobody = Poses.empty("coco17")

    def idle(first, last):
        for i in range(first, last):
            people.regions()
            people.update(nobody, i / 30)

    idle(0, 1000)
    before = sys.getallocatedblocks()
    idle(1000, 100_000)
    assert sys.getallocatedblocks() - before < 100


def test_people_who_come_and_go_leave_memory_flat_and_no_id_is_used_again():
    people = People(SPEC)
    seen: list[int] = []

    def visit(first, last):
        for i in range(first, last):
            seen.append(int(born(people, body(100 + 50 * (i % 9)), time_s=2.0 * i).track_ids[0]))
            people.update(poses([body(100)], 0.05), 2.0 * i + 0.1)

    visit(0, 50)
    before = sys.getallocatedblocks()
    visit(50, 400)
    assert sys.getallocatedblocks() - before < 700  # of which 350 are the list of ids
    assert seen == list(range(400))


def test_poses_in_space_stay_with_their_people():
    people = People(SPEC)
    people.with_detections(boxes(body(100), body(300)), [0.9, 0.8])
    given = poses([body(100), body(300)], [0.1, 0.8])
    xyz = np.stack([np.zeros((17, 3)), np.ones((17, 3))])
    found = people.update(Poses(given.keypoints_xy, given.scores, given.boxes_xyxy, "coco17", None, xyz, "h36m17"), 0)
    assert (found.keypoints_xyz == 1).all()


def test_mistakes_are_named():
    people = People(SPEC)
    people.with_detections(boxes(body(100), body(300)), [0.9, 0.8])
    with pytest.raises(EdgePoseError, match="people: 2 regions were asked for, and 1 poses came"):
        people.update(poses([body(100)]), 0)
    with pytest.raises(EdgePoseError, match=r"detections: expected boxes \(N, 4\) .*, got \(1, 4\) and \(2,\)"):
        people.with_detections([[0, 0, 1, 1]], [0.9, 0.9])
    with pytest.raises(EdgePoseError, match=r"got \(2, 3\) and \(2,\)"):
        people.with_detections([[0, 0, 1], [0, 0, 1]], [0.9, 0.9])
    with pytest.raises(EdgePoseError, match="people: expected most >= 1 and patience_s > 0, got 0 and 1"):
        People(SPEC, most=0)
    with pytest.raises(EdgePoseError, match="got 10 and nan"):
        People(SPEC, patience_s=float("nan"))
