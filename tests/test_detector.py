"""People from detection models of every layout: tiny ONNX graphs whose answers are known, against boxes by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepose import BundleError, EdgePoseError, EngineError
from edgepose.detector import OnnxDetector, place
from edgepose.detector_layouts import LAYOUTS
from edgepose.runtimes.detectors import load_detector
from edgepose.types import TensorSpec

INPUT_WH = (160, 128)
FRAMES_WH = {"landscape": (640, 360), "portrait": (270, 480), "square": (300, 300)}
CELLS = [(x, y, s) for s in (8, 16, 32) for y in range(128 // s) for x in range(160 // s)]

# In parts of the frame: two people of whom each reaches out of it, one inside, one whom the detector hardly believes,
# and one beyond the frame.
PEOPLE = np.array(
    [
        [0.75, 0.5, 1.2, 1.3],
        [-0.1, -0.2, 0.3, 0.7],
        [0.5, 0.1, 0.7, 0.95],
        [0.35, 0.3, 0.45, 0.6],
        [1.1, 0.1, 1.3, 0.4],
    ]
)
SCORES = np.array([0.5, 0.9, 0.8, 0.3, 0.7])
BEST = [1, 2, 0]
DECOY = np.array([20.0, 20, 60, 60])  # another class, of which the model is sure


# Answers, written as each family writes them: boxes are x1, y1, x2, y2 in pixels of the input


def cxcywh(box):
    return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]]


def cell_rows(boxes, scores, objectness, repeat=1):
    """A row for each cell, ten pixels of nothing around its place; people and their doubles in some of them."""
    rows = [[(x + 0.5) * s, (y + 0.5) * s, 10, 10] + [0.01] * (3 + objectness) for x, y, s in CELLS * repeat]
    found = [(box, (score, 0.02, 0.03)) for box, score in zip(boxes, scores, strict=True)]
    found += [(box + 1, (score * 0.7, 0.02, 0.03)) for box, score in zip(boxes, scores, strict=True)]
    found += [(DECOY, (0.01, 0.94, 0.02))]
    for number, (box, classes) in enumerate(found):
        sure = [0.95] if objectness else []
        rows[7 + 31 * number] = [*cxcywh(box), *sure, *np.divide(classes, *sure or [1])]
    return np.array(rows, np.float32)


def yolox_raw(boxes, scores):
    rows = cell_rows(boxes, scores, objectness=1)
    for row, (x, y, s) in zip(rows, CELLS, strict=True):
        row[:4] = row[0] / s - x, row[1] / s - y, np.log(row[2] / s), np.log(row[3] / s)
    return {"output": rows[None]}


def detections(boxes, scores, classes):
    """Rows x1, y1, x2, y2, score, class, with the decoy first."""
    rows = [[*box, score, classes[0]] for box, score in zip(boxes, scores, strict=True)]
    return np.array([[*DECOY, 0.99, classes[1]], *rows, [0, 0, 0, 0, 0, 0]], np.float32)


def mmdeploy(boxes, scores):
    rows = detections(boxes, scores, (0, 1))
    return {"dets": rows[None, :, :5], "labels": rows[None, :, 5].astype(np.int64)}


def three(boxes, scores, classes, batch):
    rows = detections(boxes, scores, classes)[(None,) if batch else ()]
    labels = rows[..., 5].astype(np.int64)
    if batch:
        return {"labels": labels, "boxes": rows[..., :4], "scores": rows[..., 4]}
    return {"3076": rows[..., :4], "3079": labels, "3077": rows[..., 4]}


def queries(boxes, scores, person=0, count=5, other=2):
    """Normalised boxes and the probability of each class in 12 queries."""
    normalised = [np.array(cxcywh(box)) / (*INPUT_WH, *INPUT_WH) for box in [*boxes, DECOY]]
    normalised += [np.array([0.5, 0.5, 0.1, 0.1])] * (12 - len(normalised))
    likely = np.full((12, count), 0.001)
    likely[: len(boxes), person] = scores
    likely[len(boxes), other] = 0.9
    return np.array(normalised, np.float32)[None], likely[None]


def logit(likely):
    return np.log(likely / (1 - likely)).astype(np.float32)


def detr(boxes, scores):
    normalised, likely = queries(boxes, scores, person=1, count=92)
    likely[..., -1] = 0
    likely[..., -1] = 1 - likely.sum(axis=-1)  # no object
    likely = np.maximum(likely, 1e-6)
    return {"logits": np.log(likely).astype(np.float32) + 3, "pred_boxes": normalised}


def sigmoid_queries(boxes, scores, count, names=("logits", "pred_boxes"), person=0):
    normalised, likely = queries(boxes, scores, person=person, count=count)
    return {names[0]: logit(likely), names[1]: normalised}


def query_table(boxes, scores):
    normalised, likely = queries(boxes, scores, count=3, other=1)
    return {"output0": np.concatenate([normalised, likely], axis=2).astype(np.float32)}


NAMES = {"names": "{0: 'person', 1: 'bicycle', 2: 'car'}", "stride": "32"}


@dataclass(frozen=True)
class Case:
    """A kind of export: which layout it is, how frames lie in its input, what it answers and what its file says."""

    layout: str
    fit: str
    encode: Callable
    metadata: dict = field(default_factory=dict)
    parameter: str = ""
    sized: bool = False


CASES = {
    "yolox raw": Case("yolox", "corner", yolox_raw),
    "yolox decoded": Case(
        "yolox",
        "corner",
        lambda b, s: {"output": cell_rows(b, s, objectness=1)[None]},
        parameter="head.obj_preds.0.weight",
    ),
    "yolox through mmdeploy": Case("yolox-nms", "corner", mmdeploy, parameter="bbox_head.multi_level_conv_obj.0.bias"),
    "rtmdet": Case("rtmdet", "corner", mmdeploy, parameter="bbox_head.rtm_cls.0.bias"),
    "yolov5": Case("yolov5", "centre", lambda b, s: {"output0": cell_rows(b, s, 1, repeat=3)[None]}),
    "yolov6": Case(
        "yolov5",
        "centre",
        lambda b, s: {"outputs": cell_rows(b, s, 1)[None]},
        parameter="detect.cls_preds.0.weight",
    ),
    "yolov5u with names": Case("yolov5", "centre", lambda b, s: {"output0": cell_rows(b, s, 1)[None]}, metadata=NAMES),
    "yolov8": Case("yolov8", "centre", lambda b, s: {"output0": cell_rows(b, s, 0).T[None]}),
    "yolo11 pose": Case(
        "yolov8",
        "centre",
        lambda b, s: {"output0": np.insert(cell_rows(b, s, 0)[:, :5], [5] * 6, 77, axis=1).T[None]},
        metadata={"names": "{0: 'person'}", "task": "pose"},
    ),
    "yolov10": Case("end2end", "centre", lambda b, s: {"output0": detections(b, s, (0, 2))[None]}, metadata=NAMES),
    "torchvision": Case("torchvision", "corner", lambda b, s: three(b, s, (1, 2), batch=False)),
    "detr": Case("detr", "stretch", detr),
    "rt-detr": Case("rtdetr", "stretch", lambda b, s: three(b, s, (0, 1), batch=True), sized=True),
    "rt-detr of hugging face": Case("rtdetr", "stretch", lambda b, s: sigmoid_queries(b, s, 80)),
    "rt-detr of ultralytics": Case("rtdetr", "stretch", query_table, metadata=NAMES),
    "rf-detr": Case("rfdetr", "stretch", lambda b, s: sigmoid_queries(b, s, 91, ("labels", "dets"), person=1)),
    "rf-detr of three classes": Case("rfdetr", "stretch", lambda b, s: sigmoid_queries(b, s, 4, ("labels", "dets"))),
}


# Files


def write_model(path, answers, *, shape=(1, 3, 128, 160), dtype=np.float32, metadata=None, parameter="", sized=False):
    """A graph with these answers, to which nothing of its inputs is added."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [helper.make_tensor_value_info("images", kind, shape)]
    nodes = [
        helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["cast"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", parameter or "nothing"], ["none"]),
    ]
    weights = [numpy_helper.from_array(np.float32(0), parameter or "nothing")]
    if sized:
        inputs.append(helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, [1, 2]))
    outputs = []
    for name, array in answers.items():
        weights.append(numpy_helper.from_array(array, f"{name}_value"))
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        nodes.append(helper.make_node("Cast", ["none"], [f"{name}_none"], to=kind))
        nodes.append(helper.make_node("Add", [f"{name}_value", f"{name}_none"], [name]))
        outputs.append(helper.make_tensor_value_info(name, kind, array.shape))
    return save(path, helper.make_graph(nodes, "detector", inputs, outputs, weights), metadata)


