"""AMPose: its graph on the body, the contract, what its options change, and that it exports as plain operators."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgepose.lifting import MISSING
from edgepose.models.ampose import AMPose, AMPoseConfig, neighbour_groups
from edgepose.models.registry import get_model
from edgepose.skeletons import get_skeleton

BODY = get_skeleton("h36m17")
JOINT = {name: i for i, name in enumerate(BODY.joints)}
SMALL = AMPoseConfig("h36m17", d_model=16, layers=2, heads=2)


def small(**changes) -> AMPose:
    torch.manual_seed(0)
    return AMPose(replace(SMALL, **changes)).eval()


def keypoints(n=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (n, 17, 2)).astype(np.float32))


def hears(group: int, joint: str) -> set[str]:
    return {BODY.joints[j] for j in torch.nonzero(neighbour_groups("h36m17")[group, JOINT[joint]]).flatten().tolist()}


@pytest.mark.parametrize(
    ("joint", "towards", "away", "mirrored"),
    [
        ("spine", set(), {"pelvis", "thorax"}, "spine"),  # the centre
        ("pelvis", {"spine"}, {"left_hip", "right_hip"}, "pelvis"),
        ("thorax", {"spine"}, {"neck", "left_shoulder", "right_shoulder"}, "thorax"),
        ("left_elbow", {"left_shoulder"}, {"left_wrist"}, "right_elbow"),
        ("right_ankle", {"right_knee"}, set(), "left_ankle"),
        ("head", {"neck"}, set(), "head"),
    ],
)
def test_joints_hear_their_neighbours_on_the_body(joint, towards, away, mirrored):
    assert [hears(k, joint) for k in range(4)] == [{joint}, towards, away, {mirrored}]


def test_columns_sum_to_one_or_to_nothing():
    sums = neighbour_groups("h36m17").sum(dim=1)
    assert set(sums.flatten().tolist()) <= {0.0, 1.0}
    assert sums[0].sum() == sums[3].sum() == 17


def test_graph_convolution_is_the_sum_over_groups_of_a_x_w():
    """Against the formula with one weight matrix for each group."""
    model = small(groups=4)
    conv = model.blocks[1].conv1
    x = torch.randn(2, 17, 16, generator=torch.Generator().manual_seed(1))
    weights = conv.linear.weight.detach().T.reshape(4, 16, 16)
    expected = sum(a @ x @ w for a, w in zip(neighbour_groups("h36m17"), weights, strict=True)) + conv.linear.bias
    np.testing.assert_allclose(conv(x).detach(), expected.detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, None),
        ({"groups": 4}, "more"),  # a matrix for the mirrored joint
        ({"blocks": ("gcn", "attention")}, "same"),
        ({"blocks": ("attention",)}, "fewer"),
        ({"blocks": ("gcn",)}, "fewer"),
        ({"gcn": "plain+plain"}, "same"),
        ({"gcn": "residual+residual"}, "same"),
        ({"gcn": "residual"}, "fewer"),  # one convolution
    ],
)
def test_ablations_are_configuration(changes, parameters):
    reference, model = small(), small(**changes)
    count, base = (sum(p.numel() for p in m.parameters()) for m in (model, reference))
    assert {None: count == base, "same": count == base, "more": count > base, "fewer": count < base}[parameters]
    with torch.inference_mode():
        answer = model(keypoints())
        assert tuple(answer.shape) == (3, 17, 3)
        if changes:
            assert not torch.allclose(answer, reference(keypoints()))


def test_answers_are_relative_to_the_pelvis():
    with torch.inference_mode():
        xyz = small()(keypoints())
    assert (xyz[:, 0] == 0).all()
    assert xyz[:, 1:].abs().min() > 0


def test_a_missing_joint_is_neither_zero_nor_its_coordinates():
    model, x = small(), keypoints(1)
    lost, zero, elsewhere = x.clone(), x.clone(), x.clone()
    lost[0, 16], zero[0, 16], elsewhere[0, 16] = MISSING, 0.0, MISSING - 0.5
    with torch.inference_mode():
        answers = {"known": model(x), "lost": model(lost), "zero": model(zero)}
        assert torch.equal(answers["lost"], model(elsewhere))  # where it is said to be missing does not matter
        assert not torch.allclose(answers["lost"], answers["zero"], atol=1e-4)
        assert not torch.allclose(answers["lost"], answers["known"], atol=1e-4)
        model.missing += 0.5
        assert torch.equal(answers["known"], model(x))
        assert not torch.equal(answers["lost"], model(lost))


@pytest.mark.parametrize(("name", "millions"), [("ampose-s", 1.5), ("ampose-b", 5.9)])
def test_a_row_says_what_its_model_is(name, millions):
    row = get_model(name)
    model = row.build()
    assert sum(p.numel() for p in model.parameters()) == row.parameters
    assert row.parameters / 1e6 == pytest.approx(millions, rel=0.02)
    assert (row.task, row.spec.skeleton, row.spec.normalisation) == ("lift3d", "h36m17", "bbox")
    with torch.inference_mode():
        assert tuple(model(keypoints(2)).shape[1:]) == row.spec.output.shape[1:]


def test_exports_to_plain_operators(tmp_path):
    """No scatter, gather by index, loops or comparisons: what every converter takes; and any batch."""
    ort = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model = small()
    batch = torch.export.Dim("batch", min=1, max=64)
    path = tmp_path / "m.onnx"
    program = torch.onnx.export(
        model, (keypoints(2),), dynamo=True, opset_version=18, dynamic_shapes=({0: batch},), verbose=False
    )
    program.optimize()
    program.save(str(path))
    found = {node.op_type for node in onnx.load(path).graph.node}
    plain = {"Add", "Sub", "Mul", "Div", "Clip", "Erf", "Gelu", "MatMul", "Gemm", "Softmax", "LayerNormalization"}
    plain |= {"Concat", "Split", "Slice", "Shape", "Gather", "Reshape", "Transpose", "Unsqueeze", "Squeeze"}
    assert found <= plain
    x = keypoints(5)
    x[1, 3] = MISSING
    (answer,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"keypoints": x.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(answer, model(x).numpy(), atol=1e-5)  # 0.01 mm
