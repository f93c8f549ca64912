"""What detection models take and answer: one row of data for each family of exports.

    row          meant for                                                    answer
    yolox        YOLOX, its own export, --decode_in_inference or not          (1, A, 5 + C)
    yolox-nms    YOLOX of MMDetection and MMPose, through MMDeploy            dets (1, N, 5), labels (1, N)
    rtmdet       RTMDet of MMDetection and MMPose, through MMDeploy           the same
    yolov5       YOLOv5, YOLOv6, YOLOv7 in one tensor                         (1, A, 5 + C)
    yolov8       Ultralytics YOLOv8, v9, 11, 12                               (1, 4 + C, A)
    end2end      YOLOv10, YOLO26, Ultralytics with nms=True                   (1, N, 6)
    torchvision  its Faster R-CNN, RetinaNet, FCOS, SSD by torch.onnx.export  boxes (N, 4), labels (N,), scores (N,)
    detr         DETR, YOLOS (facebookresearch, Hugging Face)                 logits (1, Q, C + 1), boxes (1, Q, 4)
    rtdetr       RT-DETR, D-FINE, DEIM: their own exports                     labels, boxes, scores: (1, Q, ...)
                 RT-DETR, D-FINE of Hugging Face                              logits (1, Q, C), boxes (1, Q, 4)
                 RT-DETR of Ultralytics                                       (1, Q, 4 + C)
    rfdetr       RF-DETR; by its name also Deformable and Conditional DETR    dets (1, Q, 4), labels (1, Q, C)

A is the number of grid cells (YOLOv5 and v7: three boxes in each), C of classes, N of detections, Q of queries. The
rows follow the exporters' code and documentation; **none of the published files was run here**, only synthetic graphs
of these shapes. A model of a known answer with another input (YOLOX before 0.1.1: RGB, ImageNet's mean and std) runs
with a row of one's own: ``dataclasses.replace(LAYOUTS["yolox"], preparation=...)``.

Not read: rows of seven, heads that are decoded outside of the graph (but YOLOX's), PaddleDetection's inputs, and the
boxes of TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["LAYOUTS", "Answer", "Layout", "Preparation", "fitting"]

Array = NDArray[Any]
Floats = NDArray[np.float32]
Detections = tuple[Floats, Floats]
"""Boxes (M, 4) x1, y1, x2, y2 in pixels of the model's input, and scores (M,) of the person class."""


@dataclass(frozen=True)
class Preparation:
    """How a frame becomes a model's input: (pixel - mean) / std, with pixels from 0 to 255.

    Attributes:
        fit: ``corner`` or ``centre``: scaled with its aspect ratio and padded, at the right and bottom or on all sides.
            ``stretch``: drawn to the input's size, a square where the model leaves it free. ``aspect``: the same, but
            of the frame's own aspect ratio where the model leaves the size free.
        rgb: Whether the channels are RGB, else BGR.
        mean, std: In the order of the channels. A model that takes uint8 gets the pixels as they are.
        pad: Value of the padding before normalisation.
    """

    fit: Literal["corner", "centre", "stretch", "aspect"]
    rgb: bool
    mean: tuple[float, float, float] = (0, 0, 0)
    std: tuple[float, float, float] = (255, 255, 255)
    pad: int = 114


@dataclass(frozen=True)
class Answer:
    """What a detector answered for one picture.

    Attributes:
        outputs: Arrays by name, with their batch axis, in the model's order; none of more than three axes.
        input_wh: Size of the picture that it was given.
        sized: Whether it was given that size as a second input.
        class_names: What its metadata call the classes, or nothing.
    """

    outputs: Mapping[str, Array]
    input_wh: tuple[int, int]
    sized: bool = False
    class_names: tuple[str, ...] = ()

    @property
    def table(self) -> Floats:
        """Rows and columns where the answer is one tensor of them, else (0, 0)."""
        arrays = list(self.outputs.values())
        one = len(arrays) == 1 and arrays[0].ndim == 3 and len(arrays[0]) == 1
        return arrays[0][0] if one else np.zeros((0, 0), np.float32)


Test = Callable[[Answer], bool]


def _always(answer: Answer) -> bool:
    return True


def _never(answer: Answer) -> bool:
    return False


