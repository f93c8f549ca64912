"""Human3.6M in the layout of VideoPose3D's preparation scripts, which most lifting models are trained from.

The files hold 3D joints in the world and 2D joints in four cameras, but no cameras. Where each camera looks is
recovered from the data: only its rotation matters for poses relative to the pelvis.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.calibration.datasets.arrays import as_dict, numeric_array, read_npz
from edgepose.calibration.datasets.base import LiftingClip
from edgepose.calibration.datasets.files import check_split, existing_file, npz_files
from edgepose.calibration.datasets.resection import Resection, resect
from edgepose.errors import DatasetError

__all__ = ["CAMERAS", "SPLITS", "Human36M"]

Floats = NDArray[np.float64]

SPLITS: Mapping[str, tuple[str, ...]] = {"train": ("S1", "S5", "S6", "S7", "S8"), "test": ("S9", "S11")}
"""The protocol of nearly all papers; the official test subjects' labels are not public."""

CAMERAS: Mapping[str, tuple[int, int]] = {
    "54138969": (1000, 1002),
    "55011271": (1000, 1000),
    "58860488": (1000, 1000),
    "60457274": (1000, 1002),
}
"""Camera -> width and height of its pictures, in the order of the 2D files."""

POSES_3D = "data_3d_h36m.npz"
KEYPOINTS_2D = "data_2d_h36m_{}.npz"
JOINTS = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]
"""The 17 of the 32 recorded joints that move and are not doubled, in the order of ``h36m17``."""

SYMMETRY = [[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]]
"""Left and right joints of ``h36m17``, as a 2D file's metadata name them."""

EXACT_POINTS, NOISY_POINTS = 4_000, 40_000
EXACT_PX = 0.1
MAX_MEDIAN_PX = 20.0
"""Fine-tuned detectors miss by some 4 px; cameras or joints that are mixed up miss by a hundred."""


class Human36M:
    """Human3.6M for lifting models.

    A folder holds ``data_3d_h36m.npz`` (``positions_3d``: subject -> action -> (F, 32, 3) world metres) and one or more
    ``data_2d_h36m_<name>.npz`` (``positions_2d``: subject -> action -> four cameras of (F, 17, 2) pixels; frames beyond
    the 3D ones are cut). Cameras are recovered from the ``gt`` file where there is one, whichever file the inputs come
    from. From projected labels the recovered rotation is exact to float32. From detections with 3 px of noise it is
    off by a tenth of a degree, which moves root-relative joints by half a millimetre; where a detector puts a joint
    always to the same side by 1 px, by two millimetres.

    Args:
        path: The folder.
        split: ``test`` (S9, S11) or ``train`` (S1, S5, S6, S7, S8).
        keypoints_2d: Which 2D file, by file name or by ``<name>`` as above; ``gt`` by default, or the only one.
        stride: Takes every n-th frame of a clip.

    Raises:
        DatasetError: A file is missing, or an argument is none of the above.
    """

    kind = "h36m"
    skeleton = "h36m17"

    def __init__(self, path: Path, *, split: str = "test", keypoints_2d: str | None = None, stride: int = 1) -> None:
        check_split(path, split, SPLITS, stride)
        self.path = path
        self.subjects = SPLITS[split]
        self.stride = stride
        self.poses_file = existing_file(path, POSES_3D, "VideoPose3D's")
        self.keypoints_file = _keypoints_file(path, keypoints_2d)
        truth = path / KEYPOINTS_2D.format("gt")
        self.resection_file = truth if truth.exists() else self.keypoints_file
        self._rotations: dict[tuple[str, str], Floats] = {}

    def sources(self) -> list[Path]:
        """The 3D file, the 2D file, and the 2D file that the cameras come from where it is another."""
        return list(dict.fromkeys((self.poses_file, self.keypoints_file, self.resection_file)))

    def clips(self, limit: int | None = None) -> Iterator[LiftingClip]:
        """One clip per subject, action and camera, in this order; actions by name. Group: the action, unnumbered.

        Raises:
            DatasetError: A file is damaged, lacks a subject or an action, has arrays of an unexpected shape, or its 2D
                joints are not projections of its 3D ones.
        """
        return itertools.islice(self._clips(), limit)

    def _clips(self) -> Iterator[LiftingClip]:
        poses = _Recordings(self.poses_file, read_npz(self.poses_file, "positions_3d"))
        keypoints = _open_keypoints(self.keypoints_file)
        exact = keypoints if self.resection_file == self.keypoints_file else _open_keypoints(self.resection_file)
        for subject in self.subjects:
            for action in poses.actions(subject):
                world = poses.world_xyz(subject, action)
                for index, camera in enumerate(CAMERAS):
                    rotation = self._rotation(subject, camera, poses, exact)
                    clip_xy = keypoints.picture_xy(subject, action, index, len(world))
                    yield self._clip(subject, action, camera, world @ rotation.T.astype(np.float32), clip_xy)

    def _clip(
        self, subject: str, action: str, camera: str, xyz: NDArray[np.float32], xy: NDArray[np.float32]
    ) -> LiftingClip:
        xyz = xyz[:: self.stride]
        return LiftingClip(
            name=f"{subject} {action} {camera}",
            keypoints_xy=xy[:: self.stride],
            keypoints_xyz=xyz - xyz[:, :1],
            valid=np.ones(len(xyz), bool),
            image_wh=CAMERAS[camera],
            group=action.split(" ", maxsplit=1)[0],
        )

    def _rotation(self, subject: str, camera: str, poses: _Recordings, keypoints: _Recordings) -> Floats:
        if (subject, camera) not in self._rotations:
            self._rotations[subject, camera] = _recover(subject, camera, poses, keypoints).rotation
        return self._rotations[subject, camera]


