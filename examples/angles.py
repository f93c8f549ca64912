"""Elbow angles of the person in a video, from the Python interface: `python examples/angles.py BUNDLE VIDEO`."""

from __future__ import annotations

import sys

import numpy as np

import edgepose
from edgepose.sources import open_source


def angle(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    """Angle at b in degrees."""
    u, v = a - b, c - b
    return float(np.degrees(np.arccos(np.clip(u @ v / (np.linalg.norm(u) * np.linalg.norm(v) + 1e-9), -1, 1))))


def main(bundle: str, video: str) -> None:
    estimator = edgepose.load(bundle)
    follow = estimator.follow()
    joints = estimator.spec.joints.joints
    arms = {
        side: [joints.index(f"{side}_{name}") for name in ("shoulder", "elbow", "wrist")] for side in ("left", "right")
    }
    for frame in open_source(video):
        poses = follow(frame.image_bgr)
        for points, scores in zip(poses.keypoints_xy, poses.scores, strict=True):
            found = {side: angle(*points[arm]) for side, arm in arms.items() if scores[arm].min() > 0.2}
            print(
                f"{frame.time_s:6.2f} s  "
                + "  ".join(f"{side} elbow {value:3.0f} deg" for side, value in found.items())
            )


if __name__ == "__main__":
    main(*sys.argv[1:3])
