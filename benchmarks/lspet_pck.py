"""PCK of the starter model on Leeds Sports Pose Extended, FP32 and INT8: `lspet_pck.py FOLDER_WITH_ZIPS`.

INT8 is calibrated on crops of train.zip; every image of val.zip is scored. A joint counts as correct within a share
of the torso (right shoulder to left hip; 0.4 times the box diagonal where one of them is not labelled).
"""

from __future__ import annotations

import io
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from edgepose.assets import STARTER_MODEL, STARTER_WEIGHTS
from edgepose.calibration.metrics import pck
from edgepose.converters.checkpoint import load_checkpoint
from edgepose.converters.convert import convert
from edgepose.geometry import boxes_around, regions_from_boxes
from edgepose.machine import machine
from edgepose.models.registry import get_model
from edgepose.runtimes.load import load
from edgepose.skeletons import get_skeleton

CALIBRATION = 128
RIGHT_SHOULDER, LEFT_HIP = 8, 3


def people(path: Path) -> Iterator[tuple[str, bytes, np.ndarray]]:
    """Name, JPEG and joints (14, 3) x, y, visible of each image."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        table = np.load(
            io.BytesIO(archive.read(next(n for n in names if n.endswith("joints.npz")))), allow_pickle=False
        )
        images = {Path(n).stem: n for n in names if n.endswith(".jpg")}
        for key, joints in zip(table["ids"], table["joints"], strict=True):
            stem = str(key) if str(key) in images else next(s for s in images if s.endswith(f"{int(key):05d}"))
            yield stem, archive.read(images[stem]), joints


def main(folder: Path) -> None:
    """Convert, run and print."""
    row = get_model(STARTER_MODEL)
    with tempfile.TemporaryDirectory() as scratch:
        pictures = Path(scratch) / "train"
        pictures.mkdir()
        every = list(people(folder / "train.zip"))
        for i in np.random.default_rng(0).permutation(len(every))[: CALIBRATION + 32]:
            (pictures / f"{every[i][0]}.jpg").write_bytes(every[i][1])
        del every
        bundle = Path(scratch) / "bundle"
        conversion = convert(
            load_checkpoint(STARTER_WEIGHTS, row),
            bundle,
            ["onnx-fp32", "onnx-int8"],
            calibration=pictures,
            calibration_size=CALIBRATION,
        )
        estimators = {name: load(bundle, variant=name) for name in ("onnx-fp32", "onnx-int8")}
        found: dict[str, list[np.ndarray]] = {name: [] for name in estimators}
        truth, visible, reference = [], [], []
        for _, jpeg, joints in people(folder / "val.zip"):
            frame = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
            seen = joints[:, 2] > 0
            box = boxes_around(joints[seen, :2])
            regions = regions_from_boxes(box, row.spec.aspect, row.spec.crop_padding)
            for name, estimator in estimators.items():
                found[name].append(estimator.poses_at(frame, regions).keypoints_xy[0])
            truth.append(joints[:, :2])
            visible.append(seen)
            torso = np.linalg.norm(joints[RIGHT_SHOULDER, :2] - joints[LEFT_HIP, :2])
            reference.append(torso if seen[[RIGHT_SHOULDER, LEFT_HIP]].all() else 0.4 * np.linalg.norm(box[2:]))
    print(f"{machine()}")
    print(f"{len(truth)} crops of val.zip; INT8 calibrated on {conversion.calibrated_on} crops of train.zip")
    scores = {}
    for name, points in found.items():
        for share in (0.2, 0.1):
            per_joint = pck(truth, points, visible, reference, share)
            error = np.linalg.norm(np.array(truth) - np.array(points), axis=-1)
            correct = (error < share * np.array(reference)[:, None])[np.array(visible)]
            scores[name, share] = 100 * correct.mean()
            if share == 0.2:
                joints_line = "  ".join(
                    f"{j} {v:.1f}" for j, v in zip(get_skeleton("lsp14").joints, per_joint, strict=True)
                )
        print(f"{name}: PCK@0.2 {scores[name, 0.2]:.2f}  PCK@0.1 {scores[name, 0.1]:.2f}\n  {joints_line}")
    drop = scores["onnx-fp32", 0.2] - scores["onnx-int8", 0.2]
    int8 = conversion.rows[1].agreement
    print(f"drop {drop:+.2f} points; agreement on {conversion.verified_on} other crops: mean OKS {int8.mean_oks:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