def save(path, graph, metadata=None):
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def in_input(boxes, frame_wh, fit, input_wh=INPUT_WH):
    """Where boxes of a frame lie in the input, in edges, by hand."""
    (w, h), (width, height) = frame_wh, input_wh
    if fit == "stretch":
        return boxes * np.tile([width / w, height / h], 2)
    scale = min(width / w, height / h)
    inner = round(w * scale), round(h * scale)
    left, top = ((width - inner[0]) // 2, (height - inner[1]) // 2) if fit == "centre" else (0, 0)
    return boxes * np.tile([inner[0] / w, inner[1] / h], 2) + [left, top, left, top]


def black(frame_wh):
    return np.zeros((frame_wh[1], frame_wh[0], 3), np.uint8)


@pytest.mark.parametrize("frame_wh", FRAMES_WH.values(), ids=FRAMES_WH)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_layout_is_recognised_and_gives_the_people_in_frame_pixels(tmp_path, case, frame_wh):
    boxes = PEOPLE * np.tile(frame_wh, 2)
    answers = case.encode(in_input(boxes, frame_wh, case.fit), SCORES)
    model = write_model(
        tmp_path / "d.onnx", answers, metadata=case.metadata, parameter=case.parameter, sized=case.sized
    )
    detector = load_detector(model, device="cpu", threads=1)
    found, scores = detector.detect(black(frame_wh))
    assert detector.layout.name == case.layout
    assert found.dtype == scores.dtype == np.float32
    np.testing.assert_allclose(scores, SCORES[BEST], atol=1e-5)
    np.testing.assert_allclose(found, np.clip(boxes[BEST], 0, np.tile(frame_wh, 2)), atol=1e-3)
    again = load_detector(model, case.layout, device="cpu", threads=1)
    assert again.detect(black(frame_wh))[0].tolist() == found.tolist()


# Pictures: what a model is fed, and where that lies in the frame


def red_rectangle(frame_wh, box):
    frame = black(frame_wh)
    frame[box[1] : box[3], box[0] : box[2]] = (0, 0, 255)
    return frame


def write_finder(path, shape=(1, 3, 128, 160), dtype=np.float32, bright=150 / 255):
    """A model that sees: it answers with the box around what is bright in its first channel, as YOLOv10 would."""
    axis = shape.index(3)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, weights = [], []

    def op(name, *inputs, **attributes):
        nodes.append(helper.make_node(name, inputs, [f"v{len(nodes)}"], **attributes))
        return f"v{len(nodes) - 1}"

    def const(value):
        weights.append(numpy_helper.from_array(np.asarray(value), f"c{len(weights)}"))
        return f"c{len(weights) - 1}"

    def ends(side):
        along = op("ReduceMax", seen, const([{"x": -2, "y": -1}[side]]), keepdims=0)
        first, last = (op("ArgMax", along, axis=-1, keepdims=1, select_last_index=last) for last in (0, 1))
        return op("Cast", first, to=TensorProto.FLOAT), op(
            "Add", op("Cast", last, to=TensorProto.FLOAT), const(np.float32(1))
        )

    first_channel = op("Gather", op("Cast", "images", to=TensorProto.FLOAT), const(0), axis=axis)
    seen = op("Cast", op("Greater", first_channel, const(np.float32(bright))), to=TensorProto.FLOAT)
    seen = op("Reshape", seen, op("Concat", const([1]), op("Shape", seen, start=-2), axis=0))
    (x1, x2), (y1, y2) = ends("x"), ends("y")
    score = op("Mul", op("ReduceMax", seen, const([-2]), keepdims=0), const(np.float32(0.9)))
    score = op("ReduceMax", score, const([-1]), keepdims=1)
    row = op("Concat", x1, y1, x2, y2, score, const(np.zeros((1, 1), np.float32)), axis=1)
    nodes.append(helper.make_node("Reshape", [row, const([1, 1, 6])], ["output0"]))
    inputs = [helper.make_tensor_value_info("images", kind, shape)]
    outputs = [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 1, 6])]
    return save(path, helper.make_graph(nodes, "finder", inputs, outputs, weights))


