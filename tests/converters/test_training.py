"""The training loop and its two tasks, on data that the tests make."""

from __future__ import annotations

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from edgepose import DatasetError, ModelSpec
from edgepose.calibration.datasets.lsp import LeedsSports
from edgepose.calibration.datasets.mocap import MocapPoses, other_bodies, read_poses, split_sequences, view
from edgepose.converters.checkpoint import build_random, load_checkpoint
from edgepose.converters.training.lifting import LiftingTask
from edgepose.converters.training.loop import Epoch, Settings, resume_path, train
from edgepose.converters.training.pictures import PictureTask
from edgepose.decode import decode
from edgepose.errors import TrainingError
from edgepose.lifting import MISSING
from edgepose.models.registry import get_model
from edgepose.skeletons import get_skeleton

pytestmark = pytest.mark.usefixtures("one_thread")

BODY = get_skeleton("h36m17")
LSP = get_skeleton("lsp14")
LIFTER = replace(get_model("ampose-s"), sizes={"d_model": 16, "layers": 1, "heads": 2})
STANDING = {
    "hip": (0.13, 0), "knee": (0.13, -0.44), "ankle": (0.13, -0.89), "shoulder": (0.16, 0.49),
    "elbow": (0.18, 0.21), "wrist": (0.19, -0.04), "pelvis": (0, 0), "spine": (0, 0.23), "thorax": (0, 0.49),
    "neck": (0, 0.61), "head": (0, 0.73),
}  # fmt: skip


def poses(sequences=4, frames=12, seed=0, loose=0.03):
    """People who stand about with loose limbs: metres, Z up."""
    rng = np.random.default_rng(seed)
    body = np.zeros((17, 3))
    for i, name in enumerate(BODY.joints):
        across, up = STANDING[name.rpartition("_")[2]]
        body[i] = [across if name.startswith("left") else -across, 0, up]
    xyz = body + rng.normal(0, loose, (sequences * frames, 17, 3))
    return (xyz - xyz[:, :1]).astype(np.float32), np.repeat(np.arange(sequences), frames)


@pytest.fixture
def mocap(tmp_path):
    path = tmp_path / "poses.npz"
    xyz, sequences = poses()
    np.savez(path, poses=xyz, seq_id=sequences)
    return path


def lifting(mocap, out, epochs=3, *, model=None, **options):
    settings = Settings(epochs, batch=16, lr=1e-2, seed=1)
    task = LiftingTask(mocap, LIFTER.spec, 1)
    return train(model or build_random(LIFTER, 1).model, task, out, settings, **options)


class Regression:
    """A line through points; remembers in what precision it was computed."""

    identity, higher_is_better = "points", False

    def __init__(self):
        self.seen = set()

    def steps(self, batch):
        return 20

    def batches(self, epoch, batch):
        x = torch.linspace(-1, 1, batch)[:, None]
        return iter([(x, 3 * x + 1)] * 20)

    def loss(self, model, batch):
        found = model(batch[0])
        self.seen.add(found.dtype)
        return (found.float() - batch[1]).square().mean()

    def score(self, model):
        x, y = next(self.batches(1, 8))
        return {"error": float((model(x) - y).square().mean())}


