"""Recovery without labels: the loss, the frames, training for INT8, and that a cut model comes back."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgepose import DatasetError
from edgepose.calibration.datasets.pictures import Unlabeled
from edgepose.converters.checkpoint import Checkpoint, build_random
from edgepose.converters.recovery import recover, recovery_record, scores_of
from edgepose.converters.training.distillation import (
    Distillation,
    distillation_loss,
    peak_weights,
    shared_points,
)
from edgepose.converters.training.frames import HELPFUL, Frames, collect_frames, load_frames, save_frames
from edgepose.converters.training.lift_distillation import LiftDistillation
from edgepose.converters.training.loop import Settings, resume_path
from edgepose.converters.training.pictures import heatmaps_of
from edgepose.converters.training.quantized import QuantizationAware, plain_state
from edgepose.models.registry import get_model
from edgepose.preprocess import crop

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = replace(get_model("transpose-r-t"), input_hw=(64, 64), sizes={
    "d_model": 32, "feedforward": 32, "heads": 2, "layers": 1, "stem": 8, "planes": (8, 8), "deconv": 16
})  # fmt: skip
LIFTER = replace(get_model("ampose-s"), sizes={"d_model": 16, "layers": 1, "heads": 2})


def parent() -> Checkpoint:
    """Random weights whose heatmaps answer to the picture, and differ from joint to joint."""
    made = build_random(SMALL, 0)
    for module in made.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all it has seen
    with torch.no_grad():
        heatmaps_of(made.model.train(), torch.from_numpy(frames().held))
    for module in made.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return replace(made, model=made.model.eval())


def damaged() -> Checkpoint:
    """The parent with half of its deconvolution's channels and of its feed-forward gone."""
    made = parent()
    with torch.no_grad():
        made.model.deconv_layers[1].weight[::2] = 0
        made.model.global_encoder.layers[0].linear2.weight[:, ::2] = 0
    return made


def blobs(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pictures = np.zeros((count, 96, 96, 3), np.uint8)
    for picture in pictures:
        for _ in range(6):
            colour = tuple(int(c) for c in rng.integers(40, 255, 3))
            cv2.circle(picture, tuple(int(v) for v in rng.integers(10, 86, 2)), int(rng.integers(4, 20)), colour, -1)
    return pictures


def frames(count: int = 48) -> Frames:
    pictures = blobs(count + 8)
    return Frames(pictures[8:], np.ascontiguousarray(pictures[:8, 16:80, 16:80]), sha256="0" * 64)


def task(student: Checkpoint, **options) -> Distillation:
    return Distillation(parent().model, student.model, frames(), SMALL.spec, 0, workers=1, **options)


# --- the loss ----------------------------------------------------------------------------------------------------


def test_peaks_weigh_and_the_background_hardly_does():
    truth = torch.zeros(1, 2, 8, 8)
    truth[0, 0, 3, 4], truth[0, 1, 5, 5], truth[0, 1, 0, 0] = 0.8, 0.8, 0.4
    weights = peak_weights(truth)
    assert weights[0, 0, 3, 4] == pytest.approx(1)
    assert weights[0, 1, 0, 0] == pytest.approx(0.05 + 0.95 / 2)
    assert weights[0, 0, 0, 0] == pytest.approx(0.05)
    at_peak, beside = truth.clone(), truth.clone()
    at_peak[0, 0, 3, 4] -= 0.1
    beside[0, 0, 7, 7] -= 0.1
    assert float(distillation_loss(at_peak, truth)) == pytest.approx(20 * float(distillation_loss(beside, truth)))


def test_a_map_without_a_peak_is_not_all_peak():
    truth = torch.full((1, 3, 4, 4), 0.01)
    truth[0, 1:, 0, 0] = 1.0
    weights = peak_weights(truth)
    assert float(weights[0, 0].max()) < 0.1
    assert float(weights[0, 1].max()) == pytest.approx(1)


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_the_loss_knows_no_unit(scale):
    truth, found = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    assert float(distillation_loss(scale * found, scale * truth)) == pytest.approx(
        float(distillation_loss(found, truth)), rel=1e-4
    )


def test_features_are_compared_where_no_channel_was_cut():
    student = build_random(replace(SMALL, sizes={**SMALL.sizes, "deconv": 8, "planes": (4, 8)}), 0)
    points = shared_points(parent().model, student.model, SMALL.spec)
    assert points == ("layer2", "reduce", "global_encoder")


# --- frames ------------------------------------------------------------------------------------------------------


def footage(folder, count):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:03d}.png"), cv2.resize(rng.integers(0, 256, (9, 9, 3), np.uint8), (200, 160)))
    return Unlabeled(folder)


def found_at(image):
    """Everybody stands in the same place."""
    return np.array([[100.0, 80.0, 64.0, 64.0]]), 0.9, True


