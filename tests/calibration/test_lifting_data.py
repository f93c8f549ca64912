"""Human3.6M and MPI-INF-3DHP from files in the layouts of the community's tools, with cameras that the test knows."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from edgepose import DatasetError
from edgepose.calibration.datasets.h36m import CAMERAS, Human36M
from edgepose.calibration.datasets.mpi_inf_3dhp import JOINTS, MpiInf3dhp
from edgepose.calibration.datasets.resection import resect
from edgepose.skeletons import get_skeleton

KEPT = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]
METADATA = {"num_joints": 17, "keypoints_symmetry": [[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]]}
H36M17 = get_skeleton("h36m17").joints

# --- a studio like Human3.6M's -----------------------------------------------------------------------------------


def walk(frames, rng, joints=32):
    """(F, joints, 3) world metres: one body that turns and wanders through a room of 4 x 3 m, Z up."""
    body = rng.normal(0, 1, (joints, 3)) * [0.2, 0.2, 0.45]
    body[0] = 0
    limbs = rng.normal(0, 0.12, (frames, joints, 3))
    limbs[:, 0] = 0
    turns = Rotation.from_euler("z", rng.uniform(0, 2 * np.pi, (frames, 1))).as_matrix()
    places = np.column_stack([rng.uniform(-2, 2, frames), rng.uniform(-1.5, 1.5, frames), np.full(frames, 0.95)])
    return (body + limbs) @ turns.transpose(0, 2, 1) + places[:, None]


class Camera:
    """As in Human3.6M: about 1145 px of focal length, barrel distortion, a centre that is some pixels off."""

    def __init__(self, place, rng, tangential=True):
        self.place = np.array(place)
        forward = np.array([*rng.uniform(-0.4, 0.4, 2), rng.uniform(0.6, 1)]) - self.place
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        self.rotation = np.stack([right, np.cross(forward, right), forward])
        self.focal = rng.uniform(1140, 1150, 2)
        self.centre = rng.uniform(500, 520, 2)
        self.radial = (-0.2, 0.24, -0.002)
        self.tangential = rng.choice([-1, 1], 2) * rng.uniform(0.0008, 0.0027, 2) * tangential

    def view(self, world):
        """(..., 2) pixels: Human3.6M's own model, written out for one coordinate after the other."""
        x, y, z = np.moveaxis((world - self.place) @ self.rotation.T, -1, 0)
        x, y = x / z, y / z
        r2 = x * x + y * y
        k1, k2, k3 = self.radial
        p1, p2 = self.tangential
        stretch = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + p1 * x + p2 * y
        u = self.focal[0] * (x * stretch + p1 * r2) + self.centre[0]
        v = self.focal[1] * (y * stretch + p2 * r2) + self.centre[1]
        return np.stack([u, v], axis=-1)


PLACES = ((1.8, 4.9, 1.6), (1.7, -5.1, 1.5), (-1.9, 4.6, 1.4), (-2.0, -4.8, 1.6))


@pytest.fixture(scope="module")
def studio():
    """Subject -> action -> poses, and subject -> four cameras, which stand a little different for each."""
    rng = np.random.default_rng(0)
    lengths = {"Walking 1": 90, "Walking": 60, "SittingDown 2": 80}
    poses = {
        subject: {action: walk(frames, rng).astype(np.float32) for action, frames in lengths.items()}
        for subject in ("S1", "S9", "S11")
    }
    cameras = {subject: [Camera(place, rng) for place in PLACES] for subject in poses}
    return poses, cameras


def views(studio, noise=0.0, extra=0):
    """Subject -> action -> four cameras of pixels, with that many frames after the end."""
    poses, cameras = studio
    rng = np.random.default_rng(1)

    def view(camera, world):
        points = camera.view(world[:, KEPT].astype(float))
        points = np.concatenate([points, np.full((extra, 17, 2), 7.0)])
        return (points + rng.normal(0, noise, points.shape)).astype(np.float32)

    return {
        subject: {action: [view(camera, world) for camera in cameras[subject]] for action, world in actions.items()}
        for subject, actions in poses.items()
    }


def write_h36m(folder, poses, **keypoints):
    """The files of VideoPose3D's prepare_data_h36m.py and its relatives."""
    np.savez_compressed(folder / "data_3d_h36m.npz", positions_3d=poses)
    for name, positions in keypoints.items():
        np.savez_compressed(folder / f"data_2d_h36m_{name}.npz", positions_2d=positions, metadata=METADATA)
    return folder


@pytest.fixture
def h36m(studio, tmp_path):
    return write_h36m(tmp_path, studio[0], gt=views(studio))


