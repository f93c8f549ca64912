"""OpenVINO on CPUs, Intel GPUs and Intel NPUs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import EngineError, EngineUnavailable
from edgepose.runtimes.batches import Arrays, check_free, joined, ordered
from edgepose.runtimes.profile import OpTime, op_times
from edgepose.types import TensorSpec

__all__ = ["MODES", "OpenVinoEngine", "Pending", "import_openvino", "usage_statistics_blocked"]

MODES = ("latency", "throughput")
"""What an engine is tuned for: the time of one inference, or inferences per second."""

_PLUGINS = {"auto": "CPU", "cpu": "CPU", "gpu": "GPU", "npu": "NPU", "vpu": "NPU"}
_SIZES = (32, 16, 8, 4, 2, 1)
_NOT_EXECUTED = ("Const", "Input", "Output", "Constant", "Parameter", "Result")
_ADVICE = {
    "CPU": "reinstall openvino",
    "GPU": "install Intel's compute runtime for the GPU, or use --device cpu",
    "NPU": "install the Intel NPU driver, or use --device cpu; Myriad sticks need OpenVINO 2022.3 or older, "
    "which edgepose does not support",
}


class OpenVinoEngine:
    """An OpenVINO IR (``.xml`` with its ``.bin``), compiled for one device.

    Never falls back: the AUTO and HETERO plugins are not used, and a device that is not there is an error. FP32 stays
    FP32: OpenVINO's own default is bfloat16 where a CPU has it.

    Static shapes run faster than dynamic ones, so the model is compiled for batch 1 when it is loaded, for other powers
    of two up to 32 when they are first needed, and a batch of 13 runs as 8 + 4 + 1. For throughput each element of a
    batch is an inference of its own, and as many run side by side as OpenVINO finds best.
    """

    name = "openvino"

    def __init__(self, path: Path, device: str = "auto", threads: int | None = None, *, mode: str = "latency") -> None:
        """Load a model file.

        Args:
            path: The ``.xml`` file; its ``.bin`` lies beside it.
            device: ``auto`` (always the CPU: the same on every machine), ``cpu``, ``gpu``, ``npu``, or ``vpu``, which
                is another name of ``npu``. The NPU takes fixed shapes alone: there the batch is 1.
            threads: CPU threads, or None for OpenVINO's choice (one per core). GPU and NPU do without.
            mode: ``latency`` or ``throughput``.

        Raises:
            EngineUnavailable: This machine has no such device, or there is no such mode.
            EngineError: The file cannot be loaded.
        """
        if mode not in MODES:
            raise EngineUnavailable(f"openvino has no mode {mode!r}: choose {', '.join(MODES)}")
        self._core = import_openvino().Core()
        self._path = path
        self._plugin = _plugin(device, self._core.available_devices)
        self.device = self._plugin.lower()
        self._settings = _settings(self._plugin, path.stem, threads, mode)
        self._model = self._read()
        self.metadata: Mapping[str, str] = _metadata(self._model)
        self.inputs = _checked(_tensors(self._model.inputs), path)
        if self._plugin == "NPU" and self.inputs[0].shape[0] is None:
            self._model = _with_batch(self._model, 1)
            self.inputs = _tensors(self._model.inputs)
        self.outputs = _tensors(self._model.outputs)
        fixed = self.inputs[0].shape[0]
        self._parallel = mode == "throughput"
        self._sizes = (fixed,) if fixed else (1,) if self._parallel else _SIZES
        self._lock = Lock()
        self._compiled: dict[int, _Compiled] = {}
        try:
            self._for(self._sizes[-1])
        except Exception as error:  # see _read
            raise EngineError(f"{path}: openvino cannot compile it for {self.device} ({_reason(error)})") from None

    def _read(self) -> Any:
        weights = self._path.with_suffix(".bin")
        try:
            with self._path.open("rb") as file:
                if b"<net" not in file.read(4096):
                    raise ValueError("no OpenVINO IR")
            if not weights.is_file():
                raise ValueError(f"its weights {weights.name} are not beside it: copy both files")
            return self._core.read_model(self._path)
        except Exception as error:  # OpenVINO's errors have no common base but Exception
            raise EngineError(f"{self._path}: openvino cannot load it ({_reason(error)})") from None

    def _for(self, size: int) -> _Compiled:
        """The model for one batch size, compiled on first use."""
        with self._lock:
            if size not in self._compiled:
                if self._model is None:
                    raise ValueError("the engine is closed")
                model = self._core.compile_model(_with_batch(self._model, size), self._plugin, self._settings)
                self._compiled[size] = _Compiled(model, import_openvino().Tensor)
            return self._compiled[size]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch; see :class:`edgepose.types.Engine`."""
        if self._parallel:
            return self.result(self.run_async(feeds))
        try:
            arrays = ordered(self.inputs, feeds)
            return joined(self.outputs, [self._for(size).run(part) for size, part in _split(arrays, self._sizes)])
        except Exception as error:  # see _read
            raise self._failed(error) from None

    def run_async(self, feeds: Mapping[str, NDArray[Any]]) -> Pending:
        """Start one batch and return at once, or when the oldest batch is done where too many are under way.

        The inputs are copied: the caller may write into the arrays again. Any number of batches may be started before
        their results are asked for, from any thread.

        Raises:
            EngineError: The inputs do not fit the model, or the engine failed to start.
        """
        try:
            arrays = ordered(self.inputs, feeds)
            return Pending([self._for(size).start(part) for size, part in _split(arrays, self._sizes)])
        except Exception as error:  # see _read
            raise self._failed(error) from None

    def result(self, pending: Pending) -> dict[str, NDArray[Any]]:
        """Wait for a batch that :meth:`run_async` started, in any order.

        Raises:
            EngineError: The engine failed.
        """
        try:
            return joined(self.outputs, [part.answers() for part in pending.parts])
        except Exception as error:  # see _read
            raise self._failed(error) from None

    def placement(self) -> dict[str, int]:
        """Nodes of the compiled graph per device and precision, for instance ``{"CPU f32": 63, "CPU u8": 48}``.

        Quantized nodes are ``u8`` or ``i8``; those that move the input's pixels are ``u8`` in every model. The NPU does
        not tell its graph, and runs all of a model or nothing: there the model's own nodes count.
        """
        if self._plugin == "NPU":
            nodes = [op for op in self._model.get_ordered_ops() if op.get_type_name() not in _NOT_EXECUTED]
            return {self._plugin: len(nodes)}
        ops = self._for(self._sizes[-1]).model.get_runtime_model().get_ordered_ops()
        facts = [{key: str(op.rt_info[key].value) for key in ("layerType", "runtimePrecision")} for op in ops]
        executed = [fact["runtimePrecision"] for fact in facts if fact["layerType"] not in _NOT_EXECUTED]
        # A node with f16 weights counts as f16, though the CPU computes in the f32 that it was told to.
        real = {"f16": "f32"} if self._plugin == "CPU" else {}
        return dict(sorted(Counter(f"{self._plugin} {real.get(p, p)}" for p in executed).items()))

    def profile(self, feeds: Mapping[str, NDArray[Any]], runs: int) -> list[OpTime]:
        """Time of each node of the compiled graph; see :class:`edgepose.runtimes.profile.ProfilingEngine`.

        A batch that is run in parts is profiled part by part.
        """
        seconds: defaultdict[tuple[str, str, str], float] = defaultdict(float)
        settings = self._settings | {"PERF_COUNT": True}
        try:
            for size, arrays in _split(ordered(self.inputs, feeds), self._sizes):
                model = self._core.compile_model(_with_batch(self._model, size), self._plugin, settings)
                request = model.create_infer_request()
                for run in range(1 + runs):
                    request.infer(dict(enumerate(arrays)))
                    for node, spent in _executed(request, self._plugin) if run else ():
                        seconds[node] += spent
        except Exception as error:  # see _read
            raise self._failed(error) from None
        return op_times(seconds, runs)

    def close(self) -> None:
        """Wait for what is under way and free the device; results that were not asked for stay to be had."""
        with self._lock:
            compiled, self._compiled, self._model = self._compiled, {}, None
        for one in compiled.values():
            one.settle()

    def _failed(self, error: Exception) -> EngineError:
        return EngineError(f"{self._path.name}: openvino failed on {self.device} ({_reason(error)})")


