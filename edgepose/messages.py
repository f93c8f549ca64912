"""One frame's poses as one JSON object: what JSON lines, MQTT and the live page have in common (docs/json-lines.md)."""

from __future__ import annotations

import json
from typing import Any

from edgepose.sources import Frame
from edgepose.types import Poses

__all__ = ["SCHEMA", "compact_json", "frame_message"]

SCHEMA = 1
"""Goes up when a field changes its meaning or vanishes; new fields may appear without."""


def frame_message(frame: Frame, poses: Poses) -> str:
    """Compact JSON with ``schema``, ``frame``, ``name``, ``time_s``, ``skeleton`` and ``people``."""
    head = {"schema": SCHEMA, "frame": frame.index, "name": frame.name, "time_s": round(frame.time_s, 4)}
    return compact_json(head | poses.to_dict())


def compact_json(value: Any) -> str:
    """JSON on one line; NaN and infinity, which JSON has not, become null."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:  # rare: so the common case pays nothing
        value = json.loads(json.dumps(value), parse_constant=lambda _: None)
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