def test_frames_are_crops_with_what_is_around_them(tmp_path):
    data = footage(tmp_path / "f", 24)
    got = collect_frames(data, SMALL.spec, found_at, 24, seed=0)
    assert got.patches.shape == (21, 96, 96, 3)
    assert got.held.shape == (3, 64, 64, 3)
    pictures = [picture.read() for picture in data.pictures()]
    plain = [crop(picture, np.array([[100.0, 80.0, 64.0, 64.0]]), (64, 64))[0].astype(int) for picture in pictures]
    for held in got.held:  # the region's outline falls between pixels of the wider one
        assert min(np.abs(held - one).max() for one in plain) <= 4
    assert got.record["trained_on"], got.record["held_out"] == (21, 3)
    assert got.record["sha256"] == got.sha256
    assert f"24 crops of people are few to recover on: give footage with {HELPFUL} different ones" in got.notes[0]


def test_frames_are_kept_for_those_who_ask_for_the_same(tmp_path):
    data, kept = footage(tmp_path / "people", 30), tmp_path / "frames.npz"
    assert load_frames(kept, data, 24, 0) is None
    found = collect_frames(data, SMALL.spec, found_at, 24, seed=0)
    save_frames(found, kept)
    again = load_frames(kept, data, 24, 0)
    assert again is not None
    assert np.array_equal(again.patches, found.patches)
    assert np.array_equal(again.held, found.held)
    assert (again.sha256, again.record, again.notes) == (found.sha256, found.record, found.notes)
    assert load_frames(kept, data, 24, 1) is None
    assert load_frames(kept, data, 25, 0) is None
    assert load_frames(kept, footage(tmp_path / "others", 30), 24, 0) is None
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=r"frames.npz: damaged: remove it"):
        load_frames(kept, data, 24, 0)


def test_too_few_frames_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"f: 5 usable crops of 5 candidates; at least 16 different ones are needed"):
        collect_frames(footage(tmp_path / "f", 5), SMALL.spec, found_at, 24, seed=0)


