"""TensorRT 8.6 to 11 behind one surface: the only file that knows their differences.

                       8.6 (JetPack 5)            10                          11
network                explicit batch             strongly typed (a flag)     strongly typed (always)
FP16, INT8             builder flags              types and Q/DQ of the file  types and Q/DQ of the file
progress               -                          IProgressMonitor            IProgressMonitor
memory of an engine    device_memory_size         device_memory_size(_v2)     device_memory_size_v2
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgepose.errors import EngineError, EngineUnavailable
from edgepose.types import TensorSpec

__all__ = ["BuildPlan", "Complaints", "Context", "Loaded", "Progress", "TensorRt"]

_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Told a phase of the build, how many of its steps are done, and out of how many."""

_DTYPES = {
    "BOOL": "bool",
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
}
_Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class BuildPlan:
    """How an engine is built.

    Attributes:
        batches: Smallest, usual and largest batch, where the model leaves it free.
        workspace_bytes: Memory that a layer may use while it runs.
        half: Whether layers may be FP16, in versions that do not take the types of the file as they stand.
        quantized: Whether the file has quantized nodes.
    """

    batches: tuple[int, int, int]
    workspace_bytes: int
    half: bool
    quantized: bool


@dataclass
class Complaints:
    """What TensorRT said went wrong, oldest first."""

    lines: list[str] = field(default_factory=list)

    def first(self) -> str:
        """The line that tells most: what follows are consequences."""
        return self.lines[0] if self.lines else "it gives no reason"


class TensorRt:
    """The library.

    Attributes:
        version: For instance ``10.3.0``.
    """

    def __init__(self, module: Any) -> None:
        self._trt = module
        self.version = str(module.__version__)
        self._major = int(self.version.partition(".")[0])
        if self._major < 8 or self.version.startswith(("8.0", "8.2", "8.4", "8.5")):
            raise EngineUnavailable(f"TensorRT {self.version} is too old: 8.6 (JetPack 5.1.2) or newer is needed")
        self.complaints = Complaints()
        self._logger = _logger(module, self.complaints)

    def build(
        self, model: bytes, plan: BuildPlan, timings: bytes, progress: Progress = lambda phase, done, total: None
    ) -> tuple[bytes, bytes]:
        """Compile an ONNX model for this GPU: minutes.

        Args:
            model: The file.
            plan: How.
            timings: The timing cache of earlier builds; it may be empty, or another version's.
            progress: Told about the phases, where this version tells.

        Returns:
            The engine, and the timing cache, to be kept.

        Raises:
            EngineError: The parser does not take the model, or no engine can be built.
        """
        self.complaints.lines.clear()
        builder = self._made("Builder", self._logger)
        network = builder.create_network(self._network_flags())
        self._parse(network, model)
        config = builder.create_builder_config()
        config.set_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE, plan.workspace_bytes)
        self._set_precision(config, plan)
        self._set_shapes(builder, network, config, plan.batches)
        if hasattr(self._trt, "IProgressMonitor"):
            monitor = _monitor(self._trt, progress)  # has to outlive the build
            config.progress_monitor = monitor
        self._set_timings(config, timings)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise EngineError(f"TensorRT {self.version} cannot build it ({self.complaints.first()})")
        return memoryview(engine).tobytes(), memoryview(config.get_timing_cache().serialize()).tobytes()

    def _made(self, kind: str, *arguments: Any) -> Any:
        try:
            return getattr(self._trt, kind)(*arguments)
        except (RuntimeError, TypeError):  # the binding's way of saying that the library gave nothing
            raise EngineError(f"TensorRT {self.version} does not start ({self.complaints.first()})") from None

    def _network_flags(self) -> int:
        flags = self._trt.NetworkDefinitionCreationFlag
        if self._major < 10:
            return 1 << int(flags.EXPLICIT_BATCH)
        return 1 << int(flags.STRONGLY_TYPED) if self._major == 10 else 0

    def _parse(self, network: Any, model: bytes) -> None:
        """Read the model into the network.

        Raises:
            EngineError: The parser does not take it.
        """
        parser = self._made("OnnxParser", network, self._logger)
        if not parser.parse(model):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            why = " ".join(errors[0].desc().split()) if errors else self.complaints.first()
            raise EngineError(f"TensorRT {self.version} does not take this model ({why[:300]})")

    def _set_precision(self, config: Any, plan: BuildPlan) -> None:
        flags = self._trt.BuilderFlag
        config.clear_flag(flags.TF32)  # FP32 stays FP32
        if self._major < 10:
            for wanted, flag in ((plan.half, flags.FP16), (plan.quantized, flags.INT8)):
                if wanted:
                    config.set_flag(flag)

    def _set_shapes(self, builder: Any, network: Any, config: Any, batches: tuple[int, int, int]) -> None:
        shapes: dict[str, _Shapes] = {}
        for index in range(network.num_inputs):
            given = network.get_input(index)
            sides = tuple(given.shape)
            if sides[0] == -1:
                least, usual, most = ((batch, *sides[1:]) for batch in batches)
                shapes[given.name] = (least, usual, most)
        if shapes:
            profile = builder.create_optimization_profile()
            for name, (least, usual, most) in shapes.items():
                profile.set_shape(name, least, usual, most)
            config.add_optimization_profile(profile)

    def _set_timings(self, config: Any, timings: bytes) -> None:
        """Use the timings of earlier builds; those of another GPU or version are refused, and an empty cache serves."""
        cache = config.create_timing_cache(timings)
        if cache is None or not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def load(self, engine: bytes) -> Loaded | None:
        """An engine that :meth:`build` made here; None where this version cannot read it."""
        self.complaints.lines.clear()
        runtime = self._made("Runtime", self._logger)
        opened = runtime.deserialize_cuda_engine(engine)
        return None if opened is None else Loaded(self._trt, runtime, opened, self.complaints)


