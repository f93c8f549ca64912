"""People's boxes from any detection model whose answers are of a known layout (``detector_layouts.py``).

frame ──▶ resize, pad, normalise ──▶ engine ──▶ layout ──▶ threshold ──▶ NMS ──▶ boxes in frame pixels
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.detector_layouts import LAYOUTS, Answer, Layout, Preparation, fitting
from edgepose.errors import EdgePoseError, EngineError
from edgepose.types import Engine, TensorSpec

__all__ = ["DEFAULT_SIZE", "OnnxDetector", "Placement", "place"]

Floats = NDArray[np.float32]

DEFAULT_SIZE = 640
"""Side of the input, where a model leaves it free."""

_MULTIPLE = 32  # the largest stride of the families: smaller steps break their feature pyramids
_MOST_CANDIDATES = 1000  # into NMS, whose time grows with the square; forty people leave some hundreds
_PERSON_NAMES = ("person", "people", "pedestrian", "human")
_CERTAIN = 1.01  # no probability is larger, whatever the precision


@dataclass(frozen=True)
class Placement:
    """Where a frame lies in a model's input, and the way back.

    Both are measured in *edges*: a picture of width w reaches from 0 to w, and its first pixel from 0 to 1. That is how
    detectors count, and how ``cv2.resize`` maps, so that sizes alone convert one into the other. It is also what
    edgepose's *boxes* mean (``geometry.regions_from_boxes`` puts the centre of x, w at x + (w - 1) / 2): only its
    points are pixel centres, half a pixel less, and no box is shifted here.

    Attributes:
        frame_wh: Size of the frame.
        inner_wh: Size of the frame inside the input.
        offset_xy: Left and upper padding.
        input_wh: Size of the input.
    """

    frame_wh: tuple[int, int]
    inner_wh: tuple[int, int]
    offset_xy: tuple[int, int]
    input_wh: tuple[int, int]

    def to_frame(self, boxes_xyxy: NDArray[Any]) -> NDArray[np.float64]:
        """Boxes (N, 4) of the input in frame pixels; each axis has its own scale, since the inner size is whole."""
        scale = np.divide(self.frame_wh, self.inner_wh)
        return np.asarray((boxes_xyxy - np.tile(self.offset_xy, 2)) * np.tile(scale, 2), dtype=np.float64)

    def apply(self, frame: NDArray[Any], pad: int) -> NDArray[Any]:
        """The input (H, W, 3) of a frame (h, w, 3), in its dtype and colour order."""
        (width, height), (left, top) = self.input_wh, self.offset_xy
        inner = cv2.resize(frame, self.inner_wh, interpolation=cv2.INTER_LINEAR)
        if self.inner_wh == self.input_wh:
            return inner
        right, bottom = width - left - self.inner_wh[0], height - top - self.inner_wh[1]
        return cv2.copyMakeBorder(inner, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(pad, pad, pad))


def place(frame_wh: tuple[int, int], input_wh: tuple[int, int], fit: str) -> Placement:
    """Lay a frame into an input; ``fit`` is one of :class:`edgepose.detector_layouts.Preparation`."""
    if fit in ("stretch", "aspect"):
        return Placement(frame_wh, input_wh, (0, 0), input_wh)
    scale = min(input_wh[0] / frame_wh[0], input_wh[1] / frame_wh[1])
    inner = max(1, round(frame_wh[0] * scale)), max(1, round(frame_wh[1] * scale))
    spare = input_wh[0] - inner[0], input_wh[1] - inner[1]
    return Placement(frame_wh, inner, (0, 0) if fit == "corner" else (spare[0] // 2, spare[1] // 2), input_wh)


class OnnxDetector:
    """A person detector: an engine and the layout of its answers. Calls from several threads do not disturb each other.

    Attributes:
        engine: The loaded model.
        layout: Its row.
        person_class: Which of its classes is a person.
    """

    def __init__(
        self,
        engine: Engine,
        layout: str | Layout | None = None,
        *,
        score_threshold: float = 0.4,
        iou_threshold: float = 0.65,
        most: int = 100,
        size: int | None = None,
        person_class: int | None = None,
        marks: Collection[str] = (),
        name: str = "detector",
    ) -> None:
        """Run the model once on a grey picture, and find out what its answers mean.

        Args:
            engine: An opened model with one picture as its input, in batches of one.
            layout: Its layout, by name or as a row, or None to find it from the answer.
            score_threshold: Boxes that score less are dropped.
            iou_threshold: Of two boxes that overlap more, the better one stays (where NMS is not in the graph).
            most: Boxes of a frame at most, the best.
            size: Longer side of the input where the model leaves it free, a multiple of 32; 640 by default.
            person_class: Number of the person class; by default what the metadata say, 1 for COCO's 91 classes, else 0.
            marks: Which of the layouts' marks the model's file has; they decide between layouts of the same shapes.
            name: What errors call the model.

        Raises:
            EdgePoseError: A number is out of its range.
            EngineError: The model fails, or is no detector of a known layout, or of several.
        """
        _check_numbers(score_threshold, iou_threshold, most, size, person_class)
        self.engine = engine
        self.name = name
        self._threshold = score_threshold
        self._iou = iou_threshold
        self._most = most
        self._picture, self._extras = _inputs(engine, name)
        if size is not None and self._picture.width and self._picture.height:
            fixed = f"{self._picture.width}x{self._picture.height}"
            raise EngineError(f"{name}: its input is fixed at {fixed}: leave the size out")
        self._size = size or DEFAULT_SIZE
        self._class_names = _class_names(engine.metadata)
        probe = self._probe()
        self.layout = _find_layout(layout, probe, marks, engine, name)
        self.person_class = _person_class(self.layout, probe, person_class, name)
        self._values = _value_table(self.layout.preparation, self._picture.dtype)

    def detect(self, frame_bgr: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """People in one frame.

        Args:
            frame_bgr: (h, w, 3) uint8, BGR as OpenCV reads it.

        Returns:
            Boxes (N, 4) x1, y1, x2, y2 in frame pixels (edges, as ``Estimator.estimate`` takes them), inside the frame
            and not empty, and their scores (N,); both float32, best first.

        Raises:
            EdgePoseError: The frame has another shape or dtype.
            EngineError: The engine failed, or answered with NaN, infinity or no probabilities.
        """
        _check_frame(frame_bgr)
        preparation = self.layout.preparation
        frame_wh = frame_bgr.shape[1], frame_bgr.shape[0]
        placed = place(frame_wh, self.input_wh(frame_wh), preparation.fit)
        answer = self._answer(placed.apply(frame_bgr, preparation.pad), self._values, preparation.rgb)
        with np.errstate(all="ignore"):  # what comes out of it is checked
            found = self.layout.read(answer, self.person_class)
        if found is None:
            raise EngineError(f"{self.name}: answered with {_shapes(answer)}, and not as {self.layout.name} any more")
        boxes, scores = self._best(*found)
        boxes = np.clip(placed.to_frame(boxes), 0, np.tile(frame_wh, 2)).astype(np.float32)
        whole = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return boxes[whole][: self._most], scores[whole][: self._most]

    def input_wh(self, frame_wh: tuple[int, int]) -> tuple[int, int]:
        """Size of the input for frames of a size: the model's own, or no more padding than the strides need."""
        width, height = self._picture.width, self._picture.height
        if self.layout.preparation.fit == "stretch":
            return width or self._size, height or self._size
        longer = max(frame_wh)
        rounded = round if self.layout.preparation.fit == "aspect" else _ceil
        sides = [max(1, rounded(side * self._size / longer / _MULTIPLE)) * _MULTIPLE for side in frame_wh]
        return width or sides[0], height or sides[1]

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def _probe(self) -> Answer:
        """The answer for a picture of nothing, prepared somehow: shapes and ranges are all that is asked of it."""
        somehow = Preparation("stretch", rgb=True)
        shape = self._picture.height or self._size, self._picture.width or self._size, 3
        values = _value_table(somehow, self._picture.dtype)
        return self._answer(np.full(shape, somehow.pad, np.uint8), values, somehow.rgb)

    def _answer(self, image_bgr: NDArray[np.uint8], values: NDArray[Any], rgb: bool) -> Answer:
        wh = image_bgr.shape[1], image_bgr.shape[0]
        feeds = {self._picture.name: self._picture.tensor(image_bgr, values, rgb)}
        feeds |= {spec.name: _extra(spec, wh) for spec in self._extras}
        outputs = {
            name: array.astype(np.float32) if array.dtype.kind == "f" else array
            for name, array in self.engine.run(feeds).items()
            if isinstance(array, np.ndarray) and array.ndim <= 3  # masks and feature maps have four and five
        }
        sized = any(_is_size(spec) for spec in self._extras)
        return Answer(outputs, wh, sized, self._class_names)

    def _best(self, boxes: Floats, scores: Floats) -> tuple[Floats, Floats]:
        """Those above the threshold, best first, without double ones."""
        above = np.flatnonzero(scores >= self._threshold)
        if np.isnan(scores).any() or not np.isfinite(boxes[above]).all():
            raise EngineError(
                f"{self.name}: {self.engine.name} on {self.engine.device} answered with NaN or infinity: "
                "try another device or an FP32 model"
            )
        if scores.max(initial=0) > _CERTAIN:
            raise EngineError(
                f"{self.name}: scores reach {scores.max():.3g}, which are no probabilities: "
                f"its layout is not {self.layout.name}, try another --detector-layout"
            )
        order = above[np.argsort(-scores[above], kind="stable")]
        boxes, scores = boxes[order], scores[order]
        if self.layout.nms:
            boxes, scores = boxes[:_MOST_CANDIDATES], scores[:_MOST_CANDIDATES]
            kept = _suppressed(boxes, scores, self._iou)
            boxes, scores = boxes[kept], scores[kept]
        return boxes, scores


