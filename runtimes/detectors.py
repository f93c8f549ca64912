"""Person detectors from model files. They need no edgepose specification: their answers tell what they are."""

from __future__ import annotations

import mmap
from pathlib import Path

from edgepose.detector import OnnxDetector
from edgepose.detector_layouts import LAYOUTS, Layout
from edgepose.errors import BundleError, EdgePoseError
from edgepose.runtimes.registry import open_engine
from edgepose.types import SPEC_KEY

__all__ = ["load_detector"]


def load_detector(
    path: str | Path,
    layout: str | Layout | None = None,
    engine: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    *,
    score_threshold: float = 0.4,
    iou_threshold: float = 0.65,
    most: int = 100,
    size: int | None = None,
    person_class: int | None = None,
) -> OnnxDetector:
    """Open a detection model.

    Args:
        path: An ``.onnx`` file, or another that an engine runs.
        layout: One of ``edgepose.detector_layouts.LAYOUTS``, or None to find it.
        engine: Engine name; by default the first that runs the file.
        device: ``auto``, or a device of the engine.
        threads: Threads of one inference; by default the engine's choice.
        score_threshold: See :class:`edgepose.detector.OnnxDetector`, as for all that follow.
        iou_threshold: Of NMS.
        most: Boxes of a frame at most.
        size: Longer side of a free input.
        person_class: Number of the person class.

    Raises:
        BundleError: There is no such file, or it is a model that edgepose made.
        EdgePoseError: A number is out of its range.
        EngineUnavailable: The engine or the device is not on this machine.
        EngineError: The file cannot be loaded, or is no detector of a known layout.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder, and a detector is one model file" if path.is_dir() else "no such detector file"
        raise BundleError(f"{path}: {what}")
    opened = open_engine(path, engine, device, threads)
    try:
        if SPEC_KEY in opened.metadata:
            raise BundleError(
                f"{path}: is a model that edgepose made, for poses and not for boxes: give a person detector"
            )
        return OnnxDetector(
            opened,
            layout,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            most=most,
            size=size,
            person_class=person_class,
            marks=_marks_in(path),
            name=str(path),
        )
    except EdgePoseError:
        opened.close()
        raise


def _marks_in(path: Path) -> set[str]:
    """The layouts' marks that a file has: exporters keep the names of modules in those of nodes and weights."""
    marks = {mark for row in LAYOUTS.values() for mark in row.marks}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return {mark for mark in marks if content.find(mark.encode()) >= 0}
