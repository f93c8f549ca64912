"""Scores of poses that somebody else made: COCO keypoint results, or 3D poses by clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepose.cli._console import print_table, progress, remark
from edgepose.errors import DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PREDICTIONS", "score_predictions"]

PREDICTIONS = (".json", ".npz")


def score_predictions(path: Path, kind: str | None, root: Path) -> dict[str, Any]:
    """Print the protocol's statistics, and return them for JSON.

    Args:
        path: COCO keypoint results; or an ``.npz`` with one array (F, 17, 3) of metres for each clip, by its name.
        kind: Kind of data: ``coco`` or nothing for the one, a lifting data set for the other.
        root: The data set.

    Raises:
        DatasetError: The poses or the data set are malformed, or do not belong together.
    """
    from edgepose.calibration.datasets.registry import LIFTING

    if path.suffix.lower() == ".npz":
        if kind not in LIFTING:
            raise click.UsageError(f"{path}: 3D poses need --data {' or '.join(LIFTING)}")
        return _score_lifting(path, kind, root)
    if kind not in (None, "coco"):
        raise click.UsageError(f"{path}: keypoint results are scored with --data coco")
    return _score_coco(path, root)


def _score_coco(path: Path, root: Path) -> dict[str, Any]:
    from edgepose.calibration.datasets.coco import CocoKeypoints, coco_statistics
    from edgepose.skeletons import SKELETONS

    data = CocoKeypoints.open(root)
    skeleton = next((row for row in SKELETONS.values() if row.joints == data.joints), None)
    if skeleton is None:
        raise DatasetError(f"{data.path}: no OKS constants are known for its joints: {', '.join(data.joints)}")
    rows, elsewhere = data.predictions(path)
    stats = coco_statistics(data, rows, skeleton.sigmas)
    values = [f"{value:.2f}" if value >= 0 else None for value in stats.values()]
    left_out = f", {elsewhere} on other images left out" if elsewhere else ""
    print_table(
        f"{path.name} on {data.path}", list(stats), [values], f"{len(rows)} poses{left_out}; COCO keypoint statistics"
    )
    figures = {"poses": len(rows), "poses_on_other_images": elsewhere, "stats": stats}
    return {"predictions": path.name, "data": str(data.path), **figures}


def _score_lifting(path: Path, kind: str, root: Path) -> dict[str, Any]:
    from edgepose.calibration.datasets.registry import open_lifting
    from edgepose.calibration.metrics_3d import LiftingScorer

    data = open_lifting(root, kind)
    poses = _read_poses(path)
    scorer, scored = LiftingScorer(data.skeleton), 0
    with progress() as update:
        for clip in data.clips():
            if clip.name in poses:
                scorer.add(clip, poses[clip.name])
                scored += 1
                update("clips", scored, len(poses))
    if scored < len(poses):
        names = ", ".join(repr(clip.name) for clip in data.clips(3))
        raise DatasetError(f"{path}: {len(poses) - scored} of its {len(poses)} clips are not in {root} ({names}, ...)")
    accuracy = scorer.result()
    table = [[f"{value:.2f}" for value in accuracy.stats.values()]]
    print_table(f"{path.name} on {root}", list(accuracy.stats), table, f"{scored} clips, {accuracy.people} poses; mm")
    for line in accuracy.remarks:
        remark(f"note: {line}")
    return {"predictions": path.name, "data": str(root), "clips": scored, "stats": dict(accuracy.stats)}


def _read_poses(path: Path) -> dict[str, NDArray[Any]]:
    """Clip -> (F, K, 3) metres."""
    from edgepose.calibration.datasets.arrays import npz_names, number_array, read_npz

    names = npz_names(path)
    if not names:
        raise DatasetError(f"{path}: holds no arrays: save one (F, K, 3) of metres for each clip, by its name")
    return {name: number_array(read_npz(path, name), (None, None, 3), f"{path}: {name}") for name in names}
