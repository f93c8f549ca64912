"""What the emulated board answers, judged against this machine's answers for the same file and pictures."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from arm_bed import Bed
from numpy.typing import NDArray

from edgepose.bundle import Bundle, parse_variant
from edgepose.geometry import regions_from_boxes, xyxy_to_xywh
from edgepose.pipeline import Estimator
from edgepose.preprocess import crop
from edgepose.runtimes.load import load
from edgepose.similarity import oks
from edgepose.types import Poses

__all__ = ["Answer", "Cell", "Row", "Scene", "judge", "run_cell", "table"]

MAX_ERROR = 1e-4
"""FP32: largest difference of heatmaps for the same crops, in units of their largest value. Sums differ in order."""
MIN_OKS = 0.99
"""Every precision: mean similarity of the poses. Kernels round 8-bit sums each in their own way."""
MAX_GREY = 1
"""OpenCV rounds bilinear weights on ARM otherwise than on x86."""
_CELL_S = 300

KNOWN = {
    # OpenVINO 2026.4 has no INT8 without dot products, where 2025.2 had: an error at load, no wrong pose.
    ("openvino", "openvino-int8", "cortex-a72"): "openvino cannot compile it for cpu (object is not initialized)",
    # What a processor that computes wrongly looks like: OpenVINO uses an SME that qemu 7.2 does not get right.
    ("openvino", "openvino-fp32", "max"): "self-test failed on openvino cpu",
    ("openvino", "openvino-int8", "max"): "self-test failed on openvino cpu",
}
"""What is known not to work, and how it says so, by library, variant and CPU model."""


class Cell(NamedTuple):
    """One process on the emulated board: it runs every variant of one format."""

    bed: str
    library: str
    cpu: str


@dataclass(frozen=True)
class Scene:
    """The pictures: frames (F, h, w, 3) uint8 BGR, each with the box of one person (F, 4) x1, y1, x2, y2."""

    frames: NDArray[np.uint8]
    boxes_xyxy: NDArray[np.float32]

    def save(self, path: Path) -> Path:
        """As a file that the board reads."""
        np.savez(path, frames=self.frames, boxes=self.boxes_xyxy)
        return path


@dataclass(frozen=True)
class Answer:
    """All that one variant answered on the board.

    Attributes:
        crops: (N, H, W, 3) uint8, those of the self-test first, then one of each frame.
        heatmaps: (N, K, h, w) for these crops.
        keypoints_xy: (F, K, 2) pixels of the frames.
        scores: (F, K).
        seconds: Load, self-test and all frames.
    """

    crops: NDArray[np.uint8]
    heatmaps: NDArray[np.float32]
    keypoints_xy: NDArray[np.float32]
    scores: NDArray[np.float32]
    seconds: float


@dataclass(frozen=True)
class Row:
    """One line of the table; ``problem`` is empty where it passed."""

    library: str
    variant: str
    cpu: str
    problem: str
    max_error: float = float("nan")
    oks: float = float("nan")
    mean_shift_px: float = float("nan")
    max_shift_px: float = float("nan")
    seconds: float = float("nan")

    @property
    def verdict(self) -> str:
        """``pass``, or it starts with ``known`` or ``FAIL``."""
        known = KNOWN.get((self.library, self.variant, self.cpu))
        if known is None:
            return f"FAIL: {self.problem}" if self.problem else "pass"
        return (
            f"known: {known}"
            if known in self.problem
            else f"FAIL: expected {known!r}, got {self.problem or 'a pass'!r}"
        )


def run_cell(cell: Cell, bed: Bed, bundle: Path, scene: Path, out: Path) -> dict[str, Answer | str]:
    """Run every variant of the library's format there; the answer, or what went wrong, by variant."""
    format_ = bed.row.libraries[cell.library][0]
    variants = [row.name for row in Bundle.open(bundle).variants if parse_variant(row.name)[0] == format_]
    out.mkdir(parents=True)
    answers: dict[str, Answer | str] = {}
    while left := [name for name in variants if name not in answers]:  # a crash costs one variant, not the others
        ending = _run(cell, bed, [bundle, scene, out, *left])
        for name in left:
            answer = _read(out / name)
            answers[name] = answer or ending
            if answer is None:
                break
    return answers