# --- loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_taken_where_it_is_asked_for_and_the_processor_has_it(tmp_path, monkeypatch, asked, has):
    isa = ["avx512f", "avx512_bf16"] if has else ["avx512f"]
    monkeypatch.setattr("edgepose.converters.training.loop.instruction_sets", lambda: isa)
    task, settings = Regression(), Settings(4, batch=16, lr=0.3, average=0.5, bfloat16=asked)
    history = train(nn.Linear(1, 1), task, tmp_path / "w.pth", settings)
    assert task.seen == {torch.bfloat16 if asked and has else torch.float32}
    assert history[-1].scores["error"] < 0.02
    weights = torch.load(tmp_path / "w.pth", weights_only=True)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_training_learns_and_writes_what_conversion_reads(mocap, tmp_path):
    seen: list[Epoch] = []
    stages: list[str] = []
    history = lifting(
        mocap, tmp_path / "w.pth", 30, report=seen.append, progress=lambda stage, done, total: stages.append(stage)
    )
    assert seen == history
    assert history[-1].scores["MPJPE"] < 0.5 * history[0].scores["MPJPE"]
    assert list(history[0].scores) == ["MPJPE", "P-MPJPE", "MPJPE 1% off", "MPJPE any camera"]
    assert re.fullmatch(r"train: epoch 30/30, loss 0\.\d+, under 1 min left", stages[-1])
    model = load_checkpoint(tmp_path / "w.pth", LIFTER).model
    with torch.inference_mode():
        scored = LiftingTask(mocap, LIFTER.spec, 1).score(model)
    assert scored["MPJPE"] == pytest.approx(history[-1].scores["MPJPE"], abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["poses.npz", "w.pth", "w.resume.pth"]


def test_interrupted_and_resumed_is_uninterrupted(mocap, tmp_path):
    lifting(mocap, tmp_path / "whole.pth", 4)

    def interrupt(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lifting(mocap, tmp_path / "parts.pth", 4, report=interrupt)
    other = build_random(LIFTER, 99).model  # the weights that it starts from are replaced
    history = lifting(mocap, tmp_path / "parts.pth", 4, model=other, resume=True)
    assert [epoch.number for epoch in history] == [1, 2, 3, 4]
    whole, parts = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for key, tensor in whole.items():
        torch.testing.assert_close(parts[key], tensor, rtol=0, atol=1e-6)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(mocap, tmp_path):
    first, again = (lifting(mocap, tmp_path / name, 1)[0].loss for name in ("a.pth", "b.pth"))
    settings = Settings(1, batch=16, lr=1e-2, seed=2)
    other = train(build_random(LIFTER, 1).model, LiftingTask(mocap, LIFTER.spec, 2), tmp_path / "c.pth", settings)
    assert first == again != other[0].loss


class _Breaking(LiftingTask):
    """A loss that is not finite from the given step."""

    step, breaks = 0, 4

    def loss(self, model, batch):
        self.step += 1
        return super().loss(model, batch) * (float("nan") if self.step >= self.breaks else 1)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(mocap, tmp_path):
    task = _Breaking(mocap, LIFTER.spec, 1)
    steps = task.steps(16)
    task.breaks = steps + 1  # the first of the second epoch
    message = (
        rf"the loss is nan .* in step {steps + 1} \(epoch 2\): stopped, .*w.pth has the weights of epoch 1; take a"
    )
    with pytest.raises(TrainingError, match=message):
        train(build_random(LIFTER, 1).model, task, tmp_path / "w.pth", Settings(3, batch=16, lr=1e-2, seed=1))
    good = load_checkpoint(tmp_path / "w.pth", LIFTER).model  # refuses weights that are not finite
    with torch.inference_mode():
        assert np.isfinite(task.score(good)["MPJPE"])


def test_a_first_epoch_that_breaks_writes_nothing(mocap, tmp_path):
    task = _Breaking(mocap, LIFTER.spec, 1)
    task.breaks = 1
    with pytest.raises(TrainingError, match="nothing was written"):
        train(build_random(LIFTER, 1).model, task, tmp_path / "w.pth", Settings(3, batch=16))
    assert [path.name for path in tmp_path.iterdir()] == ["poses.npz"]


def test_weights_that_are_there_survive_a_write_that_fails(mocap, tmp_path, monkeypatch):
    lifting(mocap, tmp_path / "w.pth", 1)
    before = (tmp_path / "w.pth").read_bytes()

    def full(content, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        lifting(mocap, tmp_path / "w.pth", 2)
    assert (tmp_path / "w.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["poses.npz", "w.pth", "w.resume.pth"]


def test_resuming_names_what_has_changed(mocap, tmp_path):
    out = tmp_path / "w.pth"
    with pytest.raises(TrainingError, match=r"w\.resume\.pth: not there, so there is nothing to resume"):
        lifting(mocap, out, resume=True)
    lifting(mocap, out, 1)
    with pytest.raises(TrainingError, match="cannot go on: epochs was 1 and is 2"):
        lifting(mocap, out, 2, resume=True)
    xyz, sequences = poses(seed=5)
    np.savez(mocap, poses=xyz, seq_id=sequences)
    with pytest.raises(TrainingError, match=r"cannot go on: data was poses.npz \w+ bbox and is poses.npz"):
        lifting(mocap, out, 1, resume=True)
    resume_path(out).write_bytes(b"PK")
    with pytest.raises(TrainingError, match="damaged, or not written by a training: start again with --force"):
        lifting(mocap, out, 1, resume=True)


# --- lifting data ------------------------------------------------------------------------------------------------


def test_whole_sequences_are_held_out():
    sequences = np.repeat(np.arange(40), 5)
    held = split_sequences(sequences, 0)
    assert len(np.unique(sequences[held])) == 6
    assert not set(sequences[held]) & set(sequences[~held])
    assert (held == split_sequences(sequences, 0)).all()
    assert (held != split_sequences(sequences, 1)).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda xyz, seq: {"seq_id": seq}, "no member 'poses'"),
        (lambda xyz, seq: {"poses": xyz[:, :16], "seq_id": seq}, r"poses: expected shape \(any, 17, 3\), got"),
        (lambda xyz, seq: {"poses": xyz, "seq_id": seq[:3]}, r"seq_id: expected shape \(48\), got \(3,\)"),
        (lambda xyz, seq: {"poses": xyz.astype(object), "seq_id": seq}, "poses"),
        (lambda xyz, seq: {"poses": xyz * np.nan, "seq_id": seq}, "48 poses are not finite, the first is pose 0"),
        (lambda xyz, seq: {"poses": xyz, "seq_id": 0 * seq}, "of at least two sequences are needed"),
        (lambda xyz, seq: {"poses": 1000 * xyz, "seq_id": seq}, "expected metres, Z up, .* the thigh is"),
        (lambda xyz, seq: {"poses": xyz[..., [0, 2, 1]], "seq_id": seq}, "Z up"),
        (lambda xyz, seq: {"poses": xyz + 1, "seq_id": seq}, "the pelvis at the origin"),
    ],
)
def test_files_that_are_no_poses_are_refused_in_one_line(tmp_path, change, message):
    np.savez(tmp_path / "p.npz", **change(*poses()))
    with pytest.raises(DatasetError, match=message) as error:
        read_poses(tmp_path / "p.npz")
    assert str(tmp_path / "p.npz") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_no_npz_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"no such file: an \.npz file with poses"):
        LiftingTask(tmp_path / "p.npz", LIFTER.spec, 0)
    (tmp_path / "p.npz").write_bytes(b"poses")
    with pytest.raises(DatasetError, match=r"p\.npz: .*; get the file again"):
        read_poses(tmp_path / "p.npz")