class Pending:
    """A batch that is under way; give it to :meth:`OpenVinoEngine.result`."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.parts = parts


class _Part:
    """One inference under way. Its answers are copied out of the request before that is used again."""

    def __init__(self, request: Any, count: int) -> None:
        self._request = request
        self._count = count
        self._lock = Lock()
        self._answers: Arrays = ()
        self._error: Exception | None = None

    def settle(self) -> None:
        """Wait until it is done and keep the answers, or the error, for whoever asks."""
        with self._lock:
            if self._request is None:
                return
            try:
                self._request.wait()
                self._answers = _answers(self._request, self._count)
            except Exception as error:  # see _read
                self._error = error
            self._request = None

    def answers(self) -> Arrays:
        self.settle()
        if self._error is not None:
            raise self._error
        return self._answers


class _Compiled:
    """The model for one batch size: a request for ``run``, and a ring of requests for ``run_async``."""

    def __init__(self, model: Any, tensor: Any) -> None:
        self.model = model
        self._tensor = tensor
        self._count = len(model.outputs)
        self._fed: Arrays = ()
        self._request = model.create_infer_request()
        self._request_lock = Lock()
        self._ring: deque[tuple[Any, _Part | None]] = deque()
        self._ring_lock = Lock()

    def run(self, arrays: Arrays) -> Arrays:
        """Answers that no later run overwrites; inputs that are contiguous and writable are read where they are."""
        with self._request_lock:
            self._fed = [np.require(array, None, ["C", "W"]) for array in arrays]  # lives while the request reads it
            for index, array in enumerate(self._fed):
                self._request.set_input_tensor(index, self._tensor(array, shared_memory=True))
            self._request.infer(share_outputs=True)
            return _answers(self._request, self._count)

    def start(self, arrays: Arrays) -> _Part:
        """Start on the request that was started longest ago, after its answers were put aside."""
        with self._ring_lock:
            if not self._ring:
                # One beyond those that run, so that the next is ready when one ends.
                count = self.model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") + 1
                self._ring.extend((self.model.create_infer_request(), None) for _ in range(count))
            request, last = self._ring[0]
            if last is not None:
                last.settle()
            request.start_async(dict(enumerate(arrays)), share_inputs=False)
            part = _Part(request, self._count)
            self._ring.popleft()
            self._ring.append((request, part))
            return part

    def settle(self) -> None:
        """Wait for all that is under way."""
        with self._ring_lock:
            for _, part in self._ring:
                if part is not None:
                    part.settle()


def _executed(request: Any, plugin: str) -> Iterator[tuple[tuple[str, str, str], float]]:
    """Name, kind and kernel (which says in which precision) of each node of the last run, and its seconds."""
    for node in request.profiling_info:
        if node.status == node.Status.EXECUTED:
            where = f"{plugin} {node.exec_type}".strip()
            yield (node.node_name, node.node_type, where), node.real_time.total_seconds()


def _answers(request: Any, count: int) -> Arrays:
    """Copies of a request's outputs, so that they outlive its next run."""
    return [request.get_output_tensor(index).data.copy() for index in range(count)]


