"""Memory, streams and graphs of an NVIDIA GPU, by the CUDA driver API.

The driver's library is on every machine with an NVIDIA GPU, whatever else is installed, and its functions keep their
names and arguments from version to version (CUDA driver API reference). So two dozen of them by ctypes serve every
JetPack, where a Python package would have to be of the version of the driver.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

from edgepose.errors import EngineError, EngineUnavailable

__all__ = ["Cuda", "open_driver"]

_LIBRARY = "libcuda.so.1"
_OUT_OF_MEMORY = 2
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may use the GPU meanwhile
_NAME_BYTES = 256

PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemAllocHost_v2": (POINTER(c_void_p), c_size_t),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}
"""Arguments of the functions that are used; each gives a number, 0 for success."""


def open_driver() -> Any:
    """The driver's library.

    Raises:
        EngineUnavailable: There is none.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
        for name, arguments in PROTOTYPES.items():
            getattr(library, name).argtypes = arguments
    except (AttributeError, OSError) as error:
        raise EngineUnavailable(
            f"no NVIDIA driver here, or one older than CUDA 11.4 ({error}): install it, or use another engine"
        ) from None
    return library


class Cuda:
    """The first GPU. Addresses and handles are whole numbers.

    Raises:
        EngineUnavailable: There is none.
        EngineError: From any method: the driver reports an error.
    """

    def __init__(self, library: Any | None = None) -> None:
        self._library = library or open_driver()
        device, self._context = c_int(), c_void_p()
        try:
            self._call("cuInit", 0)
            self._call("cuDeviceGet", byref(device), 0)
        except EngineError as error:
            raise EngineUnavailable(f"no NVIDIA GPU that the driver can use here ({error})") from None
        self._device = device.value
        # The context that TensorRT and everything else that uses the CUDA runtime shares.
        self._call("cuDevicePrimaryCtxRetain", byref(self._context), self._device)
        self.use()

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code == 0:
            return
        text = c_char_p()
        self._library.cuGetErrorString(code, byref(text))
        said = text.value.decode() if text.value else f"error {code}"
        advice = ": close what else uses the GPU, or lower max_batch" if code == _OUT_OF_MEMORY else ""
        raise EngineError(f"CUDA: {said} in {name}{advice}")

    def use(self) -> None:
        """Make this GPU the one of the thread that calls; needed once in each."""
        self._call("cuCtxSetCurrent", self._context)

    @property
    def gpu(self) -> str:
        """Name and compute capability, for instance ``Orin (8.7)``."""
        name, major, minor = ctypes.create_string_buffer(_NAME_BYTES), c_int(), c_int()
        self._call("cuDeviceGetName", name, _NAME_BYTES, self._device)
        self._call("cuDeviceGetAttribute", byref(major), _MAJOR, self._device)
        self._call("cuDeviceGetAttribute", byref(minor), _MINOR, self._device)
        return f"{name.value.decode('utf-8', 'replace')} ({major.value}.{minor.value})"

    def free_bytes(self) -> int:
        """Memory of the GPU that is free now."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def allocate(self, size: int) -> int:
        """Memory on the GPU."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), size)
        return address.value

    def release(self, address: int) -> None:
        """Give :meth:`allocate`'s memory back."""
        self._call("cuMemFree_v2", address)

    def allocate_host(self, size: int) -> int:
        """Memory of this process that the GPU reads and writes by itself (page-locked)."""
        address = c_void_p()
        self._call("cuMemAllocHost_v2", byref(address), size)
        return address.value or 0

    def release_host(self, address: int) -> None:
        """Give :meth:`allocate_host`'s memory back."""
        self._call("cuMemFreeHost", address)

    def upload(self, device: int, host: int, size: int, stream: int) -> None:
        """Copy from :meth:`allocate_host`'s memory to the GPU, in the order of the stream."""
        self._call("cuMemcpyHtoDAsync_v2", device, host, size, stream)

    def download(self, host: int, device: int, size: int, stream: int) -> None:
        """Copy back."""
        self._call("cuMemcpyDtoHAsync_v2", host, device, size, stream)

    def stream(self) -> int:
        """A new stream."""
        handle = c_void_p()
        self._call("cuStreamCreate", byref(handle), _NON_BLOCKING)
        return handle.value or 0

    def wait(self, stream: int) -> None:
        """Wait until everything in a stream is done."""
        self._call("cuStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """Free a stream."""
        self._call("cuStreamDestroy_v2", stream)

    def begin_capture(self, stream: int) -> None:
        """From now on, note down what goes into the stream instead of doing it."""
        self._call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """A graph of what was noted down, ready to be launched; always to be called after :meth:`begin_capture`."""
        graph, ready = c_void_p(), c_void_p()
        self._call("cuStreamEndCapture", stream, byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", byref(ready), graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        return ready.value or 0

    def launch(self, graph: int, stream: int) -> None:
        """Do everything in a graph."""
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Free a graph."""
        self._call("cuGraphExecDestroy", graph)
