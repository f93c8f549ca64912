"""What an ONNX file says about itself, without a library that reads ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgepose.errors import EngineError

__all__ = ["onnx_metadata"]

_METADATA, _KEY, _VALUE = 14, 1, 2  # fields of ModelProto and of its StringStringEntryProto (onnx.proto)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def onnx_metadata(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file.

    Raises:
        EngineError: It is not there, or no ONNX file.
    """
    try:
        data = memoryview(path.read_bytes())
        entries = [dict(_fields(entry)) for field, entry in _fields(data) if field == _METADATA]
        return {bytes(entry[_KEY]).decode(): bytes(entry[_VALUE]).decode() for entry in entries}
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror})") from None
    except (IndexError, KeyError, UnicodeDecodeError, ValueError):
        raise EngineError(f"{path}: is no ONNX file, or a damaged one: copy it again, or convert again") from None


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of each field of a protocol buffer that holds bytes; numbers are passed over."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _BYTES:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("truncated")
            yield tag >> 3, data[at : at + size]
            at += size
        elif kind == _VARINT:
            _, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("number too long")
