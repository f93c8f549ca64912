"""TFLite on CPUs (XNNPACK) and, by delegates, on GPUs, NPUs and Edge TPUs: ai-edge-litert, else tflite-runtime."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import platform
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import BundleError, EngineError, EngineUnavailable
from edgepose.runtimes.batches import Arrays, check_free, joined, ordered
from edgepose.runtimes.tflite_file import TfliteModel, read_tflite, tensor_specs
from edgepose.runtimes.tflite_ops import int8_readiness
from edgepose.types import TensorSpec

__all__ = ["DELEGATES", "TfliteEngine", "TfliteLibrary", "import_tflite"]

DELEGATES = {
    "gpu": ("libtensorflowlite_gpu_delegate.so",),
    "npu": ("libvx_delegate.so", "libethosu_delegate.so", "libneutron_delegate.so", "libQnnTFLiteDelegate.so"),
    "edgetpu": ("libedgetpu.so.1",),
}
"""Device -> libraries that are tried in turn, by the names under which their makers install them."""

_ARM = ("aarch64", "arm64", "armv7l", "armv8l")
_BY_PATH = "delegate:"
_INT8_ONLY = ("npu", "edgetpu")
_CHATTER = ("INFO:", "VERBOSE:", "WARNING: Attempting to use a delegate")


@dataclass(frozen=True)
class TfliteLibrary:
    """The interpreter's module, and the package that it comes from."""

    package: str
    version: str
    module: Any


