"""ONNX Runtime on CPU, CUDA and TensorRT."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import EngineError, EngineUnavailable
from edgepose.files import cache_folder, sha256_file
from edgepose.runtimes.batches import ordered
from edgepose.runtimes.onnx_file import onnx_metadata
from edgepose.runtimes.profile import OpTime, op_times
from edgepose.types import ORIGIN_KEY, TensorSpec

__all__ = ["OnnxRuntimeEngine", "run_graph"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_ADVICE = {
    "cpu": "reinstall onnxruntime",
    "cuda": "check the CUDA and cuDNN libraries, or use --device cpu",
    "tensorrt": "check that TensorRT's libraries are of the version that this onnxruntime was built for, "
    "or use --device cuda",
}
_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
}
_EXPLICIT = '"explicit": true'
_MOST = 32
"""Batches that TensorRT is told to expect at most, and batch sizes whose buffers are kept."""


class OnnxRuntimeEngine:
    """An ONNX file in an ONNX Runtime session.

    Never falls back: where the provider that is asked for does not come up, loading fails. Single nodes for which it
    has no kernel run elsewhere, as onnxruntime does it; :meth:`placement` tells.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, device: str = "auto", threads: int | None = None, **options: str) -> None:
        """Load a model file.

        Args:
            path: The ``.onnx`` file.
            device: ``auto`` (CUDA where the installed package has it), ``cpu``, ``cuda``, or ``tensorrt``, whose first
                load takes minutes: it builds for this GPU, and keeps what it built in the user's cache.
            threads: Threads of one inference, or None for onnxruntime's choice (all cores).
            options: For ``tensorrt``: ``fp16`` and ``int8`` (``yes`` or ``no``; by default what the file's name
                says), ``workspace_mib`` (memory that a layer may use while it runs; by default TensorRT's choice) and
                ``max_batch`` (32).

        Raises:
            EngineUnavailable: The device was asked for and is not there, or the options do not go with it.
            EngineError: The file cannot be loaded.
        """
        import onnxruntime

        self._ort = onnxruntime
        self._path = path
        self._threads = threads
        available = onnxruntime.get_available_providers()
        if device == "auto":
            device = "cuda" if _PROVIDERS["cuda"] in available else "cpu"
        if _PROVIDERS[device] not in available:
            raise EngineUnavailable(
                f"this onnxruntime has no {_PROVIDERS[device]} (it has {', '.join(available)}): "
                "pip install onnxruntime-gpu (on Jetson the wheel for your JetPack), or use --device cpu"
            )
        if options and device != "tensorrt":
            raise EngineUnavailable(f"onnxruntime: {', '.join(options)} are options of --device tensorrt, not {device}")
        self.device = device
        self._options = options
        self._session = self._open()
        if self._session.get_providers()[0] != _PROVIDERS[device]:
            raise EngineUnavailable(
                f"{_PROVIDERS[device]} did not start and onnxruntime offers {self._session.get_providers()[0]} "
                f"instead: {_ADVICE[device]}"
            )
        self.inputs = tuple(_tensor(node) for node in self._session.get_inputs())
        self.outputs = tuple(_tensor(node) for node in self._session.get_outputs())
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        self._buffers = None if device == "cpu" else _Buffers(onnxruntime.OrtValue, self.inputs, self.outputs)
        self._lock = Lock()

    @staticmethod
    def devices_here() -> dict[str, str]:
        """Devices that the installed package was built for, with their providers; the hardware may be missing."""
        import onnxruntime

        available = onnxruntime.get_available_providers()
        return {device: provider for device, provider in _PROVIDERS.items() if provider in available}

    def _open(self, profile_prefix: Path | None = None) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        # Threads that spin after the last run steal time from whatever comes next: decode, or another variant.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_prefix)
        try:
            if self.device != "tensorrt" and _is_explicit(self._path):
                # Quantized biases would get scales that float16 cannot hold.
                options.add_session_config_entry("session.disable_quant_qdq", "1")
            return self._ort.InferenceSession(str(self._path), options, providers=self._providers(), enable_fallback=0)
        except EngineUnavailable:
            raise
        except Exception as error:  # onnxruntime's errors have no common base but Exception
            raise EngineError(f"{self._path}: onnxruntime cannot load it ({_first_line(error)})") from None

    def _providers(self) -> list[Any]:
        """Providers in the order of preference, with their settings."""
        cuda = (_PROVIDERS["cuda"], {"use_tf32": "0"})  # FP32 stays FP32
        if self.device == "cpu":
            return [_PROVIDERS["cpu"]]
        if self.device == "cuda":
            return [cuda, _PROVIDERS["cpu"]]
        # Its inputs are not known before a session is there, and the CPU's costs little.
        session = self._ort.InferenceSession(str(self._path), providers=[_PROVIDERS["cpu"]])
        inputs = [_tensor(node) for node in session.get_inputs()]
        settings = _tensorrt_settings(self._path, inputs, self._options)
        return [(_PROVIDERS["tensorrt"], settings), cuda, _PROVIDERS["cpu"]]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch; see :class:`edgepose.types.Engine`."""
        try:
            if self._buffers is None:
                answers = self._session.run(None, dict(feeds))
            else:
                with self._lock:
                    answers = self._buffers.run(self._session, ordered(self.inputs, feeds))
        except Exception as error:  # as above
            raise EngineError(
                f"{self._path.name}: onnxruntime failed on {self.device} ({_first_line(error)})"
            ) from None
        return {spec.name: answer for spec, answer in zip(self.outputs, answers, strict=True)}

    def placement(self) -> dict[str, int]:
        """Nodes of the optimised graph per execution provider, from a profiled run of one zero input."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._open(Path(folder) / "profile")
            zeros = {s.name: np.zeros([d or 1 for d in s.shape], s.dtype) for s in self.inputs}
            session.run(None, zeros)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        kernels = {e["name"]: e["args"]["provider"] for e in events if e["name"].endswith("_kernel_time")}
        return dict(Counter(kernels.values()))

    def profile(self, feeds: Mapping[str, NDArray[Any]], runs: int) -> list[OpTime]:
        """Time of each node; see :class:`edgepose.runtimes.profile.ProfilingEngine`."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._open(Path(folder) / "profile")
            try:
                for _ in range(1 + runs):
                    session.run(None, dict(feeds))
            except Exception as error:  # as above
                raise EngineError(f"{self._path.name}: onnxruntime failed ({_first_line(error)})") from None
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        first = min((e["ts"] + e["dur"] for e in events if e["name"] == "model_run"), default=0)
        seconds: defaultdict[tuple[str, str, str], float] = defaultdict(float)
        for event in events:
            if event["name"].endswith("_kernel_time") and event["ts"] >= first:
                told = event["args"]
                name = event["name"].removesuffix("_kernel_time")
                seconds[name, told["op_name"], told["provider"]] += event["dur"] / 1e6
        return op_times(seconds, runs)

    def close(self) -> None:
        """Free the session and its buffers."""
        with self._lock:
            self._session, self._buffers = None, None


class _Buffers:
    """Inputs and outputs on the device, kept by batch size: nothing is allocated from run to run."""

    def __init__(self, value: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self._value = value
        self._specs = (tuple(inputs), tuple(outputs))
        self._kept: dict[int, tuple[Any, list[Any], list[Any]]] = {}

    def run(self, session: Any, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Copy in, run, copy out."""
        binding, given, answers = self._for(session, len(arrays[0]))
        for value, array in zip(given, arrays, strict=True):
            value.update_inplace(np.ascontiguousarray(array))
        session.run_with_iobinding(binding)
        return [value.numpy() for value in answers]

    def _for(self, session: Any, batch: int) -> tuple[Any, list[Any], list[Any]]:
        if batch not in self._kept:
            if len(self._kept) == _MOST:
                self._kept.pop(next(iter(self._kept)))
            given, answers = ([self._on_device(spec, batch) for spec in specs] for specs in self._specs)
            binding = session.io_binding()
            for spec, value in zip(self._specs[0], given, strict=True):
                binding.bind_ortvalue_input(spec.name, value)
            for spec, value in zip(self._specs[1], answers, strict=True):
                binding.bind_ortvalue_output(spec.name, value)
            self._kept[batch] = (binding, given, answers)
        return self._kept[batch]

    def _on_device(self, spec: TensorSpec, batch: int) -> Any:
        shape = [batch if side is None else side for side in spec.shape]
        return self._value.ortvalue_from_shape_and_type(shape, np.dtype(spec.dtype), "cuda", 0)


