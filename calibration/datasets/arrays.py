"""Community ``.npz`` files whose members are pickled dicts of arrays, read without running code.

``numpy.load(allow_pickle=True)`` runs whatever a pickle asks for. Here a pickle gets plain containers, numbers, text
and arrays, and every name that it may look up is one of our own functions in ``_STAND_INS``. numpy's constructors are
not among them: ``dtype.__setstate__`` believes the flags that a file states, with which ``ndarray.__setstate__`` would
take bytes for object pointers.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Literal

import numpy as np
import numpy.lib.format as npy_format
from numpy.typing import NDArray

from edgepose.errors import DatasetError

__all__ = ["MAX_MEMBER_BYTES", "as_dict", "number_array", "numeric_array", "npz_names", "read_npz"]

MAX_MEMBER_BYTES = 8 * 2**30
"""Unpacked size from which a member is refused; the largest community file, MPI-INF-3DHP training, has about 2 GiB."""

_DTYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[US][0-9]{1,6}|O8?")
_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


NpzFile = Path | IO[bytes]


def npz_names(file: NpzFile, where: str = "") -> list[str]:
    """Names of the members of an ``.npz`` file, without ``.npy``; arguments and errors as :func:`read_npz`."""
    names: list[str] = _opened(file, where or str(file), "it", lambda archive: sorted(_members(archive)))
    return names


def read_npz(file: NpzFile, key: str, where: str = "", limit: int | None = None) -> Any:
    """One member of an ``.npz`` file.

    Args:
        file: The file.
        key: The member's name, without ``.npy``.
        where: For people: what the file is; the path by default.
        limit: Unpacked bytes from which a member is refused; ``MAX_MEMBER_BYTES`` by default.

    Returns:
        The array; for a 0-d object array what it holds, for instance a dict of dicts of arrays. Arrays in it are of a
        subclass of ``numpy.ndarray`` and may be read-only.

    Raises:
        DatasetError: There is no such file or member, it is damaged or too large, or it asks for more than plain data.
    """
    where = where or str(file)
    return _opened(file, where, key, lambda archive: _read_member(archive, where, key, limit or MAX_MEMBER_BYTES))


def _opened(file: NpzFile, where: str, key: str, take: Callable[[zipfile.ZipFile], Any]) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            return take(archive)
    except DatasetError:
        raise
    except OSError as error:
        raise DatasetError(f"{where}: cannot be read ({error.strerror or error})") from None
    # Damaged and hostile files make zipfile and pickle raise nearly anything, says pickle's own documentation.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DatasetError(f"{where}: {key} is damaged or not an .npz member ({reason}); get the file again") from None


def numeric_array(value: object, shape: tuple[int | None, ...], where: str) -> NDArray[np.float32]:
    """:func:`number_array` as float32."""
    return number_array(value, shape, where).astype(np.float32, copy=False)


def number_array(value: object, shape: tuple[int | None, ...], where: str) -> NDArray[Any]:
    """``value`` as the array of numbers that it is, with its shape checked.

    Args:
        value: What was read.
        shape: The expected shape; None for any length.
        where: For people: file, subject, action, camera.

    Raises:
        DatasetError: It is no array of numbers, or has another shape.
    """
    array = np.asarray(value) if isinstance(value, np.ndarray) else None
    if array is None or array.dtype.kind not in "biuf":
        raise DatasetError(f"{where}: expected an array of numbers, got {_describe(value)}")
    if array.ndim != len(shape) or any(n not in (None, got) for n, got in zip(shape, array.shape, strict=True)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise DatasetError(f"{where}: expected shape ({wanted}), got {array.shape}")
    return array


def as_dict(value: object, where: str, by: str = "") -> dict[Any, Any]:
    """``value`` as the dict that it is.

    Args:
        value: What was read.
        where: For people: file, subject, action.
        by: For people: what its keys are.

    Raises:
        DatasetError: It is no dict.
    """
    if not isinstance(value, dict):
        raise DatasetError(f"{where}: expected a dict{by and f' by {by}'}, got {type(value).__name__}")
    return value


def _describe(value: object) -> str:
    return f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist()}


def _read_member(archive: zipfile.ZipFile, where: str, key: str, limit: int) -> Any:
    members = _members(archive)
    if key not in members:
        raise DatasetError(f"{where}: no member {key!r} (there are: {', '.join(sorted(members)) or 'none'})")
    size = members[key].file_size
    if size > limit:
        raise DatasetError(f"{where}: {key} unpacks to {size} bytes, over {limit}: refused")
    with archive.open(members[key]) as stream:
        shape, _, dtype = _HEADERS[npy_format.read_magic(stream)](stream)
        if dtype.hasobject:
            return _unwrap(_PlainUnpickler(stream, f"{where}: {key}").load())
        # numpy makes room for what the header claims before it reads.
        _require(_count(shape) * dtype.itemsize == size - stream.tell())
    with archive.open(members[key]) as stream:
        return npy_format.read_array(stream, allow_pickle=False)


def _unwrap(value: object) -> Any:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"a pickled {type(value).__name__} where an array should be")
    return value.item() if value.shape == () else value


class _PlainUnpickler(pickle.Unpickler):
    """Builds plain containers and arrays; every other name is refused before it is imported."""

    def __init__(self, stream: IO[bytes], where: str) -> None:
        super().__init__(stream)
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise DatasetError(
                f"{self._where} asks for {module}.{name}: refused, since data have no need of it and it may run code; "
                "get the file from its authors"
            ) from None


class _Dtype:
    """Stands for ``numpy.dtype``: a number, text or object type of a byte order, and nothing else."""

    def __init__(self, code: str) -> None:
        if not _DTYPE_CODE.fullmatch(code):
            raise ValueError(f"dtype {code!r} is not a plain one")
        self.value: np.dtype[Any] = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, subarray, names, members = state[1:5]
        if (subarray, names, members) != (None, None, None):
            raise ValueError("structured dtypes are not plain data")
        self.value = self.value.newbyteorder(order)


class _Array(np.ndarray[Any, np.dtype[Any]]):
    """An array whose pickled content is checked before numpy takes it."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, dtype, fortran, content = state[-4:]
        plain = _plain_dtype(dtype)
        count = _count(shape)
        if plain.hasobject:
            _require(isinstance(content, list) and len(content) == count)
        else:
            _require(isinstance(content, bytes) and len(content) == count * plain.itemsize)
        super().__setstate__((1, shape, plain, bool(fortran), content))  # type: ignore[arg-type]


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError("the content does not fit the array's shape and dtype")


