"""Bundled starter weights and sample clip; ``README.md`` beside this file has their terms."""

from __future__ import annotations

from pathlib import Path

__all__ = ["LIFTER_MODEL", "LIFTER_WEIGHTS", "SAMPLE_CLIP", "STARTER_MODEL", "STARTER_WEIGHTS"]

_HERE = Path(__file__).parent

STARTER_MODEL = "transpose-r-t"
STARTER_WEIGHTS = _HERE / "transpose-r-t-lspet.pth"
LIFTER_MODEL = "ampose-s"
LIFTER_WEIGHTS = _HERE / "ampose-s-mocap.pth"
SAMPLE_CLIP = _HERE / "sample-clip.mp4"
