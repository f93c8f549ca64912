"""Heatmaps -> keypoints: argmax and DARK refinement, in vectorised numpy.

Source: Zhang et al., "Distribution-Aware Coordinate Representation for Human Pose Estimation" (CVPR 2020), as
the TransPose code applies it: blur each map with an 11 x 11 Gaussian, take the logarithm, and make one Newton
step from the peak. The step reads only the 5 x 5 neighbourhood of the peak, so only that is blurred here, from
the 15 x 15 pixels that reach it; the answer is that of the full-map blur.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepose.geometry import affine_from_region, apply_affine

__all__ = ["argmax", "decode", "flip_back", "refine_dark"]

Floats = NDArray[np.float32]

_KERNEL = 11
_REACH = 2  # the Newton step reads peak - 2 .. peak + 2
_PATCH = _REACH + _KERNEL // 2
_FLOOR = 1e-10


def _gaussian() -> NDArray[np.float64]:
    """The 11 taps that OpenCV uses for kernel size 11 (sigma = 0.3 ((11 - 1) / 2 - 1) + 0.8 = 2)."""
    sigma = 0.3 * ((_KERNEL - 1) * 0.5 - 1) + 0.8
    taps = np.exp(-((np.arange(_KERNEL) - _KERNEL // 2) ** 2) / (2 * sigma**2))
    return np.asarray(taps / taps.sum())


def _band(out: int, pixels: int, shift: int) -> NDArray[np.float32]:
    """Matrix (out, pixels) that blurs a zero-bordered line: output i is centred on pixel i + shift."""
    offset = np.arange(pixels)[None, :] - np.arange(out)[:, None] - shift + _KERNEL // 2
    inside = (offset >= 0) & (offset < _KERNEL)
    return np.where(inside, _gaussian()[np.clip(offset, 0, _KERNEL - 1)], 0).astype(np.float32)


_PATCH_BLUR = _band(2 * _REACH + 1, 2 * _PATCH + 1, shift=_PATCH - _REACH)


def argmax(heatmaps: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Peak of each map.

    Args:
        heatmaps: (N, K, h, w) float32.

    Returns:
        Peaks (N, K, 2) as x, y in heatmap pixels, (0, 0) where no value is above zero, and scores (N, K), the
        maxima.
    """
    n, k, h, w = heatmaps.shape
    flat = heatmaps.reshape(n, k, h * w)
    index = flat.argmax(axis=2)
    scores = np.take_along_axis(flat, index[..., None], axis=2)[..., 0]
    peaks = np.stack([index % w, index // w], axis=-1)
    peaks[~(scores > 0)] = 0
    return peaks, scores


def refine_dark(heatmaps: Floats, peaks: NDArray[np.int64], scores: Floats) -> Floats:
    """Move each peak by one Newton step on the logarithm of the blurred map (DARK).

    Peaks closer than two pixels to the border, or with a singular Hessian, stay where they are.

    Args:
        heatmaps: (N, K, h, w) float32.
        peaks: (N, K, 2) from :func:`argmax`.
        scores: (N, K) from :func:`argmax`.

    Returns:
        (N, K, 2) float32 x, y in heatmap pixels.
    """
    h, w = heatmaps.shape[2:]
    refined = peaks.astype(np.float32)
    x, y = peaks[..., 0], peaks[..., 1]
    rows = np.nonzero((x > 1) & (x < w - 2) & (y > 1) & (y < h - 2))
    if len(rows[0]):
        refined[rows] += _newton_step(_log_neighbourhood(heatmaps[rows], peaks[rows], scores[rows]))
    return refined


def _log_neighbourhood(maps: Floats, peaks: NDArray[np.int64], scores: Floats) -> Floats:
    """Logarithm of the blurred maps (M, h, w) around their peaks: (M, 5, 5), up to an additive constant."""
    reach = np.arange(-_PATCH, _PATCH + 1)
    ys, xs = (peaks[:, i, None] + reach for i in (1, 0))
    h, w = maps.shape[1:]
    patches = maps[
        np.arange(len(maps))[:, None, None], np.clip(ys, 0, h - 1)[:, :, None], np.clip(xs, 0, w - 1)[:, None, :]
    ]
    patches *= ((ys >= 0) & (ys < h))[:, :, None] & ((xs >= 0) & (xs < w))[:, None, :]
    blurred = _PATCH_BLUR @ patches @ _PATCH_BLUR.T
    low = blurred.min(axis=(1, 2)) <= _FLOOR * 10
    if low.any():  # Clipping makes the scale matter, and the scale needs the whole blurred map.
        blurred[low] *= (scores[low] / _blurred_maximum(maps[low]))[:, None, None]
    return np.asarray(np.log(np.maximum(blurred, _FLOOR)))


def _blurred_maximum(maps: Floats) -> Floats:
    """Maximum of each whole blurred map (M, h, w) -> (M,)."""
    h, w = maps.shape[1:]
    full = _band(h, h, shift=0) @ maps @ _band(w, w, shift=0).T
    return np.asarray(np.maximum(full.max(axis=(1, 2)), _FLOOR))


def _newton_step(log: Floats) -> Floats:
    """-H^-1 g at the centre of (M, 5, 5) maps, from central differences; zero where H is singular."""
    c = _REACH
    dx = (log[:, c, c + 1] - log[:, c, c - 1]) / 2
    dy = (log[:, c + 1, c] - log[:, c - 1, c]) / 2
    dxx = (log[:, c, c + 2] - 2 * log[:, c, c] + log[:, c, c - 2]) / 4
    dyy = (log[:, c + 2, c] - 2 * log[:, c, c] + log[:, c - 2, c]) / 4
    dxy = (log[:, c + 1, c + 1] - log[:, c - 1, c + 1] - log[:, c + 1, c - 1] + log[:, c - 1, c - 1]) / 4
    det = dxx * dyy - dxy * dxy
    det = np.where(det == 0, np.inf, det)
    return np.stack([(dxy * dy - dyy * dx) / det, (dxy * dx - dxx * dy) / det], axis=1)


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
    out = np.empty_like(keypoints)
    for i, region in enumerate(regions):
        out[i] = apply_affine(affine_from_region(region, (w, h)), keypoints[i])
    return out, scores


def flip_back(heatmaps: Floats, flip_order: tuple[int, ...]) -> Floats:
    """Undo the mirroring of heatmaps (N, K, h, w) of mirrored crops: mirror, and exchange left and right."""
    return heatmaps[:, list(flip_order), :, ::-1]