def _tensorrt_settings(path: Path, inputs: Sequence[TensorSpec], options: Mapping[str, str]) -> dict[str, str]:
    """What the TensorRT provider is told.

    Its engines lie in a folder of this very file: their names are made of the graph, and know nothing of the weights.

    Raises:
        EngineUnavailable: An option is no whole number.
    """
    cache = cache_folder("tensorrt-ep")
    engines = cache / sha256_file(path)[:32]
    engines.mkdir(parents=True, exist_ok=True, mode=0o700)
    most = _whole("max_batch", options.get("max_batch", str(_MOST)))
    form, _, precision = path.stem.partition("-")
    by_name = {"fp16": precision == "fp16" or (form, precision) == ("tensorrt", "int8"), "int8": precision == "int8"}
    told = {name: options[name] == "on" if name in options else by_name[name] for name in by_name}
    settings = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_fp16_enable": str(int(told["fp16"])),
        "trt_int8_enable": str(int(told["int8"])),
    }
    if "workspace_mib" in options:
        settings["trt_max_workspace_size"] = str(_whole("workspace_mib", options["workspace_mib"]) << 20)
    if inputs[0].shape[0] is None:
        # Told beforehand, or every new batch size is minutes of building.
        for key, batch in (("min", 1), ("opt", 1), ("max", most)):
            settings[f"trt_profile_{key}_shapes"] = ",".join(_shape(spec, batch) for spec in inputs)
    return settings


def _shape(spec: TensorSpec, batch: int) -> str:
    return f"{spec.name}:" + "x".join(str(batch if side is None else side) for side in spec.shape)


def _whole(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise EngineUnavailable(f"onnxruntime: {name} is a whole number from 1 upwards, got {text!r}")
    return int(text)


def _is_explicit(path: Path) -> bool:
    """Whether a file is quantized for an engine that compiles quantized nodes as they stand: its origin says so."""
    try:
        return _EXPLICIT in onnx_metadata(path).get(ORIGIN_KEY, "")
    except EngineError:  # onnxruntime will say what is wrong with it
        return False


def _tensor(node: Any) -> TensorSpec:
    shape = tuple(side if isinstance(side, int) else None for side in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def run_graph(
    model: bytes, feeds: Iterable[Mapping[str, NDArray[Any]]], outputs: Sequence[str]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Values of any tensors of a serialised model, input by input; the graph is run as it is, unoptimised."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=[_PROVIDERS["cpu"]])
    for feed in feeds:
        yield dict(zip(outputs, session.run(list(outputs), dict(feed)), strict=True))