@dataclass(frozen=True)
class _Recordings:
    """Subject -> action -> arrays, as the files have them; arrays are checked when they are taken out."""

    file: Path
    subjects: Any

    def actions(self, subject: str) -> list[str]:
        return sorted(as_dict(self._subject(subject), f"{self.file}: {subject}", "action"), key=str)

    def world_xyz(self, subject: str, action: str) -> NDArray[np.float32]:
        """(F, 17, 3) world metres."""
        poses = self._action(subject, action)
        return numeric_array(poses, (None, 32, 3), f"{self.file}: {subject}, {action}")[:, JOINTS]

    def picture_xy(self, subject: str, action: str, camera: int, frames: int) -> NDArray[np.float32]:
        """(frames, 17, 2) pixels."""
        where = f"{self.file}: {subject}, {action}"
        views = _cameras(self._action(subject, action), where)
        where += f", camera {list(CAMERAS)[camera]}"
        points = numeric_array(views[camera], (None, len(JOINTS), 2), where)
        if len(points) < frames:
            raise DatasetError(f"{where}: expected {frames} frames or more, as in 3D, got {len(points)}")
        if not np.isfinite(points).all():
            raise DatasetError(f"{where}: keypoints are not finite")
        return points[:frames]

    def _subject(self, subject: str) -> Any:
        return _child(self.subjects, subject, "subject", str(self.file))

    def _action(self, subject: str, action: str) -> Any:
        return _child(self._subject(subject), action, "action", f"{self.file}: {subject}")


def _child(parent: object, key: str, what: str, where: str) -> Any:
    children = as_dict(parent, where, what)
    if key not in children:
        raise DatasetError(f"{where}: no {what} {key!r} (there are: {', '.join(map(str, children)) or 'none'})")
    return children[key]


def _cameras(views: Any, where: str) -> Any:
    """A list or an array with one item per camera."""
    listed = isinstance(views, (list, tuple)) or (isinstance(views, np.ndarray) and views.ndim > 0)
    if not listed or len(views) != len(CAMERAS):
        got = str(len(views)) if listed else type(views).__name__
        raise DatasetError(f"{where}: expected {len(CAMERAS)} cameras, got {got}")
    return views


def _keypoints_file(folder: Path, name: str | None) -> Path:
    here = {file.name: file for file in sorted(folder.glob(KEYPOINTS_2D.format("*")))}
    wanted = "gt" if name is None else name
    if name is None and len(here) == 1:
        return next(iter(here.values()))
    for candidate in (wanted, KEYPOINTS_2D.format(wanted)):
        if candidate in here:
            return here[candidate]
    raise DatasetError(
        f"{folder}: no {KEYPOINTS_2D.format(wanted)} here ({npz_files(folder)}); name one as keypoints_2d"
    )


def _open_keypoints(file: Path) -> _Recordings:
    """The 2D file, whose metadata must not speak of another skeleton: COCO has 17 joints too."""
    metadata = read_npz(file, "metadata")
    symmetry = metadata.get("keypoints_symmetry") if isinstance(metadata, dict) else None
    if symmetry is not None and not np.array_equal(symmetry, SYMMETRY):
        raise DatasetError(
            f"{file}: its joints are not Human3.6M's 17 (left and right are {symmetry}); take a file in that order"
        )
    return _Recordings(file, read_npz(file, "positions_2d"))


def _recover(subject: str, camera: str, poses: _Recordings, keypoints: _Recordings) -> Resection:
    """The camera of a subject, from few points where they are exact and from more where they are noisy.

    Raises:
        DatasetError: There is no camera that sees the joints where the 2D file has them.
    """
    where = f"{keypoints.file}: {subject}, camera {camera}"
    for count in (EXACT_POINTS, NOISY_POINTS):
        found = resect(*_correspondences(subject, camera, poses, keypoints, count), CAMERAS[camera], where)
        if found.median_px < EXACT_PX:
            break
    if not found.median_px < MAX_MEDIAN_PX:
        raise DatasetError(
            f"{where}: is no projection of {poses.file.name} (the best camera misses by {found.median_px:.0f} px); "
            "take the 2D and 3D files from one preparation"
        )
    return found


def _correspondences(
    subject: str, camera: str, poses: _Recordings, keypoints: _Recordings, count: int
) -> tuple[Floats, Floats]:
    """About ``count`` world points (M, 3) and picture points (M, 2), of frames spread evenly over all actions."""
    world = {action: poses.world_xyz(subject, action) for action in poses.actions(subject)}
    total = sum(map(len, world.values()))
    chosen = np.unique(np.linspace(0, max(total - 1, 0), count // len(JOINTS)).astype(int))
    points_xyz, points_xy = [np.zeros((0, 3))], [np.zeros((0, 2))]
    start = 0
    for action, xyz in world.items():
        frames = chosen[(chosen >= start) & (chosen < start + len(xyz))] - start
        xy = keypoints.picture_xy(subject, action, list(CAMERAS).index(camera), len(xyz))
        points_xyz.append(xyz[frames].reshape(-1, 3).astype(float))
        points_xy.append(xy[frames].reshape(-1, 2).astype(float))
        start += len(xyz)
    return np.concatenate(points_xyz), np.concatenate(points_xy)
