"""Heatmaps -> keypoints: argmax and DARK refinement, in vectorised numpy.

Source: Zhang et al., "Distribution-Aware Coordinate Representation for Human Pose Estimation" (CVPR 2020), as
the TransPose code applies it: blur each map with an 11 x 11 Gaussian, take the logarithm, and make one Newton
step from the peak. The step reads thirteen pixels around the peak, so only those are blurred here, by one matrix
product from the 15 x 15 pixels that reach them; the answer is that of the full-map blur.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgepose.geometry import scale_and_shift

__all__ = ["argmax", "decode", "flip_back", "refine_dark"]

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

_KERNEL = 11
_HALF = _KERNEL // 2
_STENCIL = [
    (0, 0),
    (-1, 0),
    (1, 0),
    (-2, 0),
    (2, 0),
    (0, -1),
    (0, 1),
    (0, -2),
    (0, 2),
    (-1, -1),
    (1, 1),
    (-1, 1),
    (1, -1),
]
"""Offsets (dx, dy) of the pixels that the central differences read."""

_PATCH = 2 + _HALF
_FLOOR = 1e-10


def _taps() -> NDArray[np.float64]:
    """The 11 taps that OpenCV uses for kernel size 11: sigma = 0.3 ((11 - 1) / 2 - 1) + 0.8 = 2."""
    taps = np.exp(-((np.arange(_KERNEL) - _HALF) ** 2) / (2 * 2.0**2))
    return np.asarray(taps / taps.sum())


def _band(pixels: int) -> Floats:
    """Matrix (pixels, pixels) that blurs a zero-bordered line."""
    distance = np.arange(pixels)[None, :] - np.arange(pixels)[:, None] + _HALF
    inside = (distance >= 0) & (distance < _KERNEL)
    return np.where(inside, _taps()[np.clip(distance, 0, _KERNEL - 1)], 0).astype(np.float32)


def _patch_blur() -> Floats:
    """Matrix (225, 13): a flattened 15 x 15 patch times it is the blurred map at the stencil's pixels."""
    blur = _band(2 * _PATCH + 1)
    return np.stack([np.outer(blur[_PATCH + dy], blur[_PATCH + dx]).ravel() for dx, dy in _STENCIL], axis=1)


def _differences() -> Floats:
    """Matrix (13, 5): stencil values times it are d/dx, d/dy, d2/dx2, d2/dy2, d2/dxdy at the peak."""
    columns = (
        {(1, 0): 0.5, (-1, 0): -0.5},
        {(0, 1): 0.5, (0, -1): -0.5},
        {(2, 0): 0.25, (0, 0): -0.5, (-2, 0): 0.25},
        {(0, 2): 0.25, (0, 0): -0.5, (0, -2): 0.25},
        {(1, 1): 0.25, (-1, -1): 0.25, (1, -1): -0.25, (-1, 1): -0.25},
    )
    return np.array([[column.get(offset, 0) for column in columns] for offset in _STENCIL], dtype=np.float32)


_REACH = np.arange(-_PATCH, _PATCH + 1)
_PATCH_BLUR = _patch_blur()
_DIFFERENCES = _differences()


def argmax(heatmaps: Floats) -> tuple[Indices, Floats]:
    """Peak of each map.

    Args:
        heatmaps: (N, K, h, w) float32.

    Returns:
        Peaks (N, K, 2) as x, y in heatmap pixels, (0, 0) where no value is above zero, and scores (N, K), the
        maxima.
    """
    n, k, h, w = heatmaps.shape
    flat = heatmaps.reshape(n * k, h * w)
    index = flat.argmax(axis=1)
    scores = flat[np.arange(n * k), index]
    index *= scores > 0
    peaks = np.empty((n * k, 2), dtype=np.int64)
    np.divmod(index, w, out=(peaks[:, 1], peaks[:, 0]))
    return peaks.reshape(n, k, 2), scores.reshape(n, k)