def _describe(specs: Sequence[TensorSpec]) -> str:
    """Names, dtypes and shapes of tensors, for people: ``images float32 (1, 3, ?, ?)``."""
    sides = [", ".join("?" if side is None else str(side) for side in spec.shape) for spec in specs]
    return "; ".join(f"{spec.name} {spec.dtype} ({shape})" for spec, shape in zip(specs, sides, strict=True))


# The input


@dataclass(frozen=True)
class _Picture:
    """The input that takes the picture; a side is None where it is free."""

    name: str
    dtype: str
    height: int | None
    width: int | None
    channels_first: bool
    batched: bool

    def tensor(self, image_bgr: NDArray[np.uint8], values: NDArray[Any], rgb: bool) -> NDArray[Any]:
        """The picture as the model wants it; ``values`` (3, 256) has what each pixel value becomes, by channel."""
        tensor: NDArray[Any] = np.empty((3, *image_bgr.shape[:2]), values.dtype)
        planes = cv2.split(image_bgr)[:: -1 if rgb else 1]
        for channel, plane, row in zip(tensor, planes, values, strict=True):
            cv2.LUT(plane, row, dst=channel)
        if not self.channels_first:
            tensor = np.ascontiguousarray(tensor.transpose(1, 2, 0))
        return tensor[None] if self.batched else tensor