def _run(cell: Cell, bed: Bed, arguments: Sequence[str | Path]) -> str:
    """One process on the board; how it ended."""
    try:
        done = bed.run(cell.library, cell.cpu, [Path(__file__).parent / "arm_device.py", *arguments], _CELL_S)
    except subprocess.TimeoutExpired:
        return f"not done within {_CELL_S} s"
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [""]
    return f"exit code {done.returncode}: {lines[-1]}"


def _read(path: Path) -> Answer | str | None:
    answer, error = (path.with_name(path.name + suffix) for suffix in (".npz", ".json"))
    if error.is_file():
        return str(json.loads(error.read_text()))
    if not answer.is_file():
        return None
    with np.load(answer) as data:
        return Answer(**{key: data[key] for key in data.files if key != "seconds"}, seconds=float(data["seconds"]))


def judge(cell: Cell, bundle: Path, scene: Scene, answers: dict[str, Answer | str]) -> list[Row]:
    """Compare with what this machine answers."""
    rows = []
    for variant, answer in answers.items():
        if isinstance(answer, str):
            rows.append(Row(cell.library, variant, cell.cpu, answer))
            continue
        estimator = load(bundle, variant=variant, threads=1)
        rows.append(compare(cell, variant, estimator, scene, answer))
        estimator.close()
    return rows


def compare(cell: Cell, variant: str, here: Estimator, scene: Scene, there: Answer) -> Row:
    """Heatmaps for the board's own crops, and poses for the same frames."""
    heatmaps = here.heatmaps(there.crops)
    error = float(np.abs(there.heatmaps - heatmaps).max() / np.abs(heatmaps).max())
    poses = [here.estimate(frame, box[None]) for frame, box in zip(scene.frames, scene.boxes_xyxy, strict=True)]
    similarity, shift = _agreement(poses, there.keypoints_xy, here)
    problems = [
        f"heatmaps are {error:.1e} off, more than {MAX_ERROR:.0e}"
        if parse_variant(variant)[1] == "fp32" and not error <= MAX_ERROR
        else "",
        f"poses agree by OKS {similarity:.4f}, less than {MIN_OKS}" if not similarity >= MIN_OKS else "",
        _crops_problem(here, scene, there),
    ]
    return Row(
        cell.library,
        variant,
        cell.cpu,
        "; ".join(filter(None, problems)),
        error,
        similarity,
        float(shift.mean()),
        float(shift.max()),
        there.seconds,
    )


def _agreement(poses: Sequence[Poses], keypoints_xy: NDArray[np.float32], here: Estimator) -> tuple[float, np.ndarray]:
    """Mean OKS and each shift in frame pixels, of the joints that this machine finds."""
    truth, scores = np.concatenate([p.keypoints_xy for p in poses]), np.concatenate([p.scores for p in poses])
    sides = np.concatenate([p.boxes_xyxy[:, 2:] - p.boxes_xyxy[:, :2] for p in poses])
    found = scores >= here.spec.score_threshold
    similarity = oks(truth, keypoints_xy, sides.prod(axis=1), here.spec.joints.sigmas)
    return float(similarity[found].mean()), np.linalg.norm(truth - keypoints_xy, axis=-1)[found]


def _crops_problem(here: Estimator, scene: Scene, there: Answer) -> str:
    """Whether the board cut the same crops, up to rounding."""
    crops = []
    for frame, box in zip(scene.frames, scene.boxes_xyxy, strict=True):
        region = regions_from_boxes(xyxy_to_xywh(box[None]), here.spec.aspect, here.spec.crop_padding)
        crops.append(crop(frame, region, here.spec.input_wh))
    off = int(np.abs(np.concatenate(crops).astype(int) - there.crops[-len(scene.frames) :]).max())
    return f"crops are {off} grey levels off, more than {MAX_GREY}" if off > MAX_GREY else ""


def table(rows: Iterable[Row]) -> list[str]:
    """The lines to print."""
    figures = f"{'max error':>9} {'OKS':>7} {'shift px':>8} {'max px':>7} {'s':>6}"
    lines = [f"{'library':<15} {'variant':<17} {'cpu':<12} {figures}"]
    for row in rows:
        figures = (
            f"{row.max_error:9.1e} {row.oks:7.4f} {row.mean_shift_px:8.3f} {row.max_shift_px:7.3f} {row.seconds:6.1f}"
        )
        lines.append(f"{row.library:<15} {row.variant:<17} {row.cpu:<12} {figures}  {row.verdict}")
    return lines
