"""Recover a camera from points whose places in the world and in the picture are known."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edgepose.errors import DatasetError

__all__ = ["Resection", "resect"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Resection:
    """A camera recovered from points that it sees.

    Attributes:
        rotation: (3, 3) from world to camera; x right, y down, z forward.
        median_px: Half of the points are reprojected nearer than this.
    """

    rotation: Floats
    median_px: float


# A camera's 15 numbers: rotation vector, translation (metres), focal lengths, principal point, three radial and two
# tangential distortion coefficients.
FOCAL_SHARE = 1.15
_PRIOR_DEVIATION = (*[np.inf] * 6, *[0.2] * 2, *[0.03] * 2, *[0.5] * 3, *[0.003] * 2)
_STEP = np.array([*[1e-6] * 6, *[1e-3] * 4, *[1e-6] * 5])
_ITERATIONS = 30


def resect(world_xyz: Floats, picture_xy: Floats, image_wh: tuple[int, int], where: str) -> Resection:
    """Recover a camera from points: pose by SQPnP, then all 15 numbers by iteratively reweighted least squares.

    Huber weights bound what outliers do. Weak Gaussian priors (a lens about as long as the picture is wide, its centre
    near the picture's, little distortion) decide what noisy points leave open, and vanish beside exact ones. OpenCV's
    calibrateCamera has neither, and its tangential distortion is not Human3.6M's.

    Args:
        world_xyz: (M, 3) metres.
        picture_xy: (M, 2) pixels.
        image_wh: Width and height of the picture.
        where: For people: what the points are of.

    Raises:
        DatasetError: No camera sees these points.
    """
    start = _first_guess(world_xyz, picture_xy, image_wh, where)
    precision = 1 / (np.array(_PRIOR_DEVIATION) * _prior_unit(image_wh)) ** 2
    camera = start
    with np.errstate(all="ignore"):
        for _ in range(_ITERATIONS):
            here_xy = _project(camera, world_xyz)
            residual = picture_xy - here_xy
            weight = _huber_weights(residual)
            slope = _slope(camera, world_xyz, here_xy)
            system = np.einsum("mcp,m,mcq->pq", slope, weight, slope, optimize=True) + np.diag(precision)
            pull = np.einsum("mcp,m,mc->p", slope, weight, residual, optimize=True) - precision * (camera - start)
            change = _solve(system, pull, where)
            camera = camera + change
            if np.abs(change[:3]).max() < 1e-8:
                break
        distance = np.linalg.norm(picture_xy - _project(camera, world_xyz), axis=1)
    return Resection(_rotation_matrix(camera), float(np.median(distance)))


def _prior_unit(image_wh: tuple[int, int]) -> Floats:
    width = float(image_wh[0])
    return np.array([*[1.0] * 6, *[width] * 4, *[1.0] * 5])


def _first_guess(world_xyz: Floats, picture_xy: Floats, image_wh: tuple[int, int], where: str) -> Floats:
    focal, centre = FOCAL_SHARE * image_wh[0], np.array(image_wh) / 2
    matrix = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
    try:
        found, rotation, translation = cv2.solvePnP(world_xyz, picture_xy, matrix, None, flags=cv2.SOLVEPNP_SQPNP)
    except cv2.error:
        found = False
    if not found:
        raise DatasetError(f"{where}: {len(world_xyz)} points are too few or too alike to find the camera")
    return np.concatenate([rotation.ravel(), translation.ravel(), [focal, focal], centre, np.zeros(5)])


def _rotation_matrix(camera: Floats) -> Floats:
    return np.asarray(cv2.Rodrigues(camera[:3])[0], float)


def _project(camera: Floats, world_xyz: Floats) -> Floats:
    """(M, 2) pixels, by the camera model of Human3.6M's own code (three radial and two tangential coefficients)."""
    viewed = world_xyz @ _rotation_matrix(camera).T + camera[3:6]
    plane = viewed[:, :2] / viewed[:, 2:]
    square = (plane**2).sum(axis=1, keepdims=True)
    radial, tangential = camera[10:13], camera[13:15]
    stretch = 1 + square * (radial[0] + square * (radial[1] + square * radial[2])) + (plane @ tangential)[:, None]
    return np.asarray(camera[6:8] * (plane * stretch + tangential * square) + camera[8:10])


def _slope(camera: Floats, world_xyz: Floats, here_xy: Floats) -> Floats:
    """(M, 2, 15) derivative of the projection, by differences from ``here_xy``, the projection itself."""
    ways = [(_project(camera + step, world_xyz) - here_xy) / step.max() for step in np.diag(_STEP)]
    return np.stack(ways, axis=-1)


def _huber_weights(residual: Floats) -> Floats:
    """(M,) inverse variances; the deviation follows from the median (Rayleigh) and is 0.001 px or more."""
    distance = np.asarray(np.linalg.norm(residual, axis=1), float)
    deviation = max(float(np.median(distance)) / 1.1774, 1e-3)
    return np.asarray(np.minimum(1, 2 * deviation / np.maximum(distance, 1e-12)) / deviation**2)


def _solve(system: Floats, pull: Floats, where: str) -> Floats:
    try:
        change = np.asarray(np.linalg.solve(system, pull), float)
    except np.linalg.LinAlgError:
        change = np.full(len(pull), np.nan)
    if not np.isfinite(change).all():
        raise DatasetError(f"{where}: no camera sees these joints; take the 2D and 3D files from one preparation")
    return change
