"""decode.decode against a straightforward decoder: one joint after the other, full-map blur.

Prints both. The loop is written for this comparison, in the shape in which pose code bases have it: find the peaks,
blur every map, take the logarithm, refine joint by joint, map joint by joint.
"""

from __future__ import annotations

import time

import cv2
import numpy as np

from edgepose.decode import decode
from edgepose.machine import machine

CROWD = 8
ROUNDS = 100
CALLS = 10


def loop_decode(heatmaps: np.ndarray, region: np.ndarray) -> np.ndarray:
    """One person's maps (K, h, w) -> (K, 2), stage after stage and joint after joint, as pose code bases have it."""
    joints, h, w = heatmaps.shape
    peaks = find_peaks(heatmaps)
    blurred = np.log(np.maximum(blur(heatmaps.copy()), 1e-10))
    for k in range(joints):
        peaks[k] = newton_step(blurred[k], peaks[k])
    matrix = heatmap_to_image(region, (w, h))
    return np.array([matrix @ np.array([x, y, 1.0]) for x, y in peaks])


def find_peaks(heatmaps: np.ndarray) -> np.ndarray:
    """Argmax of each map, zero where nothing is above zero."""
    joints, _, w = heatmaps.shape
    flat = heatmaps.reshape(joints, -1)
    index = np.argmax(flat, 1)
    peaks = np.tile(index.reshape(joints, 1), (1, 2)).astype(np.float32)
    peaks[:, 0] = peaks[:, 0] % w
    peaks[:, 1] = np.floor(peaks[:, 1] / w)
    return peaks * (np.amax(flat, 1) > 0)[:, None]


def blur(heatmaps: np.ndarray, kernel: int = 11) -> np.ndarray:
    """Blur each map with a zero border and scale it back to its maximum."""
    joints, h, w = heatmaps.shape
    border = kernel // 2
    for k in range(joints):
        peak = np.max(heatmaps[k])
        padded = np.zeros((h + 2 * border, w + 2 * border))
        padded[border:-border, border:-border] = heatmaps[k]
        padded = cv2.GaussianBlur(padded, (kernel, kernel), 0)
        heatmaps[k] = padded[border:-border, border:-border]
        heatmaps[k] *= peak / np.max(heatmaps[k])
    return heatmaps


def newton_step(log: np.ndarray, peak: np.ndarray) -> np.ndarray:
    """One Newton step from the peak."""
    h, w = log.shape
    x, y = int(peak[0]), int(peak[1])
    if not (1 < x < w - 2 and 1 < y < h - 2):
        return peak
    dx, dy = 0.5 * (log[y, x + 1] - log[y, x - 1]), 0.5 * (log[y + 1, x] - log[y - 1, x])
    dxx = 0.25 * (log[y, x + 2] - 2 * log[y, x] + log[y, x - 2])
    dyy = 0.25 * (log[y + 2, x] - 2 * log[y, x] + log[y - 2, x])
    dxy = 0.25 * (log[y + 1, x + 1] - log[y - 1, x + 1] - log[y + 1, x - 1] + log[y - 1, x - 1])
    if dxx * dyy - dxy**2 == 0:
        return peak
    return peak - np.linalg.inv(np.array([[dxx, dxy], [dxy, dyy]])) @ np.array([dx, dy])


def heatmap_to_image(region: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    """Affine matrix (2, 3) of three point pairs."""
    cx, cy, width, _ = region
    w, h = size_wh
    source = np.array([[(w - 1) / 2, (h - 1) / 2], [(w - 1) / 2, (h - 1) / 2 - (w - 1) / 2], [0, 0]], np.float32)
    source[2] = source[1] + [-(w - 1) / 2, 0]
    half = (width - 1) / 2
    target = np.array([[cx, cy], [cx, cy - half], [cx - half, cy - half]], np.float32)
    return cv2.getAffineTransform(source, target)


def main() -> None:
    """Interleaved rounds on heatmaps that look like a trained model's: a Gaussian per joint and noise."""
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[:64, :48]
    centres = rng.uniform((4, 4), (44, 60), (17, 2))
    peaks = np.exp(-((xs - centres[:, :1, None]) ** 2 + (ys - centres[:, 1:, None]) ** 2) / 8)
    heatmaps = (0.9 * peaks + 0.01 * rng.standard_normal((17, 64, 48))).astype(np.float32)[None]
    regions = np.array([[320.0, 240, 300, 400]])
    cv2.setNumThreads(1)
    shift = np.abs(decode(heatmaps, regions)[0][0] - loop_decode(heatmaps[0], regions[0])).max()
    crowd, crowd_regions = np.repeat(heatmaps, CROWD, axis=0), np.repeat(regions, CROWD, axis=0)
    calls = {
        "loop": (1, lambda: loop_decode(heatmaps[0], regions[0])),
        "edgepose": (1, lambda: decode(heatmaps, regions)),
        f"edgepose, {CROWD} people": (CROWD, lambda: decode(crowd, crowd_regions)),
    }
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, (people, call) in calls.items():
            start, used = time.perf_counter(), time.process_time()
            for _ in range(CALLS):
                call()
            wall[name].append(1e3 * (time.perf_counter() - start) / people / CALLS)
            cpu[name].append(1e3 * (time.process_time() - used) / people / CALLS)
    here = machine()
    print(f"{here['cpu']}, {here['cores']} cores; {here['versions']}")
    print(f"17 joints, 64x48; ms per person, median of {ROUNDS} interleaved rounds of {CALLS} calls")
    for name, used_ms in cpu.items():
        ratio = np.median(cpu["loop"]) / np.median(used_ms)
        print(f"{name:>18}: {np.median(used_ms):.3f} CPU  {np.median(wall[name]):.3f} wall  {ratio:5.1f}x")
    print(f"largest difference: {shift:.1e} px")


if __name__ == "__main__":
    main()