def error_mm(clip, studio):
    """How far the clip's poses are from those that the true camera has."""
    subject, camera = clip.name.split()[0], clip.name.split()[-1]
    action = clip.name.removeprefix(subject + " ").removesuffix(" " + camera)
    world = studio[0][subject][action][:, KEPT].astype(float)
    truth = (world - world[:, :1]) @ studio[1][subject][list(CAMERAS).index(camera)].rotation.T
    return 1000 * np.linalg.norm(truth - clip.keypoints_xyz, axis=-1).mean()


def test_h36m_clips(h36m, studio):
    data = Human36M(h36m)
    clips = list(data.clips())
    assert (data.kind, data.skeleton, data.path) == ("h36m", "h36m17", h36m)
    actions = ("SittingDown 2", "Walking", "Walking 1")
    assert [clip.name for clip in clips] == [f"{s} {a} {c}" for s in ("S9", "S11") for a in actions for c in CAMERAS]
    assert {clip.group for clip in clips} == {"SittingDown", "Walking"}
    assert [clip.image_wh for clip in clips[:4]] == [(1000, 1002), (1000, 1000), (1000, 1000), (1000, 1002)]
    clip = clips[9]
    assert (clip.keypoints_xy.shape, clip.keypoints_xyz.shape) == ((90, 17, 2), (90, 17, 3))
    assert clip.keypoints_xy.dtype == clip.keypoints_xyz.dtype == np.float32
    assert clip.keypoints_xy == pytest.approx(views(studio)["S9"]["Walking 1"][1])
    assert not clip.keypoints_xyz[:, 0].any()
    assert clip.valid.all()
    assert clip.valid.shape == (90,)


def test_h36m_cameras_are_recovered_from_projected_labels(h36m, studio):
    """The noise is that of float32 pixels: 3e-5 of them."""
    assert max(error_mm(clip, studio) for clip in Human36M(h36m).clips()) < 0.01


