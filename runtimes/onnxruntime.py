"""ONNX Runtime on CPU and CUDA."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import EngineError, EngineUnavailable
from edgepose.runtimes.profile import OpTime, op_times
from edgepose.types import TensorSpec

__all__ = ["OnnxRuntimeEngine", "run_graph"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
}


class OnnxRuntimeEngine:
    """An ONNX file in an ONNX Runtime session.

    Never falls back: where the CUDA provider is asked for and does not come up, loading fails.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, device: str = "auto", threads: int | None = None) -> None:
        """Load a model file.

        Args:
            path: The ``.onnx`` file.
            device: ``auto`` (CUDA where the installed package has it), ``cpu`` or ``cuda``.
            threads: Threads of one inference, or None for onnxruntime's choice (all cores).

        Raises:
            EngineUnavailable: CUDA was asked for and is not there.
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
        self.device = device
        self._session = self._open()
        if self._session.get_providers()[0] != _PROVIDERS[device]:
            raise EngineUnavailable(
                f"{_PROVIDERS[device]} did not start and onnxruntime offers {self._session.get_providers()[0]} "
                "instead: check the CUDA and cuDNN libraries, or use --device cpu"
            )
        self.inputs = tuple(_tensor(node) for node in self._session.get_inputs())
        self.outputs = tuple(_tensor(node) for node in self._session.get_outputs())
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map

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
            return self._ort.InferenceSession(str(self._path), options, providers=[_PROVIDERS[self.device]])
        except Exception as error:  # onnxruntime's errors have no common base but Exception
            raise EngineError(f"{self._path}: onnxruntime cannot load it ({_first_line(error)})") from None

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch; see :class:`edgepose.types.Engine`."""
        try:
            answers = self._session.run(None, dict(feeds))
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
        """Free the session."""
        self._session = None


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