@pytest.mark.parametrize("frame_wh", FRAMES_WH.values(), ids=FRAMES_WH)
@pytest.mark.parametrize(
    ("options", "layout"),
    [
        ({}, None),
        ({"dtype": np.float16}, None),
        ({"dtype": np.uint8, "bright": 150}, None),
        ({"shape": (1, 128, 160, 3)}, None),
        ({"shape": (1, 128, 160, 3), "dtype": np.uint8, "bright": 150}, None),
        ({"shape": (3, 128, 160)}, None),
        ({"shape": ("batch", 3, "height", "width")}, None),
        ({}, "corner"),
        ({}, "stretch"),
    ],
    ids=str,
)
def test_a_model_that_sees_finds_a_rectangle_where_it_is(tmp_path, options, layout, frame_wh):
    w, h = frame_wh
    box = [round(0.3 * w), round(0.2 * h), round(0.55 * w), round(0.8 * h)]
    row = LAYOUTS["end2end"]
    row = replace(row, preparation=replace(row.preparation, fit=layout)) if layout else "end2end"
    detector = load_detector(write_finder(tmp_path / "d.onnx", **options), row, device="cpu", threads=1)
    found, scores = detector.detect(red_rectangle(frame_wh, box))
    width, height = detector.input_wh(frame_wh)
    pixel = max(w / width, h / height)  # of the input, in those of the frame
    np.testing.assert_allclose(found, [box], atol=0.51 * pixel + 0.5)  # nearest pixel, and half of one of blur
    assert scores == pytest.approx([0.9])
    assert detector.detect(black(frame_wh))[0].shape == (0, 4)


