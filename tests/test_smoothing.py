"""Joints at rest are steady, fast ones are not late, and what the model did not find moves nothing."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edgepose import EdgePoseError, Poses
from edgepose.smoothing import OneEuro

BODY = np.random.default_rng(1).uniform((0, 0), (80, 200), (14, 2))
FPS = 30


def poses(points, scores=0.9, ids=(0,), xyz=None):
    space = None if xyz is None else "lsp14"
    """People at ``points`` (K, 2) or (N, K, 2), 200 px high."""
    points = np.array(points, float).reshape(-1, 14, 2)
    boxes = np.array([[*p[0], *(p[0] + np.array([80, 200]))] for p in points]).reshape(-1, 4)
    scores = np.broadcast_to(scores, points.shape[:2])
    return Poses(points, scores, boxes, "lsp14", None if ids is None else np.array(ids), xyz, space)


def play(points, times=None, smooth=None, **more):
    """The smoothed keypoints (T, K, 2) of one person at ``points`` (T, K, 2)."""
    smooth = smooth or OneEuro()
    times = np.arange(len(points)) / FPS if times is None else times
    return np.array([smooth(poses(p, **more), t).keypoints_xy[0] for p, t in zip(points, times, strict=True)])


def jitter(points):
    return np.linalg.norm(np.diff(points, n=2, axis=0), axis=-1).mean()


@pytest.fixture
def noise():
    return np.random.default_rng(0).standard_normal((300, 14, 2)) * 1.3


def test_joints_at_rest_are_steady(noise):
    smoothed = play(BODY + noise)
    assert jitter(smoothed) < jitter(noise) / 5
    assert np.abs(smoothed[30:] - BODY).mean() < np.abs(noise).mean() / 2


@pytest.mark.parametrize("hertz", [1, 2, 3])
def test_fast_arms_are_less_than_half_a_frame_late(hertz, noise):
    def truth(times):
        swing = 50 * np.sin(2 * np.pi * hertz * times)[:, None] * np.array([1, 0])  # a quarter of the height
        return BODY[6] + swing

    times = np.arange(300) / FPS
    moving = BODY + noise
    moving[:, 6] += truth(times) - BODY[6]
    smoothed = play(moving)[:, 6]
    shifts = np.arange(0, 0.1, 0.001)
    errors = [np.abs(smoothed - truth(times - shift)).mean() for shift in shifts]
    assert shifts[np.argmin(errors)] <= 0.5 / FPS


def test_near_and_far_people_are_smoothed_alike(noise):
    """Twice as large on the screen, twice as far at every moment: only so does one setting serve everybody."""
    moving = BODY + noise
    moving[:, :, 0] += np.linspace(0, 300, 300)[:, None]
    smooth = OneEuro()
    large = []
    for i, points in enumerate(moving):
        frame = poses(points)
        frame = Poses(2 * frame.keypoints_xy, frame.scores, 2 * frame.boxes_xyxy, "lsp14", frame.track_ids)
        large.append(smooth(frame, i / FPS).keypoints_xy[0])
    np.testing.assert_allclose(np.array(large), 2 * play(moving), rtol=1e-5)


def test_what_was_not_found_moves_nothing(noise):
    """One joint flies about with a score below the threshold: it rests, and the others do not know of it."""
    scores = np.full(14, 0.9)
    smooth = OneEuro()
    play((BODY + noise)[:30], smooth=smooth)
    other = OneEuro()
    play((BODY + noise)[:30], smooth=other)
    wild = BODY + noise[30]
    wild[3] += 500
    scores[3] = 0.19
    before = play([BODY + noise[30]], [1.0], other)[0]
    after = play([wild], [1.0], smooth, scores=scores)[0]
    np.testing.assert_array_equal(np.delete(after, 3, axis=0), np.delete(before, 3, axis=0))
    assert np.abs(after[3] - BODY[3]).max() < 2
    back = play([BODY + noise[31]], [1.1], smooth)[0]
    assert np.abs(back[3] - BODY[3]).max() < 2


def test_a_joint_that_stays_lost_is_where_the_model_says():
    """It rests for a moment; a joint that nobody sees must not stay behind for good."""
    smooth = OneEuro()
    smooth(poses(BODY), 0)
    rests, is_free = (smooth(poses(BODY + 50, scores=0.1), t).keypoints_xy[0] for t in (0.2, 0.8))
    np.testing.assert_allclose(rests, BODY, rtol=1e-5)
    np.testing.assert_allclose(is_free, BODY + 50, rtol=1e-5)


def test_a_low_score_is_trusted_less():
    """After a step of ten pixels, joints have moved the farther the better their score is."""
    moved = []
    for score in (0.2, 0.4, 0.6, 0.9):
        smooth = OneEuro()
        smooth(poses(BODY), 0)
        moved.append(float((smooth(poses(BODY + 10, scores=score), 1 / FPS).keypoints_xy[0] - BODY).mean()))
    assert 0 < moved[0] < moved[1] < moved[2] < 10
    assert moved[3] == moved[2]  # from three times the threshold on it is trusted in full


@pytest.mark.parametrize(
    "hidden",
    [
        lambda smooth, t: smooth(poses(BODY, scores=0.05), t),  # found with low scores
        lambda smooth, t: smooth(Poses.empty("lsp14"), t),  # not found at all
        lambda smooth, t: None,  # no frames came
    ],
)
def test_after_a_gap_a_joint_appears_where_it_is(hidden):
    smooth = OneEuro()
    smooth(poses(BODY), 0)
    for t in (0.1, 0.3, 0.5):
        hidden(smooth, t)
    np.testing.assert_allclose(smooth(poses(BODY + 90), 0.6).keypoints_xy[0], BODY + 90, rtol=1e-5)


@pytest.mark.parametrize("time_s", [1.0, 0.5, -3.0, float("nan")])
def test_it_starts_anew_where_time_does_not_go_on(time_s):
    smooth = OneEuro()
    smooth(poses(BODY), 1.0)
    np.testing.assert_allclose(smooth(poses(BODY + 90), time_s).keypoints_xy[0], BODY + 90, rtol=1e-5)
    np.testing.assert_allclose(play([BODY, BODY], [5.0, 5.1], smooth)[1], BODY, rtol=1e-5)


def test_a_loop_starts_with_no_memory_of_its_end():
    smooth = OneEuro()
    smooth(poses(BODY + 90), 1.0)
    for t in (0.0, 0.9, 1.1):
        after = smooth(poses(BODY, scores=0.1), t).keypoints_xy[0]
        np.testing.assert_allclose(after, BODY, rtol=1e-5)  # nothing is held


@pytest.mark.parametrize("times", [np.arange(0, 0.31, 0.01), np.arange(0, 0.31, 0.1), np.array([0, 0.02, 0.25, 0.3])])
def test_it_is_time_that_counts_not_frames(times):
    """0.3 s after a step a low-pass filter of 1 Hz has gone 1 - exp(-2 pi 0.3) = 85 % of it, less in a few steps."""
    steps = np.array([BODY, *[BODY + 10] * (len(times) - 1)])
    smoothed = play(steps, times, OneEuro(min_cutoff_hz=1, beta=0))
    assert 0.7 < (smoothed[-1] - BODY).mean() / 10 < 0.87


def test_everybody_has_a_state_of_their_own():
    """Two people trade rows, and a third one comes: each is smoothed with their own past, the newcomer not at all."""
    smooth = OneEuro()
    smooth(poses([BODY, BODY + 300], ids=(7, 8)), 0)
    after = smooth(poses([BODY + 310, BODY + 10, BODY + 600], ids=(8, 7, 9)), 1 / FPS)
    moved = after.keypoints_xy - np.array([BODY + 300, BODY, BODY + 600])
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-4)
    assert 0 < moved[0].mean() < 10
    np.testing.assert_allclose(moved[2], 0, atol=1e-4)
    assert after.track_ids.tolist() == [8, 7, 9]


def test_one_person_needs_no_track_id():
    smooth = OneEuro()
    smooth(poses(BODY, ids=None), 0)
    assert 0 < (smooth(poses(BODY + 10, ids=None), 1 / FPS).keypoints_xy[0] - BODY).mean() < 10
    elsewhere = smooth(poses(BODY + 400, ids=None), 2 / FPS)  # someone else: their boxes have nothing in common
    np.testing.assert_allclose(elsewhere.keypoints_xy[0], BODY + 400, rtol=1e-5)
    assert elsewhere.track_ids is None
    with pytest.raises(EdgePoseError, match="smoothing: 2 people without track_ids: who is who must be known"):
        smooth(poses([BODY, BODY + 300], ids=None), 3 / FPS)


def test_poses_in_space_are_smoothed_too():
    rng = np.random.default_rng(0)
    truth = rng.uniform(-0.8, 0.8, (14, 3))
    noise = 0.01 * rng.standard_normal((100, 1, 14, 3))
    smooth = OneEuro()
    after = np.array([smooth(poses(BODY, xyz=truth + n), i / FPS).keypoints_xyz for i, n in enumerate(noise)])
    assert jitter(after[:, 0]) < jitter(noise[:, 0]) / 5


def test_joints_without_a_place_in_space_are_passed_on_and_forgotten():
    smooth = OneEuro()
    known, unknown = np.zeros((1, 14, 3)), np.full((1, 14, 3), np.nan)
    for i, xyz in enumerate([unknown, known, known + 1]):
        after = smooth(poses(BODY, xyz=xyz), i / FPS).keypoints_xyz
        assert np.isnan(after).all() == (i == 0)
    assert (after < 1).all()


def test_nobody_is_smoothed_to_nobody():
    smooth = OneEuro()
    assert len(smooth(Poses.empty("lsp14"), 0)) == 0
    assert len(smooth(poses(np.zeros((0, 14, 2)), ids=()), 1)) == 0


def test_the_input_is_not_touched():
    given = poses(BODY)
    smooth = OneEuro()
    smooth(poses(BODY + 10), 0)
    smooth(given, 1 / FPS)
    np.testing.assert_allclose(given.keypoints_xy[0], BODY, rtol=1e-6)


def test_people_who_left_are_forgotten():
    """A new person in every frame for three minutes: what is kept is what was seen in the last second."""
    smooth = OneEuro()
    given = poses(BODY)

    def visit(first, last):
        for i in range(first, last):
            smooth(Poses(given.keypoints_xy, given.scores, given.boxes_xyxy, "lsp14", np.array([i])), i / 10)

    visit(0, 100)
    before = sys.getallocatedblocks()
    visit(100, 2000)
    assert sys.getallocatedblocks() - before < 100


@pytest.mark.parametrize(
    "settings",
    [
        {"min_cutoff_hz": 0},
        {"beta": -1},
        {"derivate_cutoff_hz": 0},
        {"threshold": -0.1},
        {"beta": float("nan")},
        {"min_cutoff_hz": float("inf")},
    ],
)
def test_settings_are_checked(settings):
    with pytest.raises(EdgePoseError, match=r"smoothing: expected min_cutoff_hz > 0, beta >= 0, .* got .*"):
        OneEuro(**settings)


def test_a_threshold_of_zero_trusts_every_joint():
    smooth = OneEuro(threshold=0)
    smooth(poses(BODY, scores=0.0), 0)
    assert (smooth(poses(BODY + 10, scores=0.0), 1 / FPS).keypoints_xy[0] > BODY).all()