@pytest.mark.parametrize("wide", [0.0, 1.0])
def test_pictures_are_taken_by_a_pinhole(wide):
    """One focal length, and one place for each person, explain all its joints."""
    xyz, _ = poses(frames=50)
    xy, seen = view(xyz, np.random.default_rng(0), wide)
    lengths = [np.linalg.norm(p[:, 2] - p[:, 1], axis=1) for p in (xyz, seen)]
    np.testing.assert_allclose(*lengths, rtol=1e-4)
    screen = xy.astype(float) / 500 - 1
    for s, p in zip(screen, seen.astype(float), strict=True):
        # s (Z + z) = 2 f (X + x): linear in 2 f, 2 f X, 2 f Y and Z
        zeros, ones = np.zeros(17), np.ones(17)
        rows = [np.column_stack([p[:, 0], ones, zeros, -s[:, 0]]), np.column_stack([p[:, 1], zeros, ones, -s[:, 1]])]
        (two_f, *_, depth), *_ = np.linalg.lstsq(np.concatenate(rows), (s * p[:, 2:]).T.ravel(), rcond=None)
        assert two_f / 2 == pytest.approx(1.15, abs=0.06) if not wide else 0.55 < two_f / 2 < 2.1
        assert depth > 1.5


def test_people_stand_upright_in_the_picture():
    """y points down, the head is above the feet, and left is on the left of those who turn their back."""
    xyz, _ = poses(frames=50)
    xy, seen = view(xyz, np.random.default_rng(0), 0)
    head, ankle = BODY.joints.index("head"), BODY.joints.index("left_ankle")
    assert (xy[:, head, 1] < xy[:, ankle, 1]).all()
    side = xyz[:, 4] - xyz[:, 1]
    up = xyz[:, 8]
    turned = seen[:, 4] - seen[:, 1]
    before, after = (
        np.linalg.det(np.stack([side, up, xyz[:, 3]], 1)),
        np.linalg.det(np.stack([turned, seen[:, 8], seen[:, 3]], 1)),
    )
    np.testing.assert_allclose(after, before, atol=1e-4)  # turned, not mirrored


def test_other_bodies_are_symmetric_and_mirrored_ones_keep_left_and_right():
    xyz, _ = poses(frames=50, loose=0)
    bodies = other_bodies(xyz, np.random.default_rng(0))
    hip, knee, ankle = 4, 5, 6
    left, right = (np.linalg.norm(bodies[:, k] - bodies[:, h], axis=1) for k, h in ((knee, hip), (2, 1)))
    np.testing.assert_allclose(left, right, rtol=1e-4)
    assert (bodies[:, hip, 0] > bodies[:, 1, 0]).all()
    assert np.ptp(np.linalg.norm(bodies[:, ankle] - bodies[:, knee], axis=1)) > 0.05
    assert (bodies[:, 0] == 0).all()


def test_some_joints_are_missing_in_training_and_none_without_need(mocap):
    task = LiftingTask(mocap, LIFTER.spec, 0)
    keypoints = torch.cat([x for epoch in range(30) for x, _ in task.batches(epoch, 8)])
    share = float((keypoints[..., 0] == MISSING).float().mean())
    assert 0.01 < share < 0.1
    assert torch.equal(keypoints[..., 0] == MISSING, keypoints[..., 1] == MISSING)
    assert keypoints.isfinite().all()


