"""The report in a real browser: it is drawn, nothing is refused or loaded, and no page is wider than its window."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgepose.calibration.evidence import Accuracy, Agreement, Bin, Exhibit, Validation, VariantEvidence
from edgepose.calibration.report.write import write_report
from edgepose.skeletons import get_skeleton

NAMES = ("chromium", "chromium-browser", "google-chrome")
JOINTS = get_skeleton("coco17").joints
LONG = "onnx-int8-" + "x" * 90  # cannot be broken at a space

pytestmark = pytest.mark.skipif(os.name != "posix", reason="starts a browser by its command line")


@pytest.fixture(scope="module")
def browser() -> str:
    asked = os.environ.get("EDGEPOSE_CHROMIUM")
    found = asked or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH (or set EDGEPOSE_CHROMIUM)")
    return found


def variant(name: str, loss: float) -> VariantEvidence:
    """One variant with something to show in every section."""
    curve = tuple(i**2 / 300 * (1 + loss) for i in range(101))
    bins = tuple(Bin(i / 10, i / 10 + 0.1, 90, i / 10 + 0.05) for i in range(10))
    joints = {joint: 70 - loss * (i % 5) for i, joint in enumerate(JOINTS)}
    right = tuple(replace(b, value=100 * b.value) for b in bins)
    sizes = {"medium": 60 - loss, "large": 75 - loss}
    labels = Accuracy(
        "AP", 72.0 - loss, "points", True, 86, {"AP": 72.0 - loss}, "OKS", joints, sizes, right, curve, ("a remark",)
    )
    agreement = Agreement(
        86, 900, 0.6, 1 - loss / 50, 0.8, loss, 3 * loss, joints, {"large": 0.9}, curve, 0.97, 0.99, bins, 0.01, 0.02,
        1.2, 0.1, 30.0,
    )  # fmt: skip
    g = np.random.default_rng(0)
    crop = np.full((256, 192, 3), (200, 40, 200), np.uint8)
    xy, scores = g.uniform(10, 180, (2, 17, 2)).astype(np.float32), np.ones(17, np.float32)
    worst = tuple(Exhibit(f"{name}/{i}.jpg #1", crop, xy[0], scores, xy[1], scores, 0.3) for i in range(10))
    return VariantEvidence(name, "onnxruntime cpu", labels, agreement, 9.0, worst if loss else (), 6.6, 20 + loss)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The widest report: eight variants, one with a very long name, one that failed with a very long reason."""
    names = ["onnx-fp32", LONG, *(f"openvino-int8-{i}" for i in range(6))]
    rows = tuple(variant(name, float(i)) for i, name in enumerate(names))
    value = Validation(
        "coco", f"/data/{'deep' * 40}.json", {"data.json": "9f" * 32}, "ground truth", "coco17", "onnx-fp32", False,
        28, 86, ("broken.jpg",), rows, {"tensorrt-fp16": "y" * 200}, 10.0, 2.0,
    )  # fmt: skip
    provenance = {"checkpoint": {"sha256": "ab" * 32}, "command": "z" * 300}
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, value, provenance, 3.0, force=False)
    return folder / "report.html"


def run(browser: str, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [browser, "--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr", "--v=0"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*command, *options, page.as_uri()], capture_output=True, text=True, check=False, timeout=60, errors="replace"
    )
    assert done.returncode == 0, done.stderr
    return done


def screenshot(browser: str, page: Path, width: int, height: int, *options: str) -> NDArray[np.uint8]:
    target = page.parent / "shot.png"
    done = run(browser, page, f"--window-size={width},{height}", f"--screenshot={target}", *options)
    assert not re.findall(r".*CONSOLE.*", done.stderr)
    picture = cv2.imread(str(target))
    assert picture is not None
    return np.asarray(picture, dtype=np.uint8)


def colors(picture: NDArray[np.uint8]) -> int:
    """How many colours there are, nearby ones counted as one."""
    blue, green, red = np.moveaxis(picture.astype(np.int16) // 32, 2, 0)
    return len(np.unique(64 * red + 8 * green + blue))


@pytest.mark.parametrize(("scheme", "dark"), [(1, False), (0, True)])  # the browser's numbers for light and dark
def test_it_is_drawn_from_top_to_bottom_without_complaints(browser, report, scheme, dark):
    picture = screenshot(browser, report, 1400, 7200, f"--blink-settings=preferredColorScheme={scheme}")
    assert picture.shape == (7200, 1400, 3)
    assert (picture[:, 0].mean() < 60) == dark
    picture = picture[::3, ::3]
    for part in np.split(picture, 12):
        assert colors(part) >= 4
    crops = (abs(picture.astype(np.int16) - (200, 40, 200)).max(axis=2) < 12).sum()  # the crops are all of one colour
    assert crops > 10_000


def test_no_page_is_wider_than_its_window(browser, report):
    """Measured by a page with script that shows the report, whose own rules forbid script, in frames of that width."""
    widths = (360, 400, 768, 1400)
    frames = "".join(f'<iframe src="{report.name}" style="width:{width}px;height:900px"></iframe>' for width in widths)
    measure = """onload = () => document.body.append("found:" + [...document.querySelectorAll("iframe")].map(f => {
        const page = f.contentDocument.documentElement;
        return [f.clientWidth, page.scrollWidth, f.contentDocument.querySelectorAll("svg.plot").length].join(" ");
    }).join(","))"""
    wrapper = report.with_name("wrapper.html")
    wrapper.write_text(f"<!doctype html><body>{frames}<script>{measure}</script>", encoding="utf-8")
    done = run(browser, wrapper, "--dump-dom", "--allow-file-access-from-files", "--window-size=1500,900")
    found = re.search(r"found:([\d ,]+)", done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    for width, line in zip(widths, found[1].split(","), strict=True):
        window, page, charts = map(int, line.split())
        assert window == width
        assert page <= width
        assert charts == 6
