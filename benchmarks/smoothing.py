"""What smoothing takes away and what it costs: `smoothing.py [--json poses.jsonl] [--search] [--beta 15]`.

Synthetic motion of a person 300 px high, whose truth is known: standing with 2 px of noise, walking, arms that swing
once to three times a second; 30 frames a second, and 15 of which one in five is dropped; wild joints. Given the JSON
lines of `edgepose run` without smoothing, that clip as well. Jitter is the mean acceleration over consecutive frames.
Lag is the shift in time at which the poses fit the truth best (on a clip: the raw poses); the error is that without a
shift.
`--search` shows the choice of the defaults.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.metrics_3d import acceleration
from edgepose.machine import machine
from edgepose.skeletons import get_skeleton
from edgepose.smoothing import OneEuro
from edgepose.types import Poses

Floats = NDArray[np.float64]
Motion = Callable[[Floats], Floats]
"""Times (T,) in seconds -> (T, 17, 2) pixels."""

HEIGHT_PX = 300.0
NOISE_PX = 2.0
SECONDS = 20.0
LATEST_MS, SLOWEST_MS, WORST = 16.0, 50.0, 1.7  # half a frame and one and a half at 30 frames a second
JOINTS = get_skeleton("coco17").joints
STANDING = HEIGHT_PX * np.array(
    [
        *[[0, 0.06], [0.02, 0.05], [-0.02, 0.05], [0.04, 0.06], [-0.04, 0.06], [0.12, 0.19], [-0.12, 0.19]],
        *[[0.15, 0.35], [-0.15, 0.35], [0.17, 0.49], [-0.17, 0.49], [0.08, 0.51], [-0.08, 0.51]],
        *[[0.09, 0.74], [-0.09, 0.74], [0.1, 0.96], [-0.1, 0.96]],
    ]
)
SWAY = {"elbow": 0.06, "wrist": 0.12, "knee": 0.1, "ankle": 0.2}
"""Heights by which a walker's joints swing to either side."""


def standing(times: Floats) -> Floats:
    return np.array(np.broadcast_to(STANDING, (len(times), 17, 2)))


def swaying(times: Floats) -> Floats:
    """The whole body slowly from side to side: five percent of the height, once in five seconds."""
    points = standing(times)
    points[:, :, 0] += 0.05 * HEIGHT_PX * np.sin(2 * np.pi * 0.2 * times)[:, None]
    return points


def walking(times: Floats) -> Floats:
    """0.8 heights (1.4 m) and 1.8 steps per second; the body rises and falls by two percent."""
    points = standing(times)
    points[:, :, 0] += 0.8 * HEIGHT_PX * times[:, None]
    points[:, :, 1] += 0.02 * HEIGHT_PX * np.cos(2 * np.pi * 1.8 * times)[:, None]
    for k, joint in enumerate(JOINTS):
        side, _, part = joint.partition("_")
        sign = (1 if side == "left" else -1) * (1 if part in ("knee", "ankle") else -1)
        points[:, k, 0] += sign * SWAY.get(part, 0) * HEIGHT_PX * np.sin(2 * np.pi * 0.9 * times)
    return points


def swinging(hertz: float) -> Motion:
    """Both arms from the side to the horizontal and back."""

    def motion(times: Floats) -> Floats:
        points = standing(times)
        angle = np.pi / 4 * (1 - np.cos(2 * np.pi * hertz * times))[:, None]
        for side, sign in (("left", 1), ("right", -1)):
            shoulder = points[:, JOINTS.index(f"{side}_shoulder")]
            for part, length in (("elbow", 0.16), ("wrist", 0.3)):
                arm = length * HEIGHT_PX * np.concatenate([sign * np.sin(angle), np.cos(angle)], axis=1)
                points[:, JOINTS.index(f"{side}_{part}")] = shoulder + arm
        return points

    return motion


def regular(rng: np.random.Generator) -> Floats:
    """30 frames a second."""
    return np.arange(0, SECONDS, 1 / 30)


def dropping(rng: np.random.Generator) -> Floats:
    """15 frames a second, of which one in five is dropped."""
    times = np.arange(0, SECONDS, 1 / 15)
    return times[rng.random(len(times)) > 0.2]


@dataclass(frozen=True)
class Case:
    """A motion, how it is sampled, and what goes wrong.

    Attributes:
        wild: Share of joints that are found up to half a height away from where they are, in a single frame.
        weak: Whether a third of the joints have four times the noise and a score of 0.3.
    """

    name: str
    motion: Motion
    times: Callable[[np.random.Generator], Floats]
    wild: float = 0.0
    weak: bool = False