def _count(shape: Any) -> int:
    """Number of items; two negative lengths would have a plausible product."""
    _require(isinstance(shape, tuple) and all(type(length) is int and length >= 0 for length in shape))
    return int(math.prod(shape))


def _plain_dtype(dtype: object) -> np.dtype[Any]:
    if not isinstance(dtype, _Dtype):
        raise ValueError(f"{type(dtype).__name__} where a dtype should be")
    return dtype.value


def _dtype(code: str, _align: bool = False, _copy: bool = False) -> _Dtype:
    return _Dtype(code)


def _reconstruct(_subtype: object, _shape: object, _typecode: object) -> _Array:
    """An empty array: numpy pickles one, and hands the content over as its state."""
    return np.empty(0, np.uint8).view(_Array)


def _frombuffer(content: bytes | bytearray, dtype: object, shape: Any, order: str) -> _Array:
    plain = _plain_dtype(dtype)
    _require(not plain.hasobject and len(content) == _count(shape) * plain.itemsize)
    layout: Literal["C", "F"] = "F" if order == "F" else "C"
    array: _Array = np.frombuffer(content, plain).reshape(shape, order=layout).view(_Array)
    return array


def _scalar(dtype: object, content: bytes) -> Any:
    plain = _plain_dtype(dtype)
    _require(not plain.hasobject and len(content) == plain.itemsize)
    return np.frombuffer(content, plain)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Pickle protocol 2 writes bytes as Latin-1 text; the real ``encode`` would import a codec by name."""
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


# Which name numpy writes depends on its version (1: numpy.core, 2: numpy._core) and on the pickle protocol: 2 to 4 use
# _reconstruct, 5 uses _frombuffer. ndarray is only an argument of _reconstruct: a word in its place cannot be called.
_STAND_INS: Mapping[tuple[str, str], Callable[..., Any] | str] = MappingProxyType(
    {
        ("numpy", "ndarray"): "numpy.ndarray",
        ("numpy", "dtype"): _dtype,
        ("_codecs", "encode"): _encode,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    }
)