class Loaded:
    """An engine in memory.

    Attributes:
        inputs, outputs: Its tensors.
        layers: How many it has.
        memory_bytes: What an inference takes beside the weights and the tensors.
    """

    def __init__(self, module: Any, runtime: Any, engine: Any, complaints: Complaints) -> None:
        self._runtime = runtime  # has to outlive the engine
        self._engine = engine
        self._complaints = complaints
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        given = [name for name in names if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT]
        self.inputs = tuple(self._spec(name) for name in given)
        self.outputs = tuple(self._spec(name) for name in names if name not in given)
        self.layers = int(engine.num_layers)
        memory = getattr(engine, "device_memory_size_v2", None)
        self.memory_bytes = int(engine.device_memory_size if memory is None else memory)

    def _spec(self, name: str) -> TensorSpec:
        dtype = self._engine.get_tensor_dtype(name).name
        sides = tuple(self._engine.get_tensor_shape(name))
        return TensorSpec(name, _DTYPES.get(dtype, dtype), tuple(None if side < 0 else side for side in sides))

    def context(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> Context:
        """Something that runs the engine with inputs of these shapes and tensors at these addresses of the GPU.

        Raises:
            EngineError: The GPU has no memory for it, or the shapes do not fit.
        """
        self._complaints.lines.clear()
        context = self._engine.create_execution_context()
        if context is None:
            raise EngineError(f"no GPU memory to run it ({self._complaints.first()}): close what else uses the GPU")
        fits = all(context.set_input_shape(name, shape) for name, shape in shapes.items())
        if not (fits and all(context.set_tensor_address(name, place) for name, place in addresses.items())):
            raise EngineError(f"these shapes do not fit the engine ({self._complaints.first()})")
        return Context(context, self._complaints)


class Context:
    """One shape of an engine, ready to run."""

    def __init__(self, context: Any, complaints: Complaints) -> None:
        self._context = context
        self._complaints = complaints

    def enqueue(self, stream: int) -> None:
        """Start an inference in a stream.

        Raises:
            EngineError: TensorRT refuses.
        """
        if not self._context.execute_async_v3(stream):
            raise EngineError(f"TensorRT cannot run it ({self._complaints.first()})")


def _logger(module: Any, complaints: Complaints) -> Any:
    """A logger for TensorRT that keeps errors, and passes the rest on to ours."""
    severity = module.ILogger.Severity
    errors = (severity.INTERNAL_ERROR, severity.ERROR)

    class Logger(module.ILogger):  # type: ignore[misc]  # the base is known at run time alone
        """Called by TensorRT, from any of its threads."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            line = " ".join(msg.split())[:300]
            if severity in errors:
                complaints.lines.append(line)
            _log.debug("TensorRT: %s", line)

    return Logger()


def _monitor(module: Any, progress: Progress) -> Any:
    """A progress monitor for TensorRT that tells about the outermost phases."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # as above
        """Called by TensorRT, from any of its threads."""

        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps
                progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                progress(phase_name, step + 1, self.steps[phase_name])
            return True

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in self.steps:
                progress(phase_name, self.steps[phase_name], self.steps.pop(phase_name))

    return Monitor()