@pytest.mark.parametrize(
    ("frame_wh", "size", "input_wh"),
    [
        ((640, 360), None, (640, 384)),  # no more padding than the strides need
        ((360, 640), 320, (192, 320)),
        ((500, 500), 128, (128, 128)),
        ((4000, 30), 640, (640, 32)),
    ],
)
def test_a_free_input_takes_the_frame_with_little_padding(tmp_path, frame_wh, size, input_wh):
    model = write_finder(tmp_path / "d.onnx", (1, 3, "height", "width"))
    detector = load_detector(model, size=size, device="cpu", threads=1)
    assert detector.input_wh(frame_wh) == input_wh
    assert len(detector.detect(np.full((frame_wh[1], frame_wh[0], 3), 255, np.uint8))[0]) == 1
    square = replace(detector.layout, preparation=LAYOUTS["rtdetr"].preparation)
    assert load_detector(model, square, size=size, device="cpu").input_wh(frame_wh) == (size or 640, size or 640)
    near = replace(detector.layout, preparation=LAYOUTS["detr"].preparation)
    assert load_detector(model, near, device="cpu").input_wh((640, 330)) == (640, 320)  # nearest, and no padding


IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@pytest.mark.parametrize(
    ("layouts", "order", "mean", "std", "pad"),
    [
        ("yolox yolox-nms", "bgr", (0, 0, 0), (1, 1, 1), "corner"),
        ("rtmdet", "bgr", IMAGENET[0][::-1], IMAGENET[1][::-1], "corner"),
        ("yolov5 yolov8 end2end", "rgb", (0, 0, 0), (255, 255, 255), "centre"),
        ("torchvision", "rgb", (0, 0, 0), (255, 255, 255), "corner"),
        ("detr rfdetr", "rgb", *IMAGENET, None),
        ("rtdetr", "rgb", (0, 0, 0), (255, 255, 255), None),
    ],
)
def test_each_layout_feeds_its_model_as_that_was_trained(tmp_path, monkeypatch, layouts, order, mean, std, pad):
    frame = np.random.default_rng(7).integers(0, 256, (128, 80, 3), np.uint8)  # half as wide as the input
    for name in layouts.split():
        case = next(case for case in CASES.values() if case.layout == name)
        answers = case.encode(PEOPLE * 100, SCORES)
        model = write_model(tmp_path / f"{name}.onnx", answers, metadata=case.metadata, sized=case.sized)
        detector = load_detector(model, name, device="cpu", threads=1)
        fed = []
        run = detector.engine.run
        monkeypatch.setattr(detector.engine, "run", lambda feeds, fed=fed, run=run: fed.append(feeds) or run(feeds))
        detector.detect(frame)
        tensor = fed[0]["images"]
        assert tensor.shape == (1, 3, 128, 160)
        left = {"corner": 0, "centre": 40, None: 0}[pad]
        shown = tensor[0, :, :, left : left + 80] if pad else tensor[0, :, ::5, ::5]
        for channel, letter in enumerate(order):
            plane = (frame[:, :, "bgr".index(letter)] - mean[channel]) / std[channel]
            grey = (114 - mean[channel]) / std[channel]
            if pad:
                np.testing.assert_allclose(shown[channel], plane, atol=1e-5)
                assert np.abs(tensor[0, channel, :, -40:] - grey).max() < 1e-5
            else:
                assert shown[channel].mean() == pytest.approx(plane.mean(), abs=0.1)
        assert not case.sized or fed[0]["orig_target_sizes"].tolist() == [[160, 128]]