def refine_dark(heatmaps: Floats, peaks: Indices, scores: Floats) -> Floats:
    """Move each peak by one Newton step on the logarithm of the blurred map (DARK).

    Peaks closer than two pixels to the border, or with a singular Hessian, stay where they are.

    Args:
        heatmaps: (N, K, h, w) float32.
        peaks: (N, K, 2) from :func:`argmax`.
        scores: (N, K) from :func:`argmax`.

    Returns:
        (N, K, 2) float32 x, y in heatmap pixels.
    """
    n, k, h, w = heatmaps.shape
    flat_peaks = peaks.reshape(n * k, 2)
    refined = flat_peaks.astype(np.float32)
    x, y = flat_peaks.T
    rows = np.flatnonzero((x > 1) & (x < w - 2) & (y > 1) & (y < h - 2))
    if len(rows):
        maps = heatmaps.reshape(n * k, h, w)
        values = _blurred_stencil(maps, rows, x[rows], y[rows])
        if values.min() <= _FLOOR * 10:  # Clipping makes the scale matter, and the scale needs whole blurred maps.
            low = np.flatnonzero(values.min(axis=1) <= _FLOOR * 10)
            values[low] *= (scores.ravel()[rows[low]] / _blurred_maximum(maps[rows[low]]))[:, None]
        refined[rows] += _newton_step(np.log(np.maximum(values, _FLOOR)))
    return refined.reshape(n, k, 2)


def _blurred_stencil(maps: Floats, rows: Indices, x: Indices, y: Indices) -> Floats:
    """Blurred maps (M, h, w)[rows] at the stencil around x, y: (len(rows), 13)."""
    _, h, w = maps.shape
    offsets, inside_x, inside_y = _patch_tables(h, w)
    start = (rows * h + y) * w + x
    patches = maps.take((start[:, None, None] + offsets).astype(np.intp, copy=False), mode="clip")
    patches *= inside_x[x][:, None, :]  # what lies outside the map is black, whatever stands there in memory
    patches *= inside_y[y][:, :, None]
    return np.asarray(patches.reshape(len(rows), -1) @ _PATCH_BLUR)


@lru_cache(maxsize=8)
def _patch_tables(h: int, w: int) -> tuple[Indices, Floats, Floats]:
    """Flat offsets (15, 15) of a patch, and for each column and row which of the patch's 15 lie inside the map."""
    offsets = _REACH[:, None] * w + _REACH
    inside_x, inside_y = (
        ((position >= 0) & (position < size)).astype(np.float32)
        for size in (w, h)
        for position in [np.arange(size)[:, None] + _REACH]
    )
    return offsets, inside_x, inside_y


def _blurred_maximum(maps: Floats) -> Floats:
    """Maximum of each whole blurred map (M, h, w) -> (M,)."""
    full = _band(maps.shape[1]) @ maps @ _band(maps.shape[2])
    return np.asarray(np.maximum(full.max(axis=(1, 2)), _FLOOR))


def _newton_step(log: Floats) -> Floats:
    """-H^-1 g (M, 2) from the stencil's logarithms (M, 13); zero where H is singular."""
    dx, dy, dxx, dyy, dxy = (log @ _DIFFERENCES).T
    det = dxx * dyy - dxy * dxy
    det[det == 0] = np.inf
    step = np.empty((len(log), 2), dtype=np.float32)
    step[:, 0] = (dxy * dy - dyy * dx) / det
    step[:, 1] = (dxy * dx - dxx * dy) / det
    return step


def decode(heatmaps: Floats, regions: NDArray[np.float64]) -> tuple[Floats, Floats]:
    """Heatmaps of N crops -> keypoints in the image they were cut from.

    Args:
        heatmaps: (N, K, h, w) float32, raw output of any engine.
        regions: (N, 4) cx, cy, w, h in image pixels: the crops' regions.

    Returns:
        Keypoints (N, K, 2) float32 in image pixels and scores (N, K) float32, the map maxima.
    """
    peaks, scores = argmax(heatmaps)
    keypoints = refine_dark(heatmaps, peaks, scores)
    h, w = heatmaps.shape[2:]
    scale, shift = scale_and_shift(regions, (w, h))
    return (keypoints * scale[:, None, None] + shift[:, None]).astype(np.float32), scores


def flip_back(heatmaps: Floats, flip_order: tuple[int, ...]) -> Floats:
    """Undo the mirroring of heatmaps (N, K, h, w) of mirrored crops: mirror, and exchange left and right."""
    return heatmaps[:, list(flip_order), :, ::-1]