@dataclass(frozen=True)
class Layout:
    """One row.

    Attributes:
        name: What ``--detector-layout`` calls it.
        preparation: Of the input.
        read: Detections of one class in an answer, or None where its shapes are not this layout's.
        nms: Whether detections of the same person are left to be merged.
        person: The person class, unless there are COCO's 91 (then it is 1) or the metadata name the classes.
        plausible: Whether the values of an answer can be this layout's.
        favours: Whether an answer speaks for this layout where others fit as well.
        marks: Parts of the names of parameters that files of this family have, and of those it is mistaken for not.
        classes: Number of classes in an answer that fits; None where it does not say.
    """

    name: str
    preparation: Preparation
    read: Callable[[Answer, int], Detections | None]
    nms: bool = False
    person: int = 0
    plausible: Test = _always
    favours: Test = _never
    marks: tuple[str, ...] = ()
    classes: Callable[[Answer], int | None] = lambda answer: None

    def fits(self, answer: Answer) -> bool:
        """Whether an answer can be of this layout."""
        return self.read(answer, 0) is not None and self.plausible(answer)


def fitting(answer: Answer, marks: Collection[str] = ()) -> list[Layout]:
    """The layouts that an answer can be of; those that it favours, or whose ``marks`` its file has, before others."""
    rows = [row for row in LAYOUTS.values() if row.fits(answer)]
    return [row for row in rows if row.favours(answer) or set(row.marks) & set(marks)] or rows


# One tensor of grid cells: YOLO

_P5 = (8, 16, 32)
_STRIDES = (_P5, (8, 16, 32, 64), (4, 8, 16, 32))