def test_a_mask_is_all_ones(tmp_path, monkeypatch):
    graph = onnx.load(write_model(tmp_path / "d.onnx", detr(PEOPLE * 100, SCORES))).graph
    graph.input.append(helper.make_tensor_value_info("pixel_mask", TensorProto.INT64, ["batch", "h", "w"]))
    detector = load_detector(save(tmp_path / "d.onnx", graph), device="cpu", threads=1)
    fed = []
    run = detector.engine.run
    monkeypatch.setattr(detector.engine, "run", lambda feeds: fed.append(feeds) or run(feeds))
    assert len(detector.detect(black((160, 128)))[0]) == 4
    assert fed[0]["pixel_mask"].dtype == np.int64
    assert fed[0]["pixel_mask"].tolist() == np.ones((1, 128, 160)).tolist()
    assert sum(detector.engine.placement().values()) > 0  # zeros of every input's dtype


@pytest.mark.parametrize("fit", ["corner", "centre", "stretch"])
def test_any_frame_comes_back_from_any_input(fit):
    g = np.random.default_rng(3)
    for _ in range(60):
        frame_wh, input_wh = (tuple(int(side) for side in g.integers(24, 700, 2)) for _ in range(2))
        placed = place(frame_wh, input_wh, fit)
        rows, columns = np.mgrid[: frame_wh[1], : frame_wh[0]].astype(np.float32)
        there = placed.apply(
            np.stack([columns, rows, np.ones_like(rows)], axis=2), pad=0
        )  # each pixel says where it is
        assert there.shape == (input_wh[1], input_wh[0], 3)
        y, x = (index.astype(float) for index in np.nonzero(there[..., 2] > 0.999))
        assert len(x) == placed.inner_wh[0] * placed.inner_wh[1]
        back = placed.to_frame(np.stack([x + 0.5, y + 0.5, x + 1, y + 1], axis=1))[:, :2] - 0.5
        inside = ((back >= 0) & (back <= np.subtract(frame_wh, 1))).all(axis=1)  # OpenCV repeats the outermost pixels
        read = there[y.astype(int), x.astype(int), :2]
        assert np.abs(back - read)[inside].max(initial=0) < 0.01 * max(1, *np.divide(frame_wh, placed.inner_wh))
        boxes = np.sort(g.uniform(0, frame_wh[0], (5, 4)))
        forth = in_input(boxes, frame_wh, fit, input_wh)
        assert np.abs(placed.to_frame(forth) - boxes).max() < 1e-6


# Many, none, and the same


def slow_nms(boxes, scores, limit):
    def area(box):
        return max(0, box[2] - box[0]) * max(0, box[3] - box[1])

    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        for j in kept:
            shared = area([*np.maximum(boxes[i][:2], boxes[j][:2]), *np.minimum(boxes[i][2:], boxes[j][2:])])
            if shared / (area(boxes[i]) + area(boxes[j]) - shared) > limit:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("iou_threshold", [0.3, 0.65])
