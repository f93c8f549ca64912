"""The examples run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from edgepose.assets import SAMPLE_CLIP

ROOT = Path(__file__).parent.parent


def run(name, *arguments):
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_picture(starter_bundle, clip_frames, tmp_path):
    cv2.imwrite(str(tmp_path / "man.png"), clip_frames[60])
    lines = run("frame.py", starter_bundle, tmp_path / "man.png").splitlines()
    assert len(lines) == 14
    assert lines[0].startswith("right_ankle")


@pytest.mark.parametrize("name", ["camera.py", "server.py"])
def test_a_clip(starter_bundle, name):
    assert len(run(name, starter_bundle, SAMPLE_CLIP).splitlines()) == 80
