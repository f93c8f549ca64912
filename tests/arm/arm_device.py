"""Runs on the emulated board: load (with the self-test), crop, infer, decode, and write every answer to a file.

python arm_device.py BUNDLE INPUTS.npz OUT VARIANT...
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import edgepose
from edgepose.pipeline import Estimator


def record(log: list[tuple[Any, Any]]) -> None:
    """Keep the crops and heatmaps of every inference, those of the self-test among them."""
    heatmaps_of = Estimator.heatmaps

    def heatmaps(self: Estimator, crops: Any, flip: bool = False) -> Any:
        answer = heatmaps_of(self, crops, flip)
        log.append((crops, answer))
        return answer

    Estimator.heatmaps = heatmaps  # type: ignore[method-assign]


def main(bundle: str, inputs: str, out: str, *variants: str) -> None:
    """One ``.npz`` per variant, or a ``.json`` with the error."""
    log: list[tuple[Any, Any]] = []
    record(log)
    with np.load(inputs) as data:
        frames, boxes = data["frames"], data["boxes"]
    for variant in variants:
        start = time.perf_counter()
        log.clear()
        try:
            estimator = edgepose.load(bundle, variant=variant, threads=1)
            poses = [estimator.estimate(frame, box[None]) for frame, box in zip(frames, boxes, strict=True)]
        except Exception as error:
            (Path(out) / f"{variant}.json").write_text(json.dumps(f"{type(error).__name__}: {error}"))
            continue
        np.savez(
            Path(out) / f"{variant}.npz",
            crops=np.concatenate([crops for crops, _ in log]),
            heatmaps=np.concatenate([heatmaps for _, heatmaps in log]),
            keypoints_xy=np.concatenate([pose.keypoints_xy for pose in poses]),
            scores=np.concatenate([pose.scores for pose in poses]),
            seconds=time.perf_counter() - start,
        )
        estimator.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