def test_overlapping_boxes_are_merged_as_a_plain_loop_does(tmp_path, iou_threshold):
    g = np.random.default_rng(5)
    corners = g.uniform(0, 90, (len(CELLS), 2))
    boxes = np.concatenate([corners, corners + g.uniform(15, 37, (len(CELLS), 2))], axis=1)
    scores = g.permutation(len(CELLS)) / len(CELLS)
    rows = np.array([[*cxcywh(box), score] for box, score in zip(boxes, scores, strict=True)], np.float32)
    model = write_model(tmp_path / "d.onnx", {"output0": rows.T[None]})
    detector = load_detector(model, iou_threshold=iou_threshold, score_threshold=0.25, most=1000, device="cpu")
    found, certain = detector.detect(black(INPUT_WH))
    kept = [i for i in slow_nms(boxes, scores, iou_threshold) if scores[i] >= 0.25]
    assert 30 < len(kept) < 250
    np.testing.assert_allclose(certain, scores[kept], atol=1e-6)
    np.testing.assert_allclose(found, boxes[kept], atol=1e-4)


def test_what_needs_no_merging_is_not_merged(tmp_path):
    close = np.array([[10.0, 10, 50, 90], [14, 10, 54, 90]])
    model = write_model(tmp_path / "d.onnx", {"output0": detections(close, [0.6, 0.7], (0, 1))[None]})
    found, _ = load_detector(model, device="cpu").detect(black(INPUT_WH))
    assert found.tolist() == close[::-1].tolist()


def test_forty_people_and_a_cap(tmp_path):
    people = np.array([[20.0 * x, 25 * y, 20 * x + 18, 25 * y + 24] for x in range(8) for y in range(5)])
    scores = np.linspace(0.5, 0.9, 40)
    rows = [[*cxcywh(people[i] + shift), scores[i] - shift / 50] for shift in (0, 1, 2) for i in range(40)]
    rows += [[80, 64, 10, 10, 0]] * (len(CELLS) - len(rows))
    model = write_model(tmp_path / "d.onnx", {"output0": np.array(rows, np.float32).T[None]})
    found, _ = load_detector(model, device="cpu").detect(black(INPUT_WH))
    np.testing.assert_allclose(found, people[::-1], atol=1e-3)
    best, scores = load_detector(model, most=10, device="cpu").detect(black(INPUT_WH))
    assert best.tolist() == found[:10].tolist()
    assert (np.diff(scores) < 0).all()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_nobody_is_an_answer(tmp_path, case):
    answers = case.encode(np.zeros((0, 4)), np.zeros(0))
    model = write_model(
        tmp_path / "d.onnx", answers, metadata=case.metadata, parameter=case.parameter, sized=case.sized
    )
    boxes, scores = load_detector(model, device="cpu", threads=1).detect(black((99, 77)))
    assert (boxes.shape, scores.shape, boxes.dtype, scores.dtype) == ((0, 4), (0,), np.float32, np.float32)


def test_no_row_at_all_is_nobody(tmp_path):
    nothing = {"dets": np.zeros((1, 0, 5), np.float32), "labels": np.zeros((1, 0), np.int64)}
    model = write_model(tmp_path / "d.onnx", nothing)
    assert load_detector(model, "rtmdet", device="cpu").detect(black((99, 77)))[0].shape == (0, 4)


# Classes


@pytest.mark.parametrize(
    ("metadata", "option", "person"),
    [
        ({"names": "{0: 'car', 1: 'Person'}"}, None, 1),
        ({"names": "['cat', 'dog', 'pedestrian']"}, None, 2),
        ({"names": "{0: 'player'}"}, None, 0),  # one class: who else
        ({"names": "__import__('os')"}, None, 0),
        ({"names": "{0: 'car', 7: 'person'}"}, None, 0),
        ({}, 2, 2),
        (NAMES, 1, 1),
    ],
)
def test_the_person_class(tmp_path, metadata, option, person):
    model = write_model(tmp_path / "d.onnx", CASES["yolov8"].encode(PEOPLE * 100, SCORES), metadata=metadata)
    detector = load_detector(model, person_class=option, device="cpu")
    assert detector.person_class == person
    assert len(detector.detect(black(INPUT_WH))[0]) == {0: 4, 1: 1, 2: 0}[person]