def test_views_are_the_same_for_the_same_seed_and_differ_from_epoch_to_epoch():
    views = [next(iter(task(damaged()).batches(epoch, 8)))[0] for epoch in (1, 1, 2)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert views[0].shape == (8, 64, 64, 3)
    assert views[0].dtype == torch.uint8


# --- recovery ----------------------------------------------------------------------------------------------------


def held_error(student: Checkpoint) -> float:
    """Of the heatmaps on pictures that nobody learned from."""
    pictures = torch.from_numpy(frames().held)
    with torch.inference_mode():
        truth, found = (heatmaps_of(model, pictures) for model in (parent().model, student.model.eval()))
        return float(distillation_loss(found, truth))


def test_a_cut_model_comes_back_without_labels(tmp_path):
    student = damaged()
    job = task(student)
    before = held_error(student)
    assert scores_of(parent(), job) == pytest.approx({"agreement": 100, "shift px": 0})
    recovered, history = recover(student, job, tmp_path / "r.pth", Settings(8, batch=8, lr=3e-3, average=0.9))
    assert history[-1].loss < 0.7 * history[0].loss
    assert held_error(recovered) < 0.6 * before


def test_the_epoch_that_agrees_best_is_kept(tmp_path):
    student = damaged()
    job = task(student)
    recovered, history = recover(student, job, tmp_path / "r.pth", Settings(4, batch=16, lr=2e-2, average=0.5))
    best = max(history, key=lambda epoch: epoch.scores["agreement"])
    assert scores_of(recovered, job) == pytest.approx(dict(best.scores))


def test_stopped_and_resumed_ends_at_the_same_bits(tmp_path):
    class Stop(Exception):
        pass

    def stop(epoch):
        if epoch.number == 2:
            raise Stop

    settings = Settings(3, batch=16, lr=3e-3)
    states = []
    for name in ("whole", "resumed"):
        student = damaged()
        if name == "resumed":
            with pytest.raises(Stop):
                recover(student, task(student), tmp_path / "resumed.pth", settings, quantized=True, report=stop)
            student = damaged()
        go_on = {"resume": name == "resumed", "quantized": True}
        recovered, history = recover(student, task(student), tmp_path / f"{name}.pth", settings, **go_on)
        states.append((recovered.model.state_dict(), [epoch.scores for epoch in history]))
    (whole, scores), (resumed, again) = states
    assert scores == again
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert resume_path(tmp_path / "whole.pth").is_file()


def test_a_lifting_model_learns_from_its_parent(tmp_path):
    rng = np.random.default_rng(0)
    xyz = rng.normal(0, 0.05, (40, 17, 3))
    xyz[:, :, 2] += [0, 0, -0.4, -0.8, 0, -0.4, -0.8, 0.2, 0.5, 0.6, 0.7, 0.5, 0.3, 0, 0.5, 0.3, 0]
    path = tmp_path / "poses.npz"
    np.savez(path, poses=(xyz - xyz[:, :1]).astype(np.float32), seq_id=np.arange(40) // 4)
    teacher, student = build_random(LIFTER, 0), build_random(LIFTER, 1)
    job = LiftDistillation(teacher.model, path, LIFTER.spec, 0)
    before = scores_of(student, job)
    assert list(before)[:2] == ["from parent", "MPJPE"]
    recovered, _ = recover(student, job, tmp_path / "r.pth", Settings(20, batch=16, lr=1e-2, average=0.9))
    assert scores_of(recovered, job)["from parent"] < 0.7 * before["from parent"]
    labelled = LiftDistillation(teacher.model, path, LIFTER.spec, 0, labelled=True)
    assert next(iter(scores_of(recovered, labelled))) == "MPJPE"
    assert labelled.identity != job.identity


# --- INT8 in the loop --------------------------------------------------------------------------------------------


def qdq_linear(weight: np.ndarray, bias: np.ndarray, low: float, high: float) -> onnxruntime.InferenceSession:
    """x -> a linear layer with explicit quantization: symmetric int8 per channel, asymmetric uint8 input."""
    scale = np.float32((high - low) / 255)
    zero = np.uint8(round(-low / float(scale)))
    steps = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    values = {
        "scale": scale, "zero": zero, "steps": steps, "zeros": np.zeros(len(steps), np.int8),
        "w": np.clip(np.rint(weight / steps[:, None]), -127, 127).astype(np.int8), "b": bias,
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "steps", "zeros"], ["wd"], axis=0),
        helper.make_node("Gemm", ["xd", "wd", "b"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, weight.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, weight.shape[0]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_roundings_are_those_of_explicit_quantization():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(24, 10))
    x = torch.randn(64, 24)
    aware = QuantizationAware(layer)
    aware.train()(x)
    low, high = float(x.min()), float(x.max())
    session = qdq_linear(layer[0].weight.detach().numpy(), layer[0].bias.detach().numpy(), low, high)
    other = 2 * torch.randn(64, 24)  # beyond the limits it is cut off
    (wanted,) = session.run(None, {"x": other.numpy()})
    with torch.inference_mode():
        answer, unrounded = aware.eval()(other).numpy(), layer[0](other).numpy()
    step = (high - low) / 255 * float(layer[0].weight.detach().abs().max())  # a tie may fall to either side
    assert np.abs(answer - wanted).max() <= step
    assert np.abs(answer - wanted).mean() < 1e-4
    assert np.abs(answer - unrounded).mean() > 1e-3


def test_gradients_pass_the_roundings_and_the_weights_stay_float():
    aware = QuantizationAware(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 4, 2, 1)))
    x = torch.randn(2, 3, 8, 8)
    aware.train()(x).square().mean().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in aware.inner.parameters())
    plain = plain_state(aware.state_dict())
    assert plain.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    rounded = aware.eval()(x)
    inner = aware.release()
    assert torch.equal(inner(x), nn.functional.conv_transpose2d(
        torch.relu(nn.functional.conv2d(x, plain["0.weight"], plain["0.bias"])),
        plain["2.weight"], plain["2.bias"], stride=2, padding=1,
    ))  # fmt: skip
    assert not torch.equal(inner(x), rounded)


def test_modules_that_never_become_int8_are_not_rounded():
    aware = QuantizationAware(build_random(LIFTER, 0).model, LIFTER.float_modules)
    assert not any(name.startswith(LIFTER.float_modules) for name in aware.axes)
    assert any(name.endswith("in_proj_weight") for name in aware.axes)


def test_training_for_int8_leaves_a_plain_model(tmp_path):
    student = damaged()
    job = task(student)
    before = held_error(student)
    recovered, _ = recover(student, job, tmp_path / "r.pth", Settings(6, batch=8, lr=3e-3, average=0.9), quantized=True)
    assert held_error(recovered) < 0.7 * before
    assert not any(module._forward_pre_hooks for module in recovered.model.modules())
    assert recovered.model.state_dict().keys() == parent().model.state_dict().keys()


# --- the record --------------------------------------------------------------------------------------------------


def test_the_record_says_what_was_done_in_plain_values(tmp_path):
    student = damaged()
    job, settings = task(student), Settings(1, batch=16, lr=1e-3)
    scores = {"pruned": scores_of(student, job)}
    recovered, history = recover(student, job, tmp_path / "r.pth", settings)
    scores["recovered"] = scores_of(recovered, job)
    record = recovery_record(scores, {"sha256": "0" * 64}, settings, history, job)
    torch.save({"edgepose": record}, tmp_path / "c.pth")
    again = torch.load(tmp_path / "c.pth", weights_only=True)["edgepose"]
    assert again == record
    assert again["recovery"]["data"]["sha256"] == "0" * 64
    assert again["recovery"]["settings"]["seed"] == 0
    assert again["recovery"]["best_epoch"] == 1
    assert again["scores"]["recovered"]["agreement"] == pytest.approx(history[0].scores["agreement"])
