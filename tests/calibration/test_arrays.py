"""Pickled npz members: what numpy writes is read, and nothing else runs."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import numpy.lib.format as npy_format
import pytest

from edgepose import DatasetError
from edgepose.calibration.datasets import arrays
from edgepose.calibration.datasets.arrays import as_dict, npz_names, number_array, numeric_array, read_npz


def write_member(path, pickled, key="data"):
    """An npz whose member is an object array of that pickle, as ``np.savez`` frames it."""
    header = io.BytesIO()
    npy_format.write_array_header_1_0(header, npy_format.header_data_from_array_1_0(boxed({})))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{key}.npy", header.getvalue() + pickled)
    return path


def boxed(value):
    """The 0-d object array that numpy makes of a dict."""
    box = np.empty((), object)
    box[()] = value
    return box


def nested():
    rng = np.random.default_rng(0)
    return {
        "S1": {
            "Walking 1": rng.normal(size=(3, 32, 3)).astype(np.float32),
            "cameras": [rng.normal(size=(2, 4)), np.asfortranarray(rng.normal(size=(3, 2)))],
        },
        "empty": np.zeros((0, 17, 2), np.float32),
        "big-endian": np.arange(4, dtype=">i2"),
        "flags": np.array([True, False]),
        "names": np.array(["hip", "knee"]),
        "objects": np.array([None, "text", 3], object),
        "scalar": np.float64(1.5),
        7: (1, 2.5, b"bytes", None),
    }


def same(a, b):
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype.str[1:] == b.dtype.str[1:] and np.array_equal(a, b)
    return type(a) is type(b) and a == b


def test_reads_what_savez_writes(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", positions_3d=nested(), plain=np.arange(3))
    assert same(nested(), read_npz(tmp_path / "a.npz", "positions_3d"))
    assert read_npz(tmp_path / "a.npz", "plain").tolist() == [0, 1, 2]


# numpy 1.16 wrote protocol 2, later versions 3 and 4; other tools write 5.
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_reads_every_protocol_and_module_name(tmp_path, protocol, core):
    value = {key: item for key, item in nested().items() if protocol > 2 or key not in ("empty", 7)}
    pickled = pickle.dumps(boxed(value), protocol)
    if protocol < 4:  # text names: their length is not stated
        pickled = pickled.replace(b"numpy._core", core).replace(b"numpy.core", core)
    assert same(value, read_npz(write_member(tmp_path / "a.npz", pickled), "data"))


def test_reads_the_names_that_numpy_1_writes(tmp_path):
    """A pickle by hand, of float32 [1, 2]: the framing of numpy 1.26 at protocol 3."""
    pickled = (
        b"\x80\x03cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85q\x02C\x01bq\x03\x87q\x04Rq\x05"
        b"(K\x01K\x02\x85q\x06cnumpy\ndtype\nq\x07X\x02\x00\x00\x00f4q\x08\x89\x88\x87q\tRq\n(K\x03X\x01\x00\x00\x00<q\x0b"
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0cb\x89C\x08" + struct.pack("<2f", 1, 2) + b"q\rtq\x0eb."
    )
    assert read_npz(write_member(tmp_path / "a.npz", pickled), "data").tolist() == [1, 2]


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Calls(os.system, "touch owned"), f"{os.name}.system"),
        (Calls(eval, "open('owned', 'w')"), "builtins.eval"),
        (Calls(getattr, "", "join"), "builtins.getattr"),
        (Calls(np.load, "other.npy"), "numpy.load"),
        (Calls(np.dtypes.StringDType), "numpy.dtypes.StringDType"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_refuses_code(tmp_path, monkeypatch, call, name, protocol):
    monkeypatch.chdir(tmp_path)
    path = write_member(tmp_path / "a.npz", pickle.dumps(boxed({"S1": [call]}), protocol))
    name = name.replace("builtins", "__builtin__") if protocol == 2 else name
    with pytest.raises(DatasetError) as caught:
        read_npz(path, "data")
    assert str(caught.value) == (
        f"{path}: data asks for {name}: refused, since data have no need of it and it may run code; "
        "get the file from its authors"
    )
    assert not (tmp_path / "owned").exists()


def array_state(dtype=b"f8", shape=(2,), content=bytes(16), fields=None):
    """A pickle of an array whose state is what a stranger made up."""
    buffer = io.BytesIO()

    class Name:
        def __init__(self, module, name):
            self.names = (module, name)

    class Pickler(pickle._Pickler):
        def save(self, item, save_persistent_id=True):
            if isinstance(item, Name):
                return self.write("c{}\n{}\n".format(*item.names).encode())
            return super().save(item, save_persistent_id)

    writer = Pickler(buffer, 3)
    writer.write(b"\x80\x03")
    dtype_call = (Name("numpy", "dtype"), (dtype.decode(), False, True))
    array_call = (Name("numpy.core.multiarray", "_reconstruct"), (Name("numpy", "ndarray"), (0,), b"b"))
    writer.save(array_call[0]), writer.save(array_call[1]), writer.write(b"R")
    writer.write(b"("), writer.save(1), writer.save(shape)
    writer.save(dtype_call[0]), writer.save(dtype_call[1]), writer.write(b"R")
    writer.save((3, "|", None, fields and ("a",), fields, -1, -1, 0)), writer.write(b"b")
    writer.save(False), writer.save(content), writer.write(b"tb.")
    return buffer.getvalue()


def test_the_made_up_state_is_read_where_it_is_honest(tmp_path):
    path = write_member(tmp_path / "a.npz", array_state(content=struct.pack("2d", 3, 4)))
    assert read_npz(path, "data").tolist() == [3, 4]


# Each of these would have numpy read past a buffer, or take bytes for pointers, or allocate what nobody has.
@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"content": bytes(8)}, "the content does not fit the array's shape and dtype"),
        ({"shape": (-1, -2)}, "the content does not fit"),
        ({"shape": (2**62, 4)}, "the content does not fit"),
        ({"shape": [2]}, "the content does not fit"),
        ({"dtype": b"O8"}, "the content does not fit"),
        ({"dtype": b"O8", "content": [1]}, "the content does not fit"),
        ({"dtype": b"V8"}, "dtype 'V8' is not a plain one"),
        ({"dtype": b"f8,O"}, "dtype 'f8,O' is not a plain one"),
        ({"fields": {"a": (1, 0)}}, "structured dtypes are not plain data"),
    ],
)
def test_refuses_arrays_that_lie(tmp_path, state, reason):
    path = write_member(tmp_path / "a.npz", array_state(**state))
    with pytest.raises(DatasetError, match=r"data is damaged or not an \.npz member \(") as caught:
        read_npz(path, "data")
    assert reason in str(caught.value)


def test_refuses_other_encodings(tmp_path):
    pickled = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R."
    with pytest.raises(DatasetError, match="bytes encoded as 'zip'"):
        read_npz(write_member(tmp_path / "a.npz", pickled), "data")


def test_damaged_files(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(DatasetError, match=r"a\.npz: cannot be read \(No such file or directory\)"):
        read_npz(path, "data")
    path.write_bytes(b"not a zip")
    with pytest.raises(DatasetError, match=r"data is damaged or not an \.npz member \(File is not a zip file\)"):
        read_npz(path, "data")
    np.savez_compressed(path, positions_2d=nested(), metadata={})
    with pytest.raises(DatasetError, match=r"no member 'data' \(there are: metadata, positions_2d\)"):
        read_npz(path, "data")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="positions_2d is damaged"):
        read_npz(path, "positions_2d")


@pytest.mark.parametrize("kept", [0, 1, 50, 400])
def test_truncated_pickles(tmp_path, kept):
    path = write_member(tmp_path / "a.npz", pickle.dumps(boxed(nested()), 4)[:kept])
    with pytest.raises(DatasetError, match="data is damaged"):
        read_npz(path, "data")


def test_a_pickle_that_is_no_array(tmp_path):
    path = write_member(tmp_path / "a.npz", pickle.dumps({"S1": 1}))
    with pytest.raises(DatasetError, match="a pickled dict where an array should be"):
        read_npz(path, "data")


def test_a_member_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "MAX_MEMBER_BYTES", 1000)
    np.savez_compressed(tmp_path / "a.npz", data=np.zeros(1000))
    with pytest.raises(DatasetError, match="data unpacks to 8128 bytes, over 1000: refused"):
        read_npz(tmp_path / "a.npz", "data")


def test_numeric_array():
    array = numeric_array(np.ones((4, 17, 3)), (None, 17, 3), "f")
    assert (array.dtype, array.shape) == (np.float32, (4, 17, 3))
    with pytest.raises(DatasetError, match=r"f: S1: expected shape \(any, 17, 2\), got \(4, 17, 3\)"):
        numeric_array(np.ones((4, 17, 3)), (None, 17, 2), "f: S1")
    with pytest.raises(DatasetError, match=r"expected shape \(any, 17, 3\), got \(17, 3\)"):
        numeric_array(np.ones((17, 3)), (None, 17, 3), "f")
    with pytest.raises(DatasetError, match="f: expected an array of numbers, got list"):
        numeric_array([1, 2], (None,), "f")
    with pytest.raises(DatasetError, match="f: expected an array of numbers, got an array of object"):
        numeric_array(np.array([None]), (None,), "f")


def test_numbers_keep_their_precision():
    array = number_array(np.full((2, 3), 1 / 3), (None, 3), "f")
    assert (array.dtype, array[0, 0]) == (np.float64, 1 / 3)
    with pytest.raises(DatasetError, match="f: expected an array of numbers, got an array of <U1"):
        number_array(np.array(["1"]), (None,), "f")


def test_dicts():
    assert as_dict({1: 2}, "f") == {1: 2}
    with pytest.raises(DatasetError, match=r"^f: S1: expected a dict by action, got int$"):
        as_dict(5, "f: S1", "action")
    with pytest.raises(DatasetError, match=r"^f: expected a dict, got list$"):
        as_dict([], "f")


def test_members_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", **{"S9 Walking 1": np.zeros(2), "b": np.zeros(1)})
    assert npz_names(tmp_path / "a.npz") == ["S9 Walking 1", "b"]
    np.savez(tmp_path / "empty.npz")
    assert npz_names(tmp_path / "empty.npz") == []
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(DatasetError, match=r"a\.npz: it is damaged or not an \.npz member \(File is not a zip file\)"):
        npz_names(tmp_path / "a.npz")


def test_a_file_in_memory_has_a_name_and_a_limit():
    file = io.BytesIO()
    np.savez(file, data=np.arange(100.0))
    assert read_npz(file, "data", "a.zip: b.npz").sum() == 4950
    with pytest.raises(DatasetError, match=r"^a\.zip: b\.npz: data unpacks to 928 bytes, over 900: refused$"):
        read_npz(file, "data", "a.zip: b.npz", limit=900)


@pytest.mark.parametrize("shape", [(10**12,), (10**30,), (3,), (-1, -2), (0,)])
def test_refuses_headers_that_claim_another_size(tmp_path, shape):
    """numpy would make room for it before it reads."""
    header = io.BytesIO()
    npy_format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("data.npy", header.getvalue() + bytes(16))
    with pytest.raises(DatasetError, match=r"data is damaged .*the content does not fit the array's shape and dtype"):
        read_npz(tmp_path / "a.npz", "data")