def import_openvino() -> Any:
    """The library, without its usage statistics.

    Raises:
        ImportError: It is not installed.
    """
    with usage_statistics_blocked():
        import openvino
    return openvino


@contextlib.contextmanager
def usage_statistics_blocked() -> Iterator[None]:
    """OpenVINO and NNCF, imported inside, send and store no statistics: the package that does cannot be imported."""
    name = "openvino_telemetry"
    before = {name: sys.modules[name]} if name in sys.modules else {}
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(before)


def _plugin(device: str, available: Sequence[str]) -> str:
    """OpenVINO's name of a device.

    Raises:
        EngineUnavailable: It is not among those that OpenVINO finds, such as ``CPU`` or ``GPU.0``.
    """
    name = _PLUGINS[device]
    if name not in {found.partition(".")[0] for found in available}:
        found = ", ".join(available) or "nothing"
        raise EngineUnavailable(f"OpenVINO finds no {name} here (it finds {found}): {_ADVICE[name]}")
    return name


def _settings(plugin: str, variant: str, threads: int | None, mode: str) -> dict[str, Any]:
    """What a model is compiled with.

    The CPU is told to compute in float32, where its default is bfloat16 on some. Threads are not pinned to cores: it
    was no faster, and it is in the way of whatever else runs. Compiled models are cached where compiling is slow.
    """
    settings: dict[str, Any] = {"PERFORMANCE_HINT": mode.upper()}
    if plugin == "CPU":
        settings |= {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
        return settings | ({"INFERENCE_NUM_THREADS": threads} if threads is not None else {})
    if plugin == "GPU":
        settings["INFERENCE_PRECISION_HINT"] = "f32" if variant.endswith("fp32") else "f16"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgepose" / "openvino"
    return settings | {"CACHE_DIR": str(cache)}


def _tensors(ports: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            port.any_name,
            np.dtype(port.element_type.to_dtype()).name,
            tuple(None if side.is_dynamic else side.get_length() for side in port.partial_shape),
        )
        for port in ports
    )


def _checked(inputs: tuple[TensorSpec, ...], path: Path) -> tuple[TensorSpec, ...]:
    """The inputs, all of one batch size and free in nothing else: what static shapes, and an NPU, need.

    Raises:
        EngineError: They are not.
    """
    check_free(inputs, path)
    return inputs


def _with_batch(model: Any, size: int) -> Any:
    """A copy of a model for one batch size; the weights are shared."""
    fixed = model.clone()
    shapes = [spec.shape[1:] for spec in _tensors(model.inputs)]
    fixed.reshape({index: [size, *shape] for index, shape in enumerate(shapes)})
    return fixed


def _split(arrays: Arrays, sizes: Sequence[int]) -> Iterator[tuple[int, Arrays]]:
    """Cut a batch into the sizes, largest first: 13 with powers of two is 8, 4 and 1."""
    start = 0
    for size in sizes:
        while len(arrays[0]) - start >= size:
            yield size, [array[start : start + size] for array in arrays]
            start += size


def _metadata(model: Any) -> dict[str, str]:
    values = {str(key): model.get_rt_info([key]).value for key in model.rt_info}
    return {key: value for key, value in values.items() if isinstance(value, str)}


def _reason(error: Exception) -> str:
    """The line that tells, without OpenVINO's own source lines before it."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return (telling or [type(error).__name__])[0][:300]