CASES = (
    Case("standing", standing, regular),
    Case("swaying", swaying, regular),
    Case("walking", walking, regular),
    *(Case(f"arms {hertz} Hz", swinging(hertz), regular) for hertz in (1, 2, 3)),
    Case("standing, 15 fps drops", standing, dropping),
    Case("walking, 15 fps drops", walking, dropping),
    Case("arms 2 Hz, 15 fps drops", swinging(2), dropping),
    Case("standing, 1 % wild", standing, regular, wild=0.01),
    Case("walking, 1 % wild", walking, regular, wild=0.01),
    Case("standing, weak joints", standing, regular, weak=True),
)


@dataclass(frozen=True)
class Track:
    """One person: times (T,), keypoints (T, K, 2), scores (T, K), boxes (T, 4), name of the skeleton."""

    times: Floats
    points: Floats
    scores: Floats
    boxes: Floats
    skeleton: str = "coco17"


def measured(case: Case) -> Track:
    """What a model would say: the truth with noise."""
    rng = np.random.default_rng(0)
    times = case.times(rng)
    truth = case.motion(times)
    scores = np.full(truth.shape[:2], 0.8)
    noise = np.full(truth.shape[:2], NOISE_PX)
    if case.weak:
        scores[:, ::3], noise[:, ::3] = 0.3, 4 * NOISE_PX
    points = truth + noise[:, :, None] * rng.standard_normal(truth.shape)
    wild = rng.random(truth.shape[:2]) < case.wild
    points[wild] += rng.uniform(-0.5, 0.5, (wild.sum(), 2)) * HEIGHT_PX
    boxes = np.concatenate([truth.min(axis=1), truth.max(axis=1)], axis=1)
    return Track(times, points, scores, boxes)


def smoothed(track: Track, smooth: OneEuro) -> Track:
    poses = (
        Poses(points[None], scores[None], box[None], track.skeleton)
        for points, scores, box in zip(track.points, track.scores, track.boxes, strict=True)
    )
    points = [smooth(pose, time).keypoints_xy[0] for pose, time in zip(poses, track.times.tolist(), strict=True)]
    return replace(track, points=np.array(points, float))


def lag_ms(track: Track, motion: Motion) -> float:
    """By how much the truth must be late to fit best; NaN where nothing moves."""
    shifts = np.arange(-0.05, 0.25, 0.001)
    errors = [((track.points - motion(track.times - shift)) ** 2).mean() for shift in shifts]
    return 1e3 * float(shifts[np.argmin(errors)]) if np.ptp(errors) > 1e-6 else float("nan")


def rms_px(track: Track, motion: Motion) -> float:
    return float(np.sqrt(((track.points - motion(track.times)) ** 2).sum(axis=-1).mean()))


def jitter_px(track: Track, threshold: float) -> float:
    found = track.scores >= threshold
    steady = found[:-2] & found[1:-1] & found[2:]
    return float(acceleration(track.points)[steady].mean())


@dataclass(frozen=True)
class Figures:
    """Jitter in px per frame squared, lag in ms, error in px."""

    jitter: float
    lag: float
    error: float


def judge(track: Track, case: Case) -> Figures:
    return Figures(jitter_px(track, 0), lag_ms(track, case.motion), rms_px(track, case.motion))


def synthetic(smoother: Callable[[], OneEuro]) -> None:
    """Print a line for each case."""
    print(f"\n{'':24} {'jitter, px/frame2':>26} {'1e-3 heights/frame2':>20} {'lag, ms':>14} {'error, px':>14}")
    print(f"{'':24} {'true':>8} {'raw':>8} {'after':>8} {'raw':>10} {'after':>9}" + f" {'raw':>6} {'after':>7}" * 2)
    for case in CASES:
        track = measured(case)
        raw, after = judge(track, case), judge(smoothed(track, smoother()), case)
        true = jitter_px(replace(track, points=case.motion(track.times)), 0)
        parts = 1e3 / HEIGHT_PX
        print(
            f"{case.name:24} {true:8.2f} {raw.jitter:8.2f} {after.jitter:8.2f} "
            f"{parts * raw.jitter:10.2f} {parts * after.jitter:9.2f} "
            f"{raw.lag:6.0f} {after.lag:7.0f} {raw.error:6.2f} {after.error:7.2f}"
        )