def _inputs(engine: Engine, name: str) -> tuple[_Picture, tuple[TensorSpec, ...]]:
    """The picture, and what else the model asks for.

    Raises:
        EngineError: There is no picture, more than one, a batch of several, or something unknown.
    """
    pictures = [(spec, found) for spec in engine.inputs if (found := _as_picture(spec)) is not None]
    extras = tuple(spec for spec in engine.inputs if spec not in [picture for picture, _ in pictures])
    if len(pictures) != 1 or not all(_is_size(spec) or _is_mask(spec) for spec in extras):
        raise EngineError(_unknown(engine, name))
    spec, picture = pictures[0]
    if picture.batched and spec.shape[0] not in (1, None):
        raise EngineError(
            f"{name}: takes batches of {spec.shape[0]} ({_describe([spec])}): export it with batch size 1"
        )
    return picture, extras


def _as_picture(spec: TensorSpec) -> _Picture | None:
    if spec.dtype not in ("uint8", "float32", "float16") or len(spec.shape) not in (3, 4):
        return None
    first, middle, last = spec.shape[-3:]
    batched = len(spec.shape) == 4
    if last == 3 and first != 3:
        return _Picture(spec.name, spec.dtype, first, middle, channels_first=False, batched=batched)
    if first in (3, None):
        return _Picture(spec.name, spec.dtype, middle, last, channels_first=True, batched=batched)
    return None


def _is_size(spec: TensorSpec) -> bool:
    """``orig_target_sizes`` of RT-DETR and its kin: (1, 2) width, height."""
    return spec.dtype in ("int64", "int32") and len(spec.shape) == 2 and spec.shape[1] in (2, None)


def _is_mask(spec: TensorSpec) -> bool:
    """``pixel_mask`` of DETR: 1 wherever there is a picture, which is everywhere."""
    return spec.dtype in ("int64", "int32", "bool") and len(spec.shape) == 3


def _extra(spec: TensorSpec, input_wh: tuple[int, int]) -> NDArray[Any]:
    if _is_size(spec):
        return np.array([input_wh], spec.dtype)
    free = (1, input_wh[1], input_wh[0])
    return np.ones([own or side for own, side in zip(spec.shape, free, strict=True)], spec.dtype)