def _cells(answer: Answer, strides: tuple[int, ...] = _P5) -> int:
    width, height = answer.input_wh
    return sum(-(-width // stride) * -(-height // stride) for stride in strides)


def _has_cells(count: int, answer: Answer, boxes: int = 1) -> bool:
    return any(count == boxes * _cells(answer, strides) for strides in _STRIDES)


@lru_cache(maxsize=8)
def _grid(input_wh: tuple[int, int]) -> tuple[Floats, Floats]:
    """Column and row (A, 2) of every cell, and its stride (A, 1): one stride after the other, each row by row."""
    width, height = input_wh
    cells, strides = [], []
    for stride in _P5:
        rows, columns = np.mgrid[: -(-height // stride), : -(-width // stride)]
        cells.append(np.stack([columns.ravel(), rows.ravel()], axis=1))
        strides.append(np.full((rows.size, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)


def _is_raw(rows: Floats, answer: Answer) -> bool:
    """Whether centres, one for each cell, are offsets from their cells and not places in the picture.

    Places lie near their cells, even where there is nothing to see; offsets are small. Medians, so that no few count.
    """
    cells, strides = _grid(answer.input_wh)
    centres = rows[:, :2]
    return bool(np.median(np.abs(centres)) < np.median(np.abs(centres / strides - cells)))


def _probable(scores: Floats) -> bool:
    """Whether values can be probabilities. NaN can: it is refused where a frame's answer has it."""
    return not bool(((scores < -0.01) | (scores > 1.01)).any())


def _in_pixels(boxes: Floats) -> bool:
    """Whether boxes are in pixels and not in parts of the picture."""
    return bool((np.abs(boxes) > 2).any())


def _plausible(rows: Floats, first: int, answer: Answer) -> bool:
    """Whether the columns from ``first`` are scores: as many as have names, since pose and mask models have more."""
    last = first + len(answer.class_names) if answer.class_names else None
    return _in_pixels(rows[:, :4]) and _probable(rows[:, 4:last])


def _corners(boxes_cxcywh: Floats) -> Floats:
    centres, halves = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:4] / 2
    return np.concatenate([centres - halves, centres + halves], axis=1)


def _read_yolox(answer: Answer, person: int) -> Detections | None:
    """Raw rows are dx, dy from the cell and the logarithms of width and height, all in strides."""
    rows = answer.table
    if rows.shape[1] < 6 or len(rows) != _cells(answer):
        return None
    boxes = rows[:, :4]
    if _is_raw(rows, answer):
        cells, strides = _grid(answer.input_wh)
        boxes = np.concatenate([boxes[:, :2] + cells, np.exp(boxes[:, 2:])], axis=1) * strides
    return _corners(boxes), rows[:, 4] * rows[:, 5 + person]


def _read_yolov5(answer: Answer, person: int) -> Detections | None:
    """YOLOv6 has one box in a cell, the others three."""
    rows = answer.table
    if rows.shape[1] < 6:
        return None
    if not _has_cells(len(rows), answer, boxes=3) and (len(rows) != _cells(answer) or _is_raw(rows, answer)):
        return None
    return _corners(rows), rows[:, 4] * rows[:, 5 + person]


def _read_yolov8(answer: Answer, person: int) -> Detections | None:
    columns = answer.table
    if len(columns) < 5 or not _has_cells(columns.shape[1], answer):
        return None
    return _corners(columns[:4].T), columns[4 + person]


# Detections: NMS in the graph, or none needed


def _of_class(boxes: Floats, scores: Floats, labels: Array, person: int) -> Detections:
    people = np.rint(labels) == person
    return boxes[people], scores[people]


def _read_end2end(answer: Answer, person: int) -> Detections | None:
    """Rows x1, y1, x2, y2, score, class."""
    rows = answer.table
    if rows.shape[1] != 6 or _has_cells(len(rows), answer) or _has_cells(len(rows), answer, boxes=3):
        return None
    return _of_class(rows[:, :4], rows[:, 4], rows[:, 5], person)


def _read_mmdeploy(answer: Answer, person: int) -> Detections | None:
    """Rows x1, y1, x2, y2, score, and the labels apart."""
    dets = [array[0] for array in answer.outputs.values() if array.ndim == 3 and array.shape[2] == 5]
    labels = [array[0] for array in answer.outputs.values() if array.ndim == 2]
    if not len(dets) == len(labels) == 1 or len(answer.outputs) != 2 or len(dets[0]) != len(labels[0]):
        return None
    return _of_class(dets[0][:, :4], dets[0][:, 4], labels[0], person)


def _read_three(outputs: Mapping[str, Array], person: int) -> Detections | None:
    """Boxes (N, 4), scores (N,) and labels (N,) in any order, without a batch axis."""
    boxes = [array for array in outputs.values() if array.ndim == 2 and array.shape[1] == 4]
    labels = [name for name, array in outputs.items() if array.ndim == 1 and _is_label(name, array)]
    scores = [array for name, array in outputs.items() if array.ndim == 1 and name not in labels]
    if not len(boxes) == len(labels) == len(scores) == 1 or len(outputs) != 3:
        return None
    found = outputs[labels[0]]
    return _of_class(boxes[0], scores[0], found, person) if len(boxes[0]) == len(found) == len(scores[0]) else None


def _is_label(name: str, array: Array) -> bool:
    return array.dtype.kind in "iu" or "label" in name.lower()


# Queries: DETR and its kin

_COCO_91 = 91
"""COCO's own class numbers, with gaps: a person is 1. The 80 classes without gaps begin with 0."""


def _queries(answer: Answer) -> tuple[Floats, Floats] | None:
    """Boxes (Q, 4) as cx, cy, w, h in parts of the picture, and logits (Q, C); names tell where C is 4 as well."""
    arrays = {name: array[0] for name, array in answer.outputs.items() if array.ndim == 3 and len(array) == 1}
    boxes = [name for name, array in arrays.items() if array.shape[1] == 4]
    boxes = [name for name in boxes if "box" in name.lower() or name == "dets"] or boxes
    if len(arrays) != 2 or len(answer.outputs) != 2 or len(boxes) != 1:
        return None
    (logits,) = [array for name, array in arrays.items() if name not in boxes]
    return (arrays[boxes[0]], logits) if len(arrays[boxes[0]]) == len(logits) else None


def _logits(answer: Answer) -> int:
    queries = _queries(answer)
    return 0 if queries is None else queries[1].shape[1]


def _in_input(boxes: Floats, answer: Answer) -> Floats:
    return _corners(boxes) * np.array(answer.input_wh * 2, np.float32)


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float32)


def _read_detr(answer: Answer, person: int) -> Detections | None:
    """Softmax over the classes and, last, no object."""
    queries = _queries(answer)
    if queries is None or _logits(answer) < 2 or "dets" in answer.outputs:
        return None
    likely = np.exp(queries[1] - queries[1].max(axis=1, keepdims=True))
    return _in_input(queries[0], answer), likely[:, person] / likely.sum(axis=1)


def _read_rfdetr(answer: Answer, person: int) -> Detections | None:
    """A sigmoid for each class."""
    queries = _queries(answer)
    return None if queries is None else (_in_input(queries[0], answer), _sigmoid(queries[1][:, person]))


def _read_rtdetr(answer: Answer, person: int) -> Detections | None:
    if answer.sized:  # boxes come in pixels of the size that was given: the input's
        return _read_three({name: array[0] for name, array in answer.outputs.items() if array.ndim > 1}, person)
    rows = answer.table
    if not rows.shape[1]:
        return None if "dets" in answer.outputs else _read_rfdetr(answer, person)
    if rows.shape[1] < 5 or not len(rows) or _has_cells(len(rows), answer) or _has_cells(len(rows), answer, boxes=3):
        return None
    return _in_input(rows, answer), rows[:, 4 + person]


def _plausible_rtdetr(answer: Answer) -> bool:
    """A table is Ultralytics' by its class names or its 300 queries. Six columns can be ``end2end``'s as well."""
    rows = answer.table
    if not rows.shape[1]:
        return True
    named = len(answer.class_names) == rows.shape[1] - 4 if answer.class_names else len(rows) == 300 != rows.shape[1]
    told = named if rows.shape[1] != 6 else bool(answer.class_names) and named
    return told and not _in_pixels(rows[:, :4]) and _probable(rows[:, 4:])


def _classes_rtdetr(answer: Answer) -> int | None:
    return _logits(answer) or (answer.table.shape[1] - 4 if answer.table.shape[1] else None)


_ULTRALYTICS = Preparation("centre", rgb=True)
_MEGVII = Preparation("corner", rgb=False, std=(1, 1, 1))
_OPENMMLAB = Preparation("corner", rgb=False, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395))
_IMAGENET = Preparation("stretch", rgb=True, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))

_ROWS = (
    Layout(
        "yolox",
        _MEGVII,
        _read_yolox,
        nms=True,
        plausible=lambda answer: _probable(answer.table[:, 4:]),
        marks=("head.obj_preds",),
        classes=lambda answer: answer.table.shape[1] - 5,
    ),
    Layout("yolox-nms", _MEGVII, _read_mmdeploy, marks=("multi_level_conv_obj",)),
    Layout("rtmdet", _OPENMMLAB, _read_mmdeploy, marks=("rtm_cls",)),
    Layout(
        "yolov5",
        _ULTRALYTICS,
        _read_yolov5,
        nms=True,
        plausible=lambda answer: _plausible(answer.table, 5, answer),
        favours=lambda answer: bool(answer.class_names),
        marks=("detect.cls_preds",),
        classes=lambda answer: answer.table.shape[1] - 5,
    ),
    Layout(
        "yolov8",
        _ULTRALYTICS,
        _read_yolov8,
        nms=True,
        plausible=lambda answer: _plausible(answer.table.T, 4, answer),
        classes=lambda answer: len(answer.table) - 4,
    ),
    Layout("end2end", _ULTRALYTICS, _read_end2end),
    Layout("torchvision", Preparation("corner", rgb=True), lambda a, person: _read_three(a.outputs, person), person=1),
    Layout(
        "detr",
        replace(_IMAGENET, fit="aspect"),
        _read_detr,
        favours=lambda answer: _logits(answer) == _COCO_91 + 1,
        classes=lambda answer: _logits(answer) - 1,
    ),
    Layout(
        "rtdetr",
        Preparation("stretch", rgb=True),
        _read_rtdetr,
        plausible=_plausible_rtdetr,
        favours=lambda answer: _logits(answer) == 80,
        marks=("enc_score_head", "rtdetr"),
        classes=_classes_rtdetr,
    ),
    Layout(
        "rfdetr",
        _IMAGENET,
        _read_rfdetr,
        favours=lambda answer: "dets" in answer.outputs,
        classes=_logits,
    ),
)

LAYOUTS: Mapping[str, Layout] = MappingProxyType({row.name: row for row in _ROWS})
"""All layouts by name."""