def search() -> None:
    """Print a grid of settings, and the steadiest of those within the limits."""
    cases = [case for case in CASES if not (case.wild or case.weak)]
    tracks = [measured(case) for case in cases]
    raw = np.array([rms_px(track, case.motion) for track, case in zip(tracks, cases, strict=True)])
    print(
        f"\nlimits: {LATEST_MS:g} ms late, {SLOWEST_MS:g} ms when swaying, error {WORST:g} times the raw one; "
        "... = beyond"
    )
    print(f"{'min_cutoff beta':>15} {'jitter standing':>17} {'latest':>10} {'swaying':>10} {'worst error / raw':>18}")
    best = (1.0, "nothing")
    for cutoff, beta in product((0.3, 0.5, 0.7, 1.0, 1.5, 2.0), (5.0, 10.0, 12.0, 15.0, 20.0, 30.0)):
        after = [judge(smoothed(track, OneEuro(cutoff, beta)), case) for track, case in zip(tracks, cases, strict=True)]
        jitter = after[0].jitter / jitter_px(tracks[0], 0)
        swaying, latest = after[1].lag, np.nanmax([figures.lag for figures in after[2:]])
        worst = max(np.array([figures.error for figures in after]) / raw)
        within = latest <= LATEST_MS and swaying <= SLOWEST_MS and worst <= WORST
        name = f"{cutoff:10.1f} {beta:4.0f}"
        print(f"{name} {jitter:17.3f} {latest:7.0f} ms {swaying:7.0f} ms {worst:18.2f} {'' if within else '...'}")
        best = min(best, (jitter, name)) if within else best
    print(f"steadiest: {best[1]}")


def tracks_of(path: Path) -> Iterator[Track]:
    """People of a JSON lines file, cut where someone is missing for a frame."""
    open_tracks: dict[int, list[tuple[float, list[list[float]], list[float]]]] = {}
    skeleton = "coco17"
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        skeleton = row["skeleton"]
        people = {person.get("track_id", -1): person for person in row["people"]}
        for lost in set(open_tracks) - set(people):
            yield from _track(open_tracks.pop(lost), skeleton)
        for i, person in people.items():
            open_tracks.setdefault(i, []).append((row["time_s"], person["keypoints"], person["box_xyxy"]))
    for rows in open_tracks.values():
        yield from _track(rows, skeleton)


def _track(rows: list[tuple[float, list[list[float]], list[float]]], skeleton: str) -> Iterator[Track]:
    if len(rows) >= 10:
        joints = np.array([keypoints for _, keypoints, _ in rows])
        times, boxes = np.array([time for time, _, _ in rows]), np.array([box for _, _, box in rows])
        yield Track(times, joints[:, :, :2], joints[:, :, 2], boxes, skeleton)


def shift_ms(raw: Track, after: Track, threshold: float) -> float:
    """By how much the raw poses must be late to fit the smoothed ones best: whole frames, refined by a parabola."""
    found, count = (raw.scores >= threshold)[:, :, None], len(raw.times)
    errors = []
    for shift in range(-3, 4):
        here, there = slice(3, count - 3), slice(3 - shift, count - 3 - shift)
        both = found[here] & found[there]
        errors.append(np.where(both, (after.points[here] - raw.points[there]) ** 2, 0).sum() / both.sum())
    best = int(np.clip(np.argmin(errors), 1, len(errors) - 2))
    low, middle, high = errors[best - 1 : best + 2]
    peak = best - 3 + 0.5 * (low - high) / (low - 2 * middle + high)
    return float(1e3 * peak * np.median(np.diff(raw.times)))


def clip(path: Path, smoother: Callable[[], OneEuro], threshold: float) -> None:
    """Print jitter before and after, and the shift, over all people of a clip."""
    raws = list(tracks_of(path))
    afters = [smoothed(track, smoother()) for track in raws]
    weights = [len(track.times) for track in raws]
    heights = [float(np.median(track.boxes[:, 3] - track.boxes[:, 1])) for track in raws]
    print(f"\n{path.name}: {len(raws)} people, {sum(weights)} poses, {np.median(heights):.0f} px high in the median")
    for name, tracks in (("raw", raws), ("after", afters)):
        jitters = np.array([jitter_px(track, threshold) for track in tracks])
        parts = 1e3 * np.average(jitters / heights, weights=weights)
        print(f"{name:>6}: {np.average(jitters, weights=weights):6.2f} px/frame2, {parts:6.2f} 1e-3 heights/frame2")
    shifts = [shift_ms(raw, after, threshold) for raw, after in zip(raws, afters, strict=True)]
    print(f" shift: {np.nanmedian(shifts):.0f} ms against raw (median)")


def main() -> None:
    """Print machine, settings and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="JSON lines of edgepose run")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--min-cutoff", type=float)
    parser.add_argument("--beta", type=float)
    parser.add_argument("--threshold", type=float, default=0.2)
    arguments = parser.parse_args()
    given = {"min_cutoff_hz": arguments.min_cutoff, "beta": arguments.beta}
    settings = {name: value for name, value in given.items() if value is not None}
    print(machine())
    synthetic(lambda: OneEuro(**settings, threshold=arguments.threshold))
    if arguments.json:
        clip(arguments.json, lambda: OneEuro(**settings, threshold=arguments.threshold), arguments.threshold)
    if arguments.search:
        search()


if __name__ == "__main__":
    main()