def _value_table(preparation: Preparation, dtype: str) -> NDArray[Any]:
    """What each of the 256 pixel values becomes, by channel (3, 256); a uint8 input normalises in its graph."""
    pixels = np.tile(np.arange(256.0), (3, 1))
    if dtype == "uint8":
        return pixels.astype(np.uint8)
    mean, std = np.array(preparation.mean)[:, None], np.array(preparation.std)[:, None]
    return np.asarray((pixels - mean) / std, dtype=dtype)


def _ceil(value: float) -> int:
    return int(np.ceil(value - 1e-9))  # 480 / 640 * 640 must not become the next multiple


# What the answers mean


def _find_layout(
    given: str | Layout | None, probe: Answer, marks: Collection[str], engine: Engine, name: str
) -> Layout:
    if isinstance(given, str) and given not in LAYOUTS:
        raise EngineError(f"unknown detector layout {given!r}; known: {', '.join(LAYOUTS)}")
    with np.errstate(all="ignore"):
        if given is not None:
            row = given if isinstance(given, Layout) else LAYOUTS[given]
            found = row.read(probe, 0)
            rows = [] if found is None or (found[1] > _CERTAIN).any() else [row]
        else:
            rows = fitting(probe, marks)
    if len(rows) > 1:
        raise EngineError(
            f"{name}: its outputs ({_describe(engine.outputs)}) can be those of {', '.join(row.name for row in rows)}: "
            "say which with --detector-layout"
        )
    if not rows and given is not None:
        raise EngineError(
            f"{name}: its outputs ({_describe(engine.outputs)}; for a grey picture {_shapes(probe)}) are not those of "
            f"the layout {row.name}: give another --detector-layout, or none"
        )
    if not rows:
        raise EngineError(_unknown(engine, name))
    return rows[0]


def _unknown(engine: Engine, name: str) -> str:
    return (
        f"{name}: no person detector of a known layout (inputs {_describe(engine.inputs)}; outputs "
        f"{_describe(engine.outputs)}): if it is one, name its layout with --detector-layout ({', '.join(LAYOUTS)})"
    )


def _shapes(answer: Answer) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in answer.outputs.items())


def _person_class(layout: Layout, probe: Answer, given: int | None, name: str) -> int:
    classes, names = layout.classes(probe), probe.class_names
    if given is not None:
        if classes is not None and given >= classes:
            raise EngineError(
                f"{name}: has {classes} classes, numbered from 0, and person class {given} is none of them"
            )
        return given
    if len(names) > 1:
        people = [index for index, text in enumerate(names) if text.strip().lower() in _PERSON_NAMES]
        if not people:
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise EngineError(f"{name}: none of its classes is a person ({shown}): give the number of its person class")
        return people[0]
    return 1 if classes == 91 else layout.person if classes is None or classes > layout.person else 0


def _class_names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The classes by number, as YOLOv5 and Ultralytics write them: a Python dictionary, or a list, under ``names``."""
    try:
        names = ast.literal_eval(metadata.get("names", "()"))
        return tuple(str(names[index]) for index in range(len(names)))
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
        return ()


def _suppressed(boxes: Floats, scores: Floats, iou_threshold: float) -> NDArray[np.intp]:
    """Indices of the boxes that stay, best first."""
    if not len(boxes):
        return np.zeros(0, np.intp)
    boxes_xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
    kept = cv2.dnn.NMSBoxes(boxes_xywh, scores, 0.0, iou_threshold)  # type: ignore[arg-type]  # its stubs know lists only
    return np.asarray(kept, dtype=np.intp)


# Checks of what the caller gives


def _check_numbers(score: float, iou: float, most: int, size: int | None, person_class: int | None) -> None:
    if not (0 <= score <= 1 and 0 <= iou <= 1):
        raise EdgePoseError(f"detector thresholds: expected numbers from 0 to 1, got score {score} and IoU {iou}")
    if most < 1:
        raise EdgePoseError(f"detector: at least one box of a frame must be kept, got {most}")
    if size is not None and (size % _MULTIPLE or not _MULTIPLE <= size <= 4096):
        raise EdgePoseError(f"detector size: expected a multiple of {_MULTIPLE} from {_MULTIPLE} to 4096, got {size}")
    if person_class is not None and person_class < 0:
        raise EdgePoseError(f"detector: classes are numbered from 0, got person class {person_class}")


def _check_frame(frame: NDArray[np.uint8]) -> None:
    array = isinstance(frame, np.ndarray)
    if not array or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        got = f"{frame.dtype} {frame.shape}" if array else type(frame).__name__
        raise EdgePoseError(f"frame: expected a uint8 array (h, w, 3) in BGR order, got {got}")