@pytest.mark.parametrize("tangential", [False, True])
def test_cameras_are_recovered_from_noisy_points(tangential):
    """3 px on each coordinate, and one joint in fifty anywhere; every camera turns a pose by less than 1 mm."""
    rng = np.random.default_rng(2)
    for place in PLACES[:2]:
        camera, world = Camera(place, rng, tangential), walk(40_000 // 17, rng, 17)
        pixels = camera.view(world) + rng.normal(0, 3, (*world.shape[:2], 2))
        lost = rng.random(world.shape[:2]) < 0.02
        pixels[lost] = rng.uniform(0, 1000, (lost.sum(), 2))
        found = resect(world.reshape(-1, 3), pixels.reshape(-1, 2), (1000, 1000), "here")
        relative = world - world[:, :1]
        moved = np.linalg.norm(relative @ (found.rotation - camera.rotation).T, axis=-1)
        assert 1000 * moved.mean() < 1
        assert found.median_px == pytest.approx(3 * 1.1774, rel=0.05)  # the median of a Rayleigh distribution
        assert found.rotation @ found.rotation.T == pytest.approx(np.eye(3))


def test_h36m_detections_alone_serve_too(studio, tmp_path):
    """The few frames of this studio leave more open than a real subject's 50,000 would."""
    data = Human36M(write_h36m(tmp_path, studio[0], cpn_ft_h36m_dbb=views(studio, noise=3)))
    assert data.sources() == [tmp_path / "data_3d_h36m.npz", tmp_path / "data_2d_h36m_cpn_ft_h36m_dbb.npz"]
    assert max(error_mm(clip, studio) for clip in data.clips()) < 5


@pytest.mark.parametrize("name", ["cpn_ft_h36m_dbb", "data_2d_h36m_cpn_ft_h36m_dbb.npz"])
def test_h36m_inputs_from_detections_and_cameras_from_labels(studio, tmp_path, name):
    detected = views(studio, noise=3)
    data = Human36M(
        write_h36m(tmp_path, studio[0], gt=views(studio), cpn_ft_h36m_dbb=detected), keypoints_2d=name, split="train"
    )
    files = ["data_3d_h36m.npz", "data_2d_h36m_cpn_ft_h36m_dbb.npz", "data_2d_h36m_gt.npz"]
    assert [file.name for file in data.sources()] == files
    data.subjects = ("S1",)
    clips = list(data.clips(limit=2))
    assert clips[1].keypoints_xy == pytest.approx(detected["S1"]["SittingDown 2"][1])
    assert error_mm(clips[1], studio) < 0.01


def test_h36m_frames(studio, tmp_path):
    """Frames that only the 2D file has are cut, a stride takes the same frames of both, a limit counts clips."""
    folder = write_h36m(tmp_path, studio[0], gt=views(studio, extra=3))
    whole, strided = list(Human36M(folder).clips(limit=3)), list(Human36M(folder, stride=7).clips(limit=3))
    assert len(whole) == len(strided) == 3
    assert len(whole[2].keypoints_xy) == 80
    assert np.array_equal(whole[2].keypoints_xy[::7], strided[2].keypoints_xy)
    assert np.array_equal(whole[2].keypoints_xyz[::7], strided[2].keypoints_xyz)
    assert len(strided[2].valid) == 12


def test_h36m_is_the_same_every_time(h36m):
    data = Human36M(h36m)
    first, second = next(data.clips()), next(Human36M(h36m).clips())
    assert np.array_equal(first.keypoints_xyz, second.keypoints_xyz)
    assert np.array_equal(first.keypoints_xyz, next(data.clips()).keypoints_xyz)


def test_h36m_missing_files(studio, tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere: no data_3d_h36m\.npz here \(there is no such folder\)"):
        Human36M(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"no data_3d_h36m\.npz here \(there are: no \.npz files\); VideoPose3D's"):
        Human36M(tmp_path)
    write_h36m(tmp_path, {})
    with pytest.raises(DatasetError, match=r"no data_2d_h36m_gt\.npz here \(there are: data_3d_h36m\.npz\); name one"):
        Human36M(tmp_path)
    write_h36m(tmp_path, {}, hr={}, cpn={})
    with pytest.raises(DatasetError, match=r"no data_2d_h36m_gt\.npz .*: data_2d_h36m_cpn\.npz, data_2d_h36m_hr\.npz"):
        Human36M(tmp_path)
    with pytest.raises(DatasetError, match=r"no data_2d_h36m_sh\.npz here .* name one as keypoints_2d"):
        Human36M(tmp_path, keypoints_2d="sh")


def test_h36m_arguments(h36m):
    with pytest.raises(DatasetError, match=r"no split 'val' \(there are: train, test\)"):
        Human36M(h36m, split="val")
    with pytest.raises(DatasetError, match="stride 0 takes no frame"):
        Human36M(h36m, stride=0)
    with pytest.raises(DatasetError, match=r"data_3d_h36m\.npz: no subject 'S5' \(there are: S1, S9, S11\)"):
        list(Human36M(h36m, split="train").clips())


def change(keypoints, part):
    """S9's first action with its second camera replaced."""
    part_of = keypoints["S9"]["SittingDown 2"]
    part_of[1] = part(part_of[1])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda xy: xy[:-5], "S9, SittingDown 2, camera 55011271: expected 80 frames or more, as in 3D, got 75"),
        (lambda xy: xy[:, :16], r"camera 55011271: expected shape \(any, 17, 2\), got \(80, 16, 2\)"),
        (lambda xy: xy * np.nan, "camera 55011271: keypoints are not finite"),
        (lambda xy: None, "camera 55011271: expected an array of numbers, got NoneType"),
    ],
)
def test_h36m_malformed_keypoints(studio, tmp_path, part, message):
    keypoints = views(studio)
    change(keypoints, part)
    with pytest.raises(DatasetError, match=r"data_2d_h36m_gt\.npz: .*" + message):
        list(Human36M(write_h36m(tmp_path, studio[0], gt=keypoints)).clips())


def test_h36m_malformed_files(studio, tmp_path):
    poses, keypoints = studio[0], views(studio)

    def fails(message, poses=poses, keypoints=keypoints):
        with pytest.raises(DatasetError, match=message):
            list(Human36M(write_h36m(tmp_path, poses, gt=keypoints)).clips())

    fails(r"3d_h36m\.npz: expected a dict by subject, got ndarray", poses=np.zeros(3))
    fails(r"3d_h36m\.npz: S9: expected a dict by action, got int", poses={"S9": 1})
    fails(r"S9, Walking: expected shape \(any, 32, 3\), got \(2, 17, 3\)", {"S9": {"Walking": np.zeros((2, 17, 3))}})
    fails(r"gt\.npz: no subject 'S9' \(there are: S1\)", keypoints={"S1": {}})
    fails(r"gt\.npz: S9: no action 'SittingDown 2' \(there are: none\)", keypoints={"S9": {}})
    fails(r"gt\.npz: S9, SittingDown 2: expected 4 cameras, got 2", keypoints={"S9": {"SittingDown 2": [1, 2]}})
    fails(r"gt\.npz: S9: expected a dict by action, got float", keypoints={"S9": 1.0})
    fails("expected 4 cameras, got int", keypoints={"S9": {"SittingDown 2": 4}})