def test_cocos_own_class_numbers_are_known_by_their_count(tmp_path):
    for count, person in ((91, 1), (4, 0)):
        answers = sigmoid_queries(PEOPLE * 100, SCORES, count, ("labels", "dets"))
        detector = load_detector(write_model(tmp_path / "d.onnx", answers), device="cpu")
        assert (detector.layout.name, detector.person_class) == ("rfdetr", person)


@pytest.mark.parametrize(
    ("metadata", "option", "message"),
    [
        ({"names": "{0: 'car', 1: 'cat'}"}, None, r"is a person \(car, cat\): give the number of its person class"),
        ({}, 3, "has 3 classes, numbered from 0, and person class 3 is none of them"),
        ({}, -1, "classes are numbered from 0, got person class -1"),
    ],
)
def test_person_classes_that_are_not_there(tmp_path, metadata, option, message):
    model = write_model(tmp_path / "d.onnx", CASES["yolov8"].encode(PEOPLE * 100, SCORES), metadata=metadata)
    with pytest.raises(EdgePoseError, match=message):
        load_detector(model, person_class=option, device="cpu")


# What is no detector, or not a known one


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("answers", "options", "message"),
    [
        (  # an image classifier
            {"logits": zeros(1, 1000)},
            {"shape": (1, 3, 224, 224)},
            r"d.onnx: no person detector of a known layout \(inputs images float32 \(1, 3, 224, 224\); outputs logits "
            r"float32 \(1, 1000\)\): if it is one, name its layout with --detector-layout \(yolox, yolox-nms, rtmdet",
        ),
        ({"mask": zeros(1, 1, 128, 160)}, {}, r"no person detector .* outputs mask float32 \(1, 1, 128, 160\)"),
        ({"depth": zeros(1, 128, 160)}, {}, "no person detector"),
        ({"output0": zeros(420, 85)}, {}, "no person detector"),
        ({"x": zeros(1, 17, 384), "y": zeros(1, 17, 512)}, {}, "no person detector"),  # a pose model
        (
            {"output0": zeros(1, 420, 85)},
            {"shape": (1, 4, 128, 160)},
            r"known layout \(inputs images float32 \(1, 4, 128",
        ),
        (
            {"output0": zeros(1, 420, 85)},
            {"shape": (8, 3, 128, 160)},
            r"takes batches of 8 .*export it with batch size",
        ),
        (  # normalised boxes, as TensorFlow's exports have
            {"output0": np.full((1, 84, 420), 0.5, np.float32)},
            {},
            "no person detector",
        ),
        (
            CASES["yolox decoded"].encode(PEOPLE * 100, SCORES),
            {},
            "can be those of yolox, yolov5: say which with --detec",
        ),
        (mmdeploy(PEOPLE * 100, SCORES), {}, r"labels int64 \(1, 7\)\) can be those of yolox-nms, rtmdet: say which"),
        (sigmoid_queries(PEOPLE * 100, SCORES, 91), {}, "can be those of detr, rtdetr, rfdetr: say which"),
    ],
)
def test_files_that_are_not_understood(tmp_path, answers, options, message):
    model = write_model(tmp_path / "d.onnx", answers, **options)
    with pytest.raises(EngineError, match=message) as caught:
        load_detector(model, device="cpu", threads=1)
    assert "\n" not in str(caught.value)


def test_a_layout_that_is_given_needs_no_evidence(tmp_path):
    """Normalised boxes are not recognised as YOLOv8's; two classes without names could be YOLOv10's rows."""
    answers = {"output0": query_table(PEOPLE * 100, SCORES)["output0"][:, :, :6]}
    assert load_detector(write_model(tmp_path / "d.onnx", answers), device="cpu").layout.name == "end2end"
    detector = load_detector(tmp_path / "d.onnx", "rtdetr", device="cpu")
    assert len(detector.detect(black((160, 128)))[0]) == 4