def test_held_out_clips_are_those_that_training_does_not_see(mocap):
    clips = list(MocapPoses(mocap, seed=0).clips())
    assert sum(len(clip.keypoints_xyz) for clip in clips) == len(LiftingTask(mocap, LIFTER.spec, 0).held)
    assert clips[0].keypoints_xy.shape == (12, 17, 2)
    np.testing.assert_array_equal(clips[0].keypoints_xyz, next(MocapPoses(mocap, seed=0).clips(1)).keypoints_xyz)


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.fixture
def leeds(tmp_path):
    """People of fourteen coloured dots: the red channel says which joint it is."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    labels = np.zeros((6, 14, 3))
    for i in range(6):
        image = np.zeros((240, 200, 3), np.uint8)
        labels[i, :, :2] = rng.permutation(np.mgrid[40:170:3j, 40:210:5j].reshape(2, -1).T)[:14]
        labels[i, :, 2] = 1
        for k, (x, y, _) in enumerate(labels[i]):
            cv2.circle(image, (int(x), int(y)), 7, (0, 255, 40 + 15 * k), -1)
        cv2.imwrite(str(tmp_path / "images" / f"{i:05d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    labels[0, 3, 2] = 0
    np.savez(tmp_path / "joints.npz", ids=np.arange(6), joints=labels)
    return LeedsSports(tmp_path)


SPEC = ModelSpec.pose2d("m", (128, 96), "lsp14")


def test_labels_follow_the_turned_scaled_and_mirrored_picture(leeds):
    """The colour under each label is its joint's; of a mirrored picture, its partner's."""
    task = PictureTask(leeds, leeds, SPEC, seed=0)
    checked, mirrored = 0, 0
    for epoch in range(6):
        for crops, joints, counts in task.batches(epoch, 3):
            for crop, points, counted in zip(crops.numpy(), joints.numpy(), counts.numpy(), strict=True):
                x, y = (points * [95 / 23, 127 / 31]).round().astype(int).T
                inside = (counted > 0) & (x > 2) & (y > 2) & (x < 93) & (y < 125)
                colours = (crop[y[inside], x[inside], 0].astype(float) - 40) / 15
                k = np.flatnonzero(inside)
                if not len(k):
                    continue
                right = [np.abs(colours - order[k]).mean() for order in (np.arange(14), np.array(LSP.flip_order))]
                assert min(right) < 1
                checked, mirrored = checked + len(k), mirrored + (right[1] < right[0])
    assert checked > 150
    assert 8 < mirrored < 28


def test_targets_decode_to_the_labels_and_weigh_only_what_is_labelled(leeds):
    task = PictureTask(leeds, leeds, SPEC, seed=0)
    crops, joints, counts = next(iter(task.batches(1, 6)))

    class Perfect(nn.Module):
        """Answers with a Gaussian of the reference's width at each label, and with noise where nothing counts."""

        def forward(self, x):
            grid = torch.stack(torch.meshgrid(torch.arange(32), torch.arange(24), indexing="ij")).flip(0).float()
            squared = ((grid[None, None] - joints[..., None, None]) ** 2).sum(2)
            return torch.where(counts[..., None, None] > 0, torch.exp(-squared / 2), 9.0)

    model = Perfect()
    assert float(task.loss(model, (crops, joints, counts))) == pytest.approx(0, abs=1e-9)
    assert float(counts.sum()) < 84
    found, _ = decode(model(crops).numpy(), np.array([[11.5, 15.5, 24, 32]] * 6))
    middle = (counts.numpy() > 0) & ((joints > 2) & (joints < torch.tensor([21, 29]))).all(-1).numpy()
    np.testing.assert_allclose(found[middle], joints.numpy()[middle], atol=0.1)


def test_heatmaps_are_learned_and_scored_by_the_data_set(leeds, tmp_path):
    row = replace(get_model("transpose-r-t"), sizes={
        "d_model": 32, "feedforward": 32, "heads": 2, "layers": 1, "stem": 8, "planes": (8, 8), "deconv": 16
    })  # fmt: skip
    task = PictureTask(leeds, leeds, row.spec, seed=0, workers=1)
    history = train(build_random(row, 0).model, task, tmp_path / "w.pth", Settings(10, batch=6, lr=1e-2))
    assert list(history[-1].scores) == ["PCK@0.2", "PCK@0.1"]
    assert min(epoch.loss for epoch in history[-3:]) < 0.8 * history[0].loss
    load_checkpoint(tmp_path / "w.pth", row)


def test_samples_do_not_depend_on_the_number_of_threads(leeds):
    first, again = (next(iter(PictureTask(leeds, leeds, SPEC, 3, workers).batches(2, 4))) for workers in (1, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_picture_that_cannot_be_decoded_is_named(leeds):
    file = leeds.path / "images" / "00002.jpg"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"00002.jpg: cannot be decoded"):
        list(PictureTask(leeds, leeds, SPEC, 0).batches(1, 6))