class TfliteEngine:
    """A ``.tflite`` file in an interpreter.

    Never falls back to another device: a delegate that is missing, or takes none of the graph, is an error. What a
    delegate leaves runs on the CPU, as with every delegate; :meth:`placement` tells.

    Files are made for one crop: a batch is run crop by crop, and the engine takes any. Where a file leaves its batch
    free, the CPU runs the whole batch at once. A file made for a larger batch takes batches of that size alone.
    """

    name = "tflite"

    def __init__(
        self,
        path: Path,
        device: str = "auto",
        threads: int | None = None,
        *,
        xnnpack: bool = True,
    ) -> None:
        """Load a model file.

        Args:
            path: The ``.tflite`` file.
            device: ``auto`` (always the CPU: the same on every machine), ``cpu``, ``gpu``, ``npu``, ``edgetpu``, or
                ``delegate:PATH``, the path of any delegate's library.
            threads: CPU threads, or None for one per core that this process may use.
            xnnpack: Whether the CPU runs XNNPACK's kernels where it can; else TFLite's own throughout.

        Raises:
            EngineUnavailable: The delegate is not here, or tflite-runtime meets numpy 2.
            EngineError: The file cannot be loaded, or this library is known to compute it wrongly.
        """
        self._path = path
        self.device = "cpu" if device == "auto" else device
        self._library = import_tflite()
        self._model = _read(path, self._library)
        self.metadata: Mapping[str, str] = self._model.text()
        inputs, outputs = _checked(*tensor_specs(self._model), path)
        self._batch = inputs[0].shape[0]
        self._fixed = 1 if self._batch is None and self.device != "cpu" else self._batch
        free = self._batch in (None, 1)
        self.inputs = tuple(_with_free_batch(spec) if free else spec for spec in inputs)
        self.outputs = tuple(_with_free_batch(spec) if free else spec for spec in outputs)
        self._lock = Lock()
        self._interpreter: Any = None
        self._own_nodes: list[dict[str, Any]] = []
        self._load(threads or _usable_cpus(), xnnpack)

    @staticmethod
    def devices_here() -> dict[str, str]:
        """The CPU, and the delegates whose library can be opened; whether one finds its hardware shows on first use."""
        import_tflite()
        opened = {device: [name for name in names if _opens(name)] for device, names in DELEGATES.items()}
        return {"cpu": "XNNPACK", **{device: ", ".join(names) for device, names in opened.items() if names}}

    def _load(self, threads: int, xnnpack: bool) -> None:
        """Make the interpreter, hand the graph to the delegate, and allocate."""
        kinds = self._library.module.OpResolverType
        delegate = None if self.device == "cpu" else _load_delegate(self._library, self.device)
        with _quiet():
            try:
                self._interpreter = self._library.module.Interpreter(
                    model_path=str(self._path),
                    num_threads=threads,
                    experimental_op_resolver_type=kinds.AUTO if xnnpack else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                    experimental_delegates=None if delegate is None else [delegate],
                )
                self._own_nodes = _nodes(self._interpreter)
                self._interpreter.allocate_tensors()
            except Exception as error:  # the library's errors have no common base but Exception
                raise self._refused(error) from None
        if delegate is not None and self._own_nodes and not _taken(self._own_nodes):
            raise self._refused(ValueError("it takes none of the operators"))
        self._input_numbers = [row["index"] for row in self._interpreter.get_input_details()]
        self._output_numbers = [row["index"] for row in self._interpreter.get_output_details()]
        self._size = self._batch or 1

    def _refused(self, error: Exception) -> EngineError:
        """Why the file does not load here, and what to do about it."""
        reason, who = _reason(error), f"{self._library.package} {self._library.version}"
        newer = re.search(r"builtin opcode '(\w+)' version '(\d+)'", str(error))
        if newer or "builtin_code out of range" in str(error):
            what = f"{newer[1]} version {newer[2]}" if newer else "one of its operators"
            return EngineError(
                f"{self._path}: was made for a newer runtime: {who} lacks {what}: install a newer ai-edge-litert, "
                "or convert with the tools of this one"
            )
        custom = sorted({op.name for op in self._model.operators if op.custom})
        if custom and "custom op" in str(error):
            advice = "--device edgetpu" if "edgetpu-custom-op" in custom else "--device delegate:PATH"
            return EngineError(f"{self._path}: {who} has no {', '.join(custom)}: name its delegate with {advice}")
        if self.device != "cpu":
            return EngineError(
                f"{self._path}: the delegate of --device {self.device} refuses the graph ({reason}); "
                f"{self._operators()}: use another variant, or --device cpu"
            )
        return EngineError(f"{self._path}: tflite cannot load it ({reason}; {who})")

    def _operators(self) -> str:
        """The graph's operators in a line; for INT8-only delegates those that cannot run there."""
        if self.device in _INT8_ONLY:
            rows = int8_readiness(self._model.operators)
            return "not for an INT8-only delegate: " + (
                ", ".join(f"{row.count} {row.name} ({row.reason})" for row in rows) or "nothing that the file shows"
            )
        counts = Counter(op.name for op in self._model.operators)
        return "its operators: " + ", ".join(f"{count} {name}" for name, count in counts.most_common())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch; see :class:`edgepose.types.Engine`."""
        try:
            arrays = ordered(self.inputs, feeds)
            with self._lock:
                return joined(self.outputs, [self._invoke(part) for part in _split(arrays, self._fixed)])
        except Exception as error:  # see _load
            raise EngineError(f"{self._path.name}: tflite failed on {self.device} ({_reason(error)})") from None

    def _invoke(self, arrays: Arrays) -> Arrays:
        """One call of the interpreter; where the batch is free, it is resized first."""
        if self._interpreter is None:
            raise ValueError("the engine is closed")
        count = len(arrays[0])
        if count != self._size:
            for number, array in zip(self._input_numbers, arrays, strict=True):
                self._interpreter.resize_tensor_input(number, array.shape, strict=True)
            self._interpreter.allocate_tensors()
            self._size = count
        for number, array in zip(self._input_numbers, arrays, strict=True):
            self._interpreter.set_tensor(number, np.ascontiguousarray(array))
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(number) for number in self._output_numbers]

    def placement(self) -> dict[str, int]:
        """Operators per place, for instance ``{"CPU": 3, "CPU XNNPACK": 57}`` or ``{"CPU": 4, "edgetpu": 56}``.

        A library that does not tell its graph counts everything where it was asked to run.
        """
        total = len([node for node in self._own_nodes if node["op_name"] != "DELEGATE"])
        if not total:
            return {self.device if self.device != "cpu" else "CPU": len(self._model.operators)}
        delegated = _taken(self._own_nodes)
        with self._lock:
            xnnpack = _taken(_nodes(self._interpreter)) - delegated
        counts = {"CPU": total - len(delegated | xnnpack), "CPU XNNPACK": len(xnnpack), self.device: len(delegated)}
        return {where: count for where, count in counts.items() if count}

    def close(self) -> None:
        """Free the interpreter and the delegate."""
        with self._lock:
            self._interpreter = None


def import_tflite() -> TfliteLibrary:
    """The interpreter of ai-edge-litert, or of tflite-runtime where that alone is installed.

    Raises:
        ImportError: Neither is installed, or it is broken.
        EngineUnavailable: tflite-runtime meets numpy 2, which ends in a crash.
    """
    if importlib.util.find_spec("ai_edge_litert") is not None:
        return TfliteLibrary(
            "ai-edge-litert", _version("ai-edge-litert"), importlib.import_module("ai_edge_litert.interpreter")
        )
    if importlib.util.find_spec("tflite_runtime") is None:
        raise ImportError("neither ai-edge-litert nor tflite-runtime is installed")
    number = _version("tflite-runtime")
    if int(np.__version__.partition(".")[0]) >= 2:
        raise EngineUnavailable(
            f"tflite-runtime {number} was built for numpy 1 and fails with the numpy {np.__version__} that is here: "
            "pip install 'numpy<2', or ai-edge-litert where it has a wheel"
        )
    return TfliteLibrary("tflite-runtime", number, importlib.import_module("tflite_runtime.interpreter"))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a distribution's package, or a nightly build under another name
        return "of unknown version"


def _read(path: Path, library: TfliteLibrary) -> TfliteModel:
    """The file's own description, checked, before the library, which checks less, sees it.

    Raises:
        EngineError: It is damaged, or this library is known to compute it wrongly.
    """
    try:
        model = read_tflite(path)
    except BundleError as error:
        raise EngineError(str(error)) from None
    if library.package == "tflite-runtime":
        _refuse_what_goes_wrong(model, path, library.version)
    return model


def _refuse_what_goes_wrong(model: TfliteModel, path: Path, number: str) -> None:
    """Raises EngineError where tflite-runtime would compute something wrongly, or crash."""
    linear = [op for op in model.operators if op.name == "FULLY_CONNECTED"]
    wrong = sum(op.dynamic_range for op in linear)
    if wrong:
        raise EngineError(
            f"{path}: {wrong} FULLY_CONNECTED operators with INT8 weights and float activations (dynamic range), which "
            f"tflite-runtime {number} computes wrongly without a word: use ai-edge-litert, or another variant"
        )
    bare = sum(len(op.inputs) < 3 and op.inputs[0].dtype == "int8" for op in linear)
    if bare and platform.machine() in _ARM:
        raise EngineError(
            f"{path}: {bare} INT8 FULLY_CONNECTED operators without a bias, on which tflite-runtime {number} crashes "
            "on ARM: use ai-edge-litert, or convert again with edgepose, which adds biases"
        )


def _opens(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _load_delegate(library: TfliteLibrary, device: str) -> Any:
    """The delegate of a device, or of a library by its path.

    Raises:
        EngineUnavailable: It is not there, no delegate, or finds no hardware.
    """
    by_path = device.startswith(_BY_PATH)
    names = (device.removeprefix(_BY_PATH),) if by_path else DELEGATES[device]
    reasons = []
    for name in names:
        try:
            if not hasattr(ctypes.CDLL(name), "tflite_plugin_create_delegate"):
                raise ValueError(f"{name} is no TFLite delegate")
            with _quiet():
                return library.module.load_delegate(name)
        except Exception as error:  # what a library does when it is opened is its own
            reasons.append(" ".join(str(error).split())[:300])
    advice = "check the path" if by_path else f"install its driver, or name the library with --device {_BY_PATH}PATH"
    raise EngineUnavailable(f"no delegate for --device {device} here ({'; '.join(reasons)}): {advice}")


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _nodes(interpreter: Any) -> list[dict[str, Any]]:
    """Name, inputs and outputs of each node, or nothing where the library does not tell."""
    try:
        nodes: list[dict[str, Any]] = interpreter._get_ops_details()
    except Exception:  # not part of the library's promises
        return []
    return nodes


def _taken(nodes: Sequence[Mapping[str, Any]]) -> set[int]:
    """Nodes that delegates run: those between a delegate's outputs and its inputs."""
    own = {int(t): i for i, node in enumerate(nodes) if node["op_name"] != "DELEGATE" for t in node["outputs"]}
    taken: set[int] = set()
    for delegate in (node for node in nodes if node["op_name"] == "DELEGATE"):
        given = {int(tensor) for tensor in delegate["inputs"]}
        todo = [int(tensor) for tensor in delegate["outputs"]]
        while todo:
            tensor = todo.pop()
            if tensor in given or tensor not in own or own[tensor] in taken:
                continue
            taken.add(own[tensor])
            todo += [int(t) for t in nodes[own[tensor]]["inputs"]]
    return taken