def test_h36m_of_two_preparations(studio, tmp_path):
    """The cameras are in another order for each action: no camera sees that."""
    keypoints = views(studio)
    keypoints["S9"]["Walking 1"].reverse()
    with pytest.raises(DatasetError) as caught:
        list(Human36M(write_h36m(tmp_path, studio[0], gt=keypoints)).clips())
    assert re.search(
        r"gt\.npz: S9, camera 54138969: (is no projection of data_3d_h36m\.npz \(the best camera misses by \d+ px\)"
        r"|no camera sees these joints); take the 2D and 3D files from one preparation$",
        str(caught.value),
    )


def test_h36m_too_few_points(studio, tmp_path):
    poses = {"S9": {"Walking": np.zeros((0, 32, 3), np.float32)}}
    keypoints = {"S9": {"Walking": [np.zeros((0, 17, 2), np.float32)] * 4}}
    with pytest.raises(DatasetError, match="S9, camera 54138969: 0 points are too few or too alike to find the camera"):
        list(Human36M(write_h36m(tmp_path, poses, gt=keypoints)).clips())


def test_h36m_points_that_are_all_one():
    with pytest.raises(DatasetError, match=r"^here: .*camera"):
        resect(np.ones((100, 3)), np.full((100, 2), 500.0), (1000, 1000), "here")


def test_h36m_joints_of_another_skeleton(studio, tmp_path):
    folder = write_h36m(tmp_path, studio[0], gt=views(studio))
    coco = {"layout_name": "coco", "num_joints": 17, "keypoints_symmetry": [[1, 3, 5], [2, 4, 6]]}
    np.savez_compressed(folder / "data_2d_h36m_coco.npz", positions_2d=views(studio), metadata=coco)
    with pytest.raises(
        DatasetError, match=r"h36m_coco\.npz: its joints are not Human3\.6M's 17 \(left and right are \[\["
    ):
        next(Human36M(folder, keypoints_2d="coco").clips())


# --- MPI-INF-3DHP -------------------------------------------------------------------------------------------------


def body_mm(frames):
    """(F, 17, 3) camera millimetres: a person who stands 3 m away; each joint has its own depth."""
    heights = [-700, -450, *[-440, -200, 0] * 2, *[10, 400, 800] * 2, 0, -220, -580]
    sides = [0, 0, *[-150, -160, -170], *[150, 160, 170], *[-120, -130, -140], *[120, 130, 140], 0, 0, 0]
    pose = np.stack([sides, heights, 3000 + np.arange(17)], axis=-1).astype(float)
    return pose + np.random.default_rng(frames).normal(0, 30, (frames, 1, 3))


def sequence(frames=6, **changes):
    number = np.arange(frames * 34, dtype=float).reshape(frames, 17, 2)
    return {"data_2d": number, "data_3d": body_mm(frames), "valid": np.ones(frames), **changes}


def write_3dhp(folder, data, split="test"):
    np.savez_compressed(folder / f"data_{split}_3dhp.npz", data=data)
    return folder


def test_3dhp_test_clips(tmp_path):
    valid = np.array([1.0, 0, 1, 1, 0, 1])
    files = {"TS5": sequence(3), "TS2": sequence(valid=valid), "TS1": sequence(4)}
    data = MpiInf3dhp(write_3dhp(tmp_path, files))
    clips = list(data.clips())
    assert (data.kind, data.skeleton, data.sources()) == ("mpi-inf-3dhp", "h36m17", [tmp_path / "data_test_3dhp.npz"])
    assert [(clip.name, clip.image_wh) for clip in clips] == [
        ("TS1", (2048, 2048)),
        ("TS2", (2048, 2048)),
        ("TS5", (1920, 1080)),
    ]
    assert {clip.group for clip in clips} == {"all"}
    assert clips[1].valid.tolist() == [True, False, True, True, False, True]
    assert clips[1].keypoints_xyz.dtype == clips[1].keypoints_xy.dtype == np.float32
    assert len(list(data.clips(limit=1))) == 1


def test_3dhp_joints_and_units(tmp_path):
    """Joints go by name, but for the three of neck and head, whose names mean something else there."""
    clip = next(MpiInf3dhp(write_3dhp(tmp_path, {"TS1": sequence()})).clips())
    theirs = {"thorax": "neck", "neck": "head", "head": "head_top"}
    xyz = body_mm(6)
    for k, joint in enumerate(H36M17):
        index = JOINTS.index(theirs.get(joint, joint))
        assert clip.keypoints_xy[:, k] == pytest.approx(sequence()["data_2d"][:, index])
        assert clip.keypoints_xyz[:, k] == pytest.approx((xyz[:, index] - xyz[:, 14]) / 1000, abs=1e-6)


