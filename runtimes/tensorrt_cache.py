"""Engines that TensorRT built here, kept in the user's cache, and the timings of their layers.

An engine holds native code. So one is loaded only from a folder that nobody but this user can write to, and only where
it was built from the same model, with the same options, for the same GPU, by the same version. Bundles hold none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from edgepose.errors import EngineError
from edgepose.files import canonical_json, replace_file

__all__ = ["EngineCache"]

_OTHERS_WRITE = 0o022


class EngineCache:
    """The engine for one model on one GPU.

    A file is a line of JSON, which repeats the key and has the engine's hash, and then the engine.
    """

    def __init__(self, folder: Path, key: Mapping[str, str], timing_key: Mapping[str, str]) -> None:
        """Open a cache.

        Args:
            folder: Where it is, or will be.
            key: Everything that an engine depends on.
            timing_key: Everything that the time of a layer depends on.

        Raises:
            EngineError: The folder is another user's, or others may write to it, or it cannot be made.
        """
        self._key = dict(key)
        self._path = folder / f"{_digest(key)}.engine"
        self._timings = folder / f"{_digest(timing_key)}.timings"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            facts = folder.stat()
        except OSError as error:
            raise EngineError(
                f"{folder}: engines cannot be kept there ({error.strerror}): set XDG_CACHE_HOME"
            ) from None
        if facts.st_uid != os.getuid() or facts.st_mode & _OTHERS_WRITE:
            raise EngineError(
                f"{folder}: engines hold native code, and others may write to this folder: "
                f"chmod 700 {folder}, or set XDG_CACHE_HOME"
            )

    def read(self) -> bytes | None:
        """The engine; None where there is none, or it is damaged or of another key."""
        try:
            header, _, engine = self._path.read_bytes().partition(b"\n")
            facts = json.loads(header)
        except (OSError, ValueError):
            return None
        return engine if facts == self._header(engine) else None

    def write(self, engine: bytes) -> None:
        """Keep an engine; whole, or not at all."""
        with replace_file(self._path) as path:
            path.write_bytes(json.dumps(self._header(engine)).encode() + b"\n" + engine)

    def read_timings(self) -> bytes:
        """Timings of earlier builds, or nothing. TensorRT checks them itself."""
        return self._timings.read_bytes() if self._timings.is_file() else b""

    def write_timings(self, timings: bytes) -> None:
        """Keep the timings."""
        with replace_file(self._timings) as path:
            path.write_bytes(timings)

    def _header(self, engine: bytes) -> dict[str, str]:
        return {**self._key, "sha256": hashlib.sha256(engine).hexdigest()}


def _digest(key: Mapping[str, str]) -> str:
    return hashlib.sha256(canonical_json(dict(key)).encode()).hexdigest()[:32]