def _checked(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], path: Path
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The tensors, all of one batch size and free in nothing else.

    Raises:
        EngineError: They are not, or there are none.
    """
    check_free((*inputs, *outputs), path)
    if not (inputs and outputs):
        raise EngineError(f"{path}: has no inputs or no outputs: convert again")
    return inputs, outputs


def _with_free_batch(spec: TensorSpec) -> TensorSpec:
    return replace(spec, shape=(None, *spec.shape[1:]))


def _split(arrays: Arrays, size: int | None) -> Iterator[Arrays]:
    """Cut a batch into parts of a size, or leave it whole where it is None."""
    count = len(arrays[0])
    step = size or max(count, 1)
    for start in range(0, count, step):
        yield [array[start : start + step] for array in arrays]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's remarks, which it writes past Python, off the terminal; whatever else is written follows."""
    try:
        kept = os.dup(2)
    except OSError:  # no terminal to keep quiet
        yield
        return
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines = file.read().decode("utf-8", "replace").splitlines(keepends=True)
            sys.stderr.write("".join(line for line in lines if not line.startswith(_CHATTER)))


def _reason(error: Exception) -> str:
    """The first line that tells, without the library's own source lines before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [re.sub(r"^\S+\.(cc|cpp|h):\d+ ", "", line) for line in lines]
    return (telling or [type(error).__name__])[0][:300]