def test_3dhp_training_clips(tmp_path):
    def cameras(*names):
        return [{name: {key: sequence()[key] for key in ("data_2d", "data_3d")} for name in names}]

    data = {"S2 Seq1": cameras("0"), "S1 Seq2": cameras("10", "0", "2")}
    clips = list(MpiInf3dhp(write_3dhp(tmp_path, data, "train"), split="train", stride=2).clips())
    assert [clip.name for clip in clips] == ["S1 Seq2 0", "S1 Seq2 2", "S1 Seq2 10", "S2 Seq1 0"]
    assert clips[0].valid.tolist() == [True] * 3
    assert clips[0].keypoints_xyz.shape == (3, 17, 3)
    assert np.array_equal(clips[0].keypoints_xy[:, 0], sequence()["data_2d"][::2, 14])


def test_3dhp_missing_files_and_arguments(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere: no data_test_3dhp\.npz here \(there is no such folder\)"):
        MpiInf3dhp(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"no data_test_3dhp\.npz here \(there are: no \.npz files\); P-STMO's"):
        MpiInf3dhp(tmp_path)
    write_3dhp(tmp_path, {"TS1": sequence()})
    with pytest.raises(DatasetError, match=r"no data_train_3dhp\.npz here \(there are: data_test_3dhp\.npz\)"):
        MpiInf3dhp(tmp_path, split="train")
    with pytest.raises(DatasetError, match=r"no split 'val' \(there are: test, train\)"):
        MpiInf3dhp(tmp_path, split="val")
    with pytest.raises(DatasetError, match="stride -1 takes no frame"):
        MpiInf3dhp(tmp_path, stride=-1)


# The same file name is in use for files in Human3.6M's order of joints: from here to there.
H36M_ORDER = [14, 8, 9, 10, 11, 12, 13, 15, 1, 0, 16, 5, 6, 7, 2, 3, 4]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros(3), "data: expected a dict, got ndarray"),
        ({"TS1": 1}, "TS1: expected a dict, got int"),
        ({"TS1": {"data_2d": 1}}, r"TS1: no data_3d \(there are: data_2d\)"),
        ({"TS1": sequence(data_3d=np.zeros((6, 28, 3)))}, r"TS1: data_3d: expected shape \(any, 17, 3\), got \(6, 28,"),
        ({"TS1": sequence(data_2d=np.zeros((5, 17, 2)))}, r"TS1: data_2d: expected shape \(6, 17, 2\), got \(5, 17, 2"),
        ({"TS1": sequence(valid=np.ones(7))}, r"TS1: valid: expected shape \(6\), got \(7,\)"),
        ({"TS1": sequence(data_3d=body_mm(6) / 1000)}, "TS1: a thigh of 0.39; expected millimetres"),
        ({"TS1": sequence(data_3d=body_mm(6)[:, H36M_ORDER])}, "TS1: the joints are not in the order head_top, neck, "),
    ],
)
def test_3dhp_malformed_files(tmp_path, data, message):
    with pytest.raises(DatasetError, match=r"data_test_3dhp\.npz: " + message):
        list(MpiInf3dhp(write_3dhp(tmp_path, data)).clips())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"S1 Seq1": 5}, "S1 Seq1: expected a list with the cameras as its first item, got int"),
        ({"S1 Seq1": []}, "S1 Seq1: expected a list with the cameras as its first item, got list"),
        ({"S1 Seq1": [{"4": []}]}, "S1 Seq1, camera 4: expected a dict, got list"),
        ({"S1 Seq1": [{"4": {}}]}, r"S1 Seq1, camera 4: no data_3d \(there are: none\)"),
    ],
)
def test_3dhp_malformed_training_files(tmp_path, data, message):
    with pytest.raises(DatasetError, match=r"data_train_3dhp\.npz: " + message):
        list(MpiInf3dhp(write_3dhp(tmp_path, data, "train"), split="train").clips())


def test_3dhp_frames_that_do_not_count_may_hold_anything(tmp_path):
    xyz = body_mm(6)
    xyz[:4] = np.nan
    clip = next(MpiInf3dhp(write_3dhp(tmp_path, {"TS1": sequence(data_3d=xyz, valid=np.arange(6) > 3)})).clips())
    assert clip.valid.tolist() == [False] * 4 + [True] * 2
