"""Which variant is fastest here: measured once, and kept in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from edgepose.files import cache_folder, canonical_json, replace_file
from edgepose.model import LoadedModel
from edgepose.runtimes.latency import measure_latency

__all__ = ["Choice"]

_log = logging.getLogger(__name__)

_ROUNDS = 50
_WARMUP = 10


class Choice:
    """The answer for one bundle, one way of opening it, and one machine.

    Attributes:
        name: The variant, or None where it was not measured yet.
    """

    def __init__(self, key: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(canonical_json(dict(key)).encode()).hexdigest()
        self._path = cache_folder("fastest") / f"{digest[:32]}.json"
        self.name: str | None = None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none, or damaged: it is measured again
            self.name = str(json.loads(self._path.read_text(encoding="utf-8"))["variant"])

    def measure(self, models: Mapping[str, LoadedModel]) -> str:
        """Time models in turn; the one with the lowest median is the answer, and is kept."""
        rows = measure_latency(models, iterations=_ROUNDS, warmup=_WARMUP)
        milliseconds = {row.variant: row.infer_ms for row in rows}
        self.name = min(milliseconds, key=lambda name: milliseconds[name])
        told = ", ".join(f"{name} {ms:.2f} ms" for name, ms in milliseconds.items())
        _log.warning("%s is the fastest variant here (%s)", self.name, told)
        with contextlib.suppress(OSError), replace_file(self._path) as path:  # no cache: it is measured again
            path.write_text(canonical_json({"variant": self.name, "milliseconds": milliseconds}), encoding="utf-8")
        return self.name
