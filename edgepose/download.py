"""Fetch a file over HTTP: resumes, checks or records its SHA-256, and leaves nothing half-written under its name."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any

from edgepose.errors import EdgePoseError
from edgepose.files import replace_file, sha256_file

__all__ = ["download"]

_CHUNK = 1 << 16
_TIMEOUT_S = 30


def download(
    url: str,
    folder: Path,
    sha256: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Fetch ``url`` into a folder, and return the file's path.

    A broken download stays as ``NAME.part`` and is continued next time. Where no hash is known, the first
    download's hash is recorded in ``NAME.sha256`` and later ones are checked against it.

    Args:
        url: HTTP or HTTPS address of a file.
        folder: Made where it is missing.
        sha256: Expected hex digest.
        progress: Told bytes so far and in all (0: unknown).

    Raises:
        EdgePoseError: Offline, refused, or the hash differs.
    """
    name = url.rpartition("/")[2]
    target, part, record = (folder / (name + suffix) for suffix in ("", ".part", ".sha256"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        expected = sha256 or (_recorded(record))
        if target.exists():
            _check(target, expected, url)
            return target
        _fetch(url, part, progress)
    except urllib.error.HTTPError as error:
        raise EdgePoseError(
            f"{url}: the server answered {error.code} {error.reason}: try later, or fetch it by hand"
        ) from None
    except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise EdgePoseError(f"{url}: cannot be reached ({reason}): go online, or copy the file to {target}") from None
    except OSError as error:
        raise EdgePoseError(
            f"{folder}: cannot write here ({error.strerror}): choose another folder with --dir"
        ) from None
    try:
        _check(part, expected, url)
    except EdgePoseError:
        part.unlink()
        raise
    with replace_file(record) as partial:
        partial.write_text(f"{sha256_file(part)}  {name}\n", encoding="ascii")
    os.replace(part, target)
    return target


def _recorded(record: Path) -> str | None:
    """The hash in a ``.sha256`` file, None where there is none."""
    words = record.read_text(encoding="ascii").split() if record.exists() else []
    return words[0] if words else None


def _fetch(url: str, part: Path, progress: Callable[[int, int], None]) -> None:
    """Continue ``part`` where it ends, or start again where the server cannot."""
    done = part.stat().st_size if part.exists() else 0
    tag_file = part.with_name(part.name + ".etag")
    tag = tag_file.read_text(encoding="latin-1") if tag_file.exists() else ""
    done = done if tag else 0  # without the server's tag nobody can say that the rest is of the same file
    headers = {"Range": f"bytes={done}-", "If-Range": tag} if done else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        response: Any = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # longer than the file now is, or already whole: the hash would not tell which
        return _fetch(url, part, progress)
    with response:
        resumed = response.status == HTTPStatus.PARTIAL_CONTENT
        done = done if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else 0
        tag_file.write_text(response.headers.get("ETag") or "", encoding="latin-1")
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress(done, total)
    if total and done != total:
        raise ConnectionError(f"broke off after {done:,} of {total:,} bytes; run again to continue")
    tag_file.unlink()
    return None


def _check(path: Path, expected: str | None, url: str) -> None:
    if expected is None:
        return
    found = sha256_file(path)
    if found != expected:
        raise EdgePoseError(
            f"{path}: SHA-256 {found[:12]}, expected {expected[:12]}: not the file of {url}; delete it and try again"
        )
