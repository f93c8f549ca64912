"""TensorRT on NVIDIA GPUs, Jetsons among them: engines are built on the device, from ONNX, and kept."""

from __future__ import annotations

import ctypes
import logging
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import EngineError, EngineUnavailable
from edgepose.files import cache_folder, sha256_file
from edgepose.runtimes.batches import Arrays, joined, ordered
from edgepose.runtimes.cuda_driver import Cuda
from edgepose.runtimes.onnx_file import onnx_metadata
from edgepose.runtimes.tensorrt_api import BuildPlan, Context, Loaded, Progress, TensorRt
from edgepose.runtimes.tensorrt_cache import EngineCache
from edgepose.types import TensorSpec

__all__ = ["TensorRtEngine"]

_log = logging.getLogger(__name__)

_MIB = 1 << 20
_LEAST = 256 * _MIB
"""What the builder itself takes, beside four copies of the weights: a guess, not measured."""
_COPIES = 4


def _tell(phase: str, done: int, total: int) -> None:
    _log.info("%s: %d of %d", phase, done, total)


class TensorRtEngine:
    """An ONNX file, compiled by TensorRT for this GPU.

    Never falls back: TensorRT compiles all of a model or nothing. Building takes minutes, once: engines are kept in the
    user's cache, for this model, GPU, version and options. TensorRT 10 and newer compute in the types of the file:
    use ``tensorrt-fp16`` and ``tensorrt-int8`` variants. FP32 stays FP32, without TF32.

    A batch runs padded to the next power of two, each of which has its own buffers and CUDA graph: copying in,
    inference and copying out are one launch.
    """

    name = "tensorrt"
    device = "cuda"

    def __init__(
        self,
        path: Path,
        device: str = "auto",
        threads: int | None = None,
        *,
        max_batch: str = "8",
        workspace_mib: str = "1024",
        cuda_graphs: str = "on",
        progress: Progress = _tell,
    ) -> None:
        """Load a model file: build an engine, or take the one that was built before.

        Args:
            path: The ``.onnx`` file.
            device: ``auto`` or ``cuda``, which is the first GPU.
            threads: Not used: the work is the GPU's.
            max_batch: Largest batch that the engine is built for, 1 to 64; larger ones run in parts.
            workspace_mib: Memory that a layer may use while it runs, at most half of what is free.
            cuda_graphs: Whether to record a graph for each batch size and replay it: ``on`` or ``off``.
            progress: Told about the phases of a build; by default the log is.

        Raises:
            EngineUnavailable: There is no GPU, or an option makes no sense.
            EngineError: The model cannot be compiled, or the GPU has not the memory.
        """
        import tensorrt

        largest, workspace = _whole("max_batch", max_batch, 64), _whole("workspace_mib", workspace_mib, 1 << 20)
        self._path = path
        self.metadata: Mapping[str, str] = onnx_metadata(path)
        self._cuda = Cuda()
        self._api = TensorRt(tensorrt)
        self._graph = cuda_graphs == "on"
        self._lock = Lock()
        self._slots: dict[int, _Slot] = {}
        self._engine: Loaded | None = self._open(largest, workspace * _MIB, progress)
        self.inputs, self.outputs = self._engine.inputs, self._engine.outputs
        fixed = self.inputs[0].shape[0]
        self._fixed, self._largest = fixed, fixed or largest
        self._check_memory(self._engine.memory_bytes, "to run it")
        self._slot(fixed or 1)

    @staticmethod
    def devices_here() -> dict[str, str]:
        """The GPU, where there is one."""
        import tensorrt  # noqa: F401  # it must be importable for the answer to count

        try:
            return {"cuda": Cuda().gpu}
        except EngineUnavailable:
            return {}

    def _open(self, largest: int, workspace: int, progress: Progress) -> Loaded:
        """The engine out of the cache; else built, and kept."""
        here = {"gpu": self._cuda.gpu, "tensorrt": self._api.version}
        key = {"model": sha256_file(self._path), "max_batch": str(largest), "workspace": str(workspace), **here}
        # Weakly typed versions go by the name of the file.
        key["half"] = "no" if self._path.stem.endswith("fp32") else "yes"
        cache = EngineCache(cache_folder("tensorrt"), key, here)
        kept = cache.read()
        loaded = None if kept is None else self._api.load(kept)
        if loaded is None:
            built = self._build(cache, (1, 1, largest), workspace, key["half"] == "yes", progress)
            loaded = self._api.load(built)
        if loaded is None:
            raise EngineError(
                f"{self._path}: TensorRT {self._api.version} built an engine that it cannot load "
                f"({self._api.complaints.first()})"
            )
        return loaded

    def _build(
        self, cache: EngineCache, batches: tuple[int, int, int], workspace: int, half: bool, progress: Progress
    ) -> bytes:
        model = self._path.read_bytes()
        self._check_memory(_COPIES * len(model) + _LEAST, "to build an engine")
        workspace = min(workspace, self._cuda.free_bytes() // 2)
        _log.warning("%s: building a TensorRT engine for this GPU, once: this takes minutes", self._path.name)
        start = time.monotonic()
        plan = BuildPlan(batches, workspace, half, quantized=b"QuantizeLinear" in model)
        try:
            engine, timings = self._api.build(model, plan, cache.read_timings(), progress)
        except EngineError as error:
            raise EngineError(f"{self._path}: {error}{self._advice(plan)}") from None
        cache.write(engine)
        cache.write_timings(timings)
        _log.info("%s: built in %.0f s", self._path.name, time.monotonic() - start)
        return engine

    def _advice(self, plan: BuildPlan) -> str:
        if plan.quantized and not self._path.stem.startswith("tensorrt"):
            return ": INT8 of other engines is not TensorRT's: convert with --to tensorrt"
        return ""

    def _check_memory(self, needed: int, what: str) -> None:
        free = self._cuda.free_bytes()
        if free < needed:
            raise EngineError(
                f"{self._path}: {what} takes about {needed / _MIB:.0f} MiB of GPU memory, and {free / _MIB:.0f} are "
                "free: close what else uses the GPU"
            )

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch; see :class:`edgepose.types.Engine`."""
        try:
            arrays = ordered(self.inputs, feeds)
            with self._lock:
                self._cuda.use()
                starts = range(0, len(arrays[0]), self._largest)
                parts = [self._run([array[at : at + self._largest] for array in arrays]) for at in starts]
            return joined(self.outputs, parts)
        except (EngineError, ValueError) as error:
            raise EngineError(f"{self._path.name}: tensorrt failed on {self.device} ({error})") from None

    def _run(self, arrays: Arrays) -> Arrays:
        count = len(arrays[0])
        size = self._fixed or min(1 << (count - 1).bit_length(), self._largest)
        return [answer[:count].copy() for answer in self._slot(size).run(arrays)]

    def _slot(self, size: int) -> _Slot:
        """Buffers and graph of one batch size, made when it is first needed."""
        if self._engine is None:
            raise ValueError("the engine is closed")
        if size not in self._slots:
            self._slots[size] = _Slot(self._cuda, self._engine, size, self._graph)
        return self._slots[size]

    def placement(self) -> dict[str, int]:
        """Layers of the engine, all on the GPU: ``{"CUDA": 61}``. Several nodes of a file become one layer."""
        return {"CUDA": self._engine.layers if self._engine else 0}

    def close(self) -> None:
        """Free the GPU."""
        with self._lock:
            if self._engine is not None:
                self._cuda.use()
            slots, self._slots, self._engine = self._slots, {}, None
            for slot in slots.values():
                slot.close()


class _Slot:
    """One batch size: a context, page-locked and GPU memory for each tensor, a stream, and a graph of one inference."""

    def __init__(self, cuda: Cuda, engine: Loaded, size: int, graph: bool) -> None:
        self._cuda = cuda
        self._graph: int | None = None
        with ExitStack() as owned:
            self._given = [_Buffer(cuda, owned, spec, size) for spec in engine.inputs]
            self._answers = [_Buffer(cuda, owned, spec, size) for spec in engine.outputs]
            self._stream = cuda.stream()
            owned.callback(cuda.destroy_stream, self._stream)
            shapes = {buffer.name: buffer.host.shape for buffer in self._given}
            places = {buffer.name: buffer.device for buffer in (*self._given, *self._answers)}
            self._context: Context | None = engine.context(shapes, places)
            self._enqueue()  # TensorRT sets itself up in the first run, which cannot be captured
            cuda.wait(self._stream)
            if graph:
                self._capture()
            self._owned = owned.pop_all()

    def _enqueue(self) -> None:
        assert self._context is not None
        for buffer in self._given:
            self._cuda.upload(buffer.device, buffer.address, buffer.host.nbytes, self._stream)
        self._context.enqueue(self._stream)
        for buffer in self._answers:
            self._cuda.download(buffer.address, buffer.device, buffer.host.nbytes, self._stream)

    def _capture(self) -> None:
        """Note an inference down as a graph; where a layer cannot be, it goes on without."""
        self._cuda.begin_capture(self._stream)
        refused = None
        try:
            self._enqueue()
        except EngineError as error:
            refused = error
        try:
            self._graph = self._cuda.end_capture(self._stream)
        except EngineError as error:
            refused = refused or error
        if refused is not None:
            if self._graph is not None:
                self._cuda.destroy_graph(self._graph)
                self._graph = None
            _log.warning("no CUDA graph of this model (%s): it runs layer by layer", refused)

    def run(self, arrays: Arrays) -> list[NDArray[Any]]:
        """Views of the answers, which the next run overwrites; a batch that is too small leaves the rest as it was."""
        for buffer, array in zip(self._given, arrays, strict=True):
            buffer.host[: len(array)] = array
        if self._graph is None:
            self._enqueue()
        else:
            self._cuda.launch(self._graph, self._stream)
        self._cuda.wait(self._stream)
        return [buffer.host for buffer in self._answers]

    def close(self) -> None:
        """Free everything."""
        if self._graph is not None:
            self._cuda.destroy_graph(self._graph)
        self._context = None
        self._given, self._answers = [], []
        self._owned.close()


class _Buffer:
    """One tensor: page-locked memory here as an array, and memory on the GPU."""

    def __init__(self, cuda: Cuda, owner: ExitStack, spec: TensorSpec, batch: int) -> None:
        self.name = spec.name
        shape = tuple(batch if side is None else side for side in spec.shape)
        dtype = np.dtype(spec.dtype)
        size = math.prod(shape) * dtype.itemsize
        self.device = cuda.allocate(size)
        owner.callback(cuda.release, self.device)
        self.address = cuda.allocate_host(size)
        owner.callback(cuda.release_host, self.address)
        raw: Any = (ctypes.c_char * size).from_address(self.address)
        self.host: NDArray[Any] = np.frombuffer(raw, dtype).reshape(shape)
        self.host[...] = 0


def _whole(name: str, text: str, most: int) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise EngineUnavailable(f"tensorrt: {name} is a whole number from 1 to {most}, got {text!r}")
    return int(text)