def test_layouts_that_are_given_and_wrong(tmp_path):
    model = write_model(tmp_path / "d.onnx", CASES["yolov8"].encode(PEOPLE * 100, SCORES))
    with pytest.raises(
        EngineError, match=r"grey picture output0 \(1, 7, 420\)\) are not those of the layout rtdetr: giv"
    ):
        load_detector(model, "rtdetr", device="cpu")
    with pytest.raises(
        EngineError, match="are not those of the layout end2end: give another --detector-layout, or none"
    ):
        load_detector(model, "end2end", device="cpu")
    with pytest.raises(EngineError, match="unknown detector layout 'yolo'; known: yolox, yolox-nms, rtmdet"):
        load_detector(model, "yolo", device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 40}, "expected numbers from 0 to 1, got score 40 and IoU 0.65"),
        ({"most": 0}, "at least one box of a frame must be kept, got 0"),
        ({"size": 100}, "expected a multiple of 32 from 32 to 4096, got 100"),
        ({"size": 320}, "d.onnx: its input is fixed at 160x128: leave the size out"),
    ],
)
def test_numbers_that_make_no_sense(tmp_path, options, message):
    with pytest.raises(EdgePoseError, match=message):
        load_detector(write_finder(tmp_path / "d.onnx"), device="cpu", **options)


def test_files_that_are_no_detectors(tmp_path):
    answers = CASES["yolov8"].encode(PEOPLE * 100, SCORES)
    model = write_model(tmp_path / "pose.onnx", answers, metadata={"edgepose": "{}"})
    with pytest.raises(BundleError, match=r"pose.onnx: is a model that edgepose made, for poses and not for boxes"):
        load_detector(model, device="cpu")
    with pytest.raises(BundleError, match=r"none.onnx: no such detector file"):
        load_detector(tmp_path / "none.onnx")
    with pytest.raises(BundleError, match="a folder, and a detector is one model file"):
        load_detector(tmp_path)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(EngineError, match=r"broken.onnx: onnxruntime cannot load it"):
        load_detector(tmp_path / "broken.onnx", device="cpu")


class FakeEngine:
    """Answers with what it is given, one after the other; the last again and again."""

    name = "fake"
    device = "cpu"
    inputs = (TensorSpec("images", "float32", (1, 3, 128, 160)),)
    outputs = (TensorSpec("output0", "float32", (1, 7, None)),)

    def __init__(self, *answers):
        self.metadata = {}
        self.answers = list(answers)
        self.closed = False

    def run(self, feeds):
        return {"output0": self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]}

    def placement(self):
        return {}

    def close(self):
        self.closed = True


def changed(cell, column, value):
    rows = cell_rows(PEOPLE * 100, SCORES, 0)
    rows[cell, column] = value
    return rows.T[None]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (changed(3, 4, np.nan), "detector: fake on cpu answered with NaN or infinity: try another device or an FP32"),
        (changed(7, 2, np.inf), "answered with NaN or infinity"),
        (changed(3, 4, 7.25), "scores reach 7.25, which are no probabilities: its layout is not yolov8, try another"),
        (zeros(1, 7, 80), r"answered with output0 \(1, 7, 80\), and not as yolov8 any more"),
    ],
)
def test_answers_that_go_wrong_later(answer, message):
    detector = OnnxDetector(FakeEngine(changed(0, 4, 0), answer))
    with pytest.raises(EngineError, match=message):
        detector.detect(black((160, 128)))


def test_nan_where_nobody_looks_does_no_harm():
    answer = changed(3, 5, np.nan)  # another class
    answer[0, :4, 100] = np.inf  # a box that nobody believes
    detector = OnnxDetector(FakeEngine(changed(0, 4, 0), answer))
    assert len(detector.detect(black((160, 128)))[0]) == 4
    detector.close()
    assert detector.engine.closed


@pytest.mark.parametrize(
    "frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), "frame", np.zeros((0, 4, 3), np.uint8)]
)
def test_frames_that_are_none(frame):
    detector = OnnxDetector(FakeEngine(changed(0, 4, 0)))
    with pytest.raises(EdgePoseError, match=r"frame: expected a uint8 array \(h, w, 3\) in BGR order, got"):
        detector.detect(frame)


def test_a_refused_file_is_closed(tmp_path, monkeypatch):
    from edgepose.runtimes.onnxruntime import OnnxRuntimeEngine

    closed = []

    def close(engine):
        closed.append(engine)

    monkeypatch.setattr(OnnxRuntimeEngine, "close", close)
    with pytest.raises(EngineError, match="no person detector"):
        load_detector(write_model(tmp_path / "d.onnx", {"logits": zeros(1, 1000)}), device="cpu")
    assert len(closed) == 1
