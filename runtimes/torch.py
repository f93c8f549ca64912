"""PyTorch on CPUs and NVIDIA GPUs, from a ``.pt2`` file, without the code of the model.

torch is imported here at once: the registry imports this module when the engine is first used, and nothing else does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from edgepose.errors import EngineError, EngineUnavailable
from edgepose.runtimes.batches import Arrays, check_free, joined, ordered, split
from edgepose.runtimes.profile import OpTime, op_times
from edgepose.runtimes.pt2_file import read_pt2
from edgepose.runtimes.torch_ahead import compiled_ahead
from edgepose.runtimes.torch_graph import graph_module
from edgepose.runtimes.torch_trace import OperatorTimes, Placement
from edgepose.types import TensorSpec

__all__ = ["PRECISIONS", "TorchEngine"]

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""What products are computed in."""

_SIZES = (32, 16, 8, 4, 2, 1)
_WARM_UP = 3


class TorchEngine:
    """A torch.export program, run by torch's own kernels.

    Never falls back: CUDA that was asked for and does not come up is an error. FP32 is FP32: TF32, torch's own default
    for convolutions, is off unless it is asked for. What torch keeps for the whole process (threads, TF32) is set for
    each run and put back after it.

    Compiled models and CUDA graphs are of one batch size: for 1 they are made when the model is loaded, for other
    powers of two up to 32 when they are first needed, and a batch of 13 runs as 8 + 4 + 1. Otherwise a batch runs as it
    is.
    """

    name = "torch"

    def __init__(
        self,
        path: Path,
        device: str = "auto",
        threads: int | None = None,
        *,
        precision: str = "fp32",
        compile: str = "off",  # noqa: A002 - torch's own name of it
        channels_last: str | None = None,
        cuda_graphs: str = "off",
    ) -> None:
        """Load a model file.

        Args:
            path: The ``.pt2`` file.
            device: ``auto`` (CUDA where torch finds a device), ``cpu`` or ``cuda`` (the first device).
            threads: Threads of one inference on the CPU, or None for torch's choice (one per core).
            precision: ``fp32``; ``tf32`` (CUDA: products of 10 bits, sums in FP32); ``fp16`` or ``bf16``, weights too.
            compile: ``on`` compiles the model by ``torch.compile`` on this machine: it takes a compiler, and a minute.
                ``ahead`` does it by AOTInductor once for any batch size, and keeps the result in the user's cache.
            channels_last: ``on`` keeps pictures and the weights of convolutions as (N, H, W, C) in memory, ``off`` as
                (N, C, H, W). By default on; off on CUDA in FP32 and TF32, where convolutions are made for the other.
            cuda_graphs: ``on`` records the model's kernels once for each batch size and replays them.

        Raises:
            EngineUnavailable: This machine has no such device, or the device or torch no such option.
            BundleError: The file is damaged, or holds what is not loaded.
            EngineError: torch cannot load the model.
        """
        self.device = _device(device)
        _check(self.device, precision, compile, cuda_graphs)
        program = read_pt2(path)
        check_free(program.inputs, path)
        self._path = path
        self._settings = _Settings(threads, tf32=precision == "tf32")
        self._lock = Lock()
        self.metadata: Mapping[str, str] = program.metadata
        self.inputs, self.outputs = program.inputs, program.outputs
        self.rounding = 0.04 if precision == "bf16" else 0.01  # for the self-test: eight bits of mantissa are few
        fixed = compile == "on" or cuda_graphs == "on"
        batch = self.inputs[0].shape[0]
        self._sizes: tuple[int, ...] = (batch,) if batch else _SIZES if fixed else ()
        dtype = PRECISIONS[precision]
        if channels_last is None:
            channels_last = "off" if self.device == "cuda" and dtype == torch.float32 else "on"
        try:
            module = graph_module(program, dtype, channels_last=channels_last == "on")
            module.to(torch.device(self.device))
        except Exception as error:  # torch's errors have no common base but Exception
            raise EngineError(f"{path}: torch cannot load it for {self.device} ({_reason(error)})") from None
        self._module: fx.GraphModule | None = module
        self._call: Callable[..., Sequence[Tensor]] = module
        self._graphs: dict[int, _CudaGraph] | None = {} if cuda_graphs == "on" else None
        self._pinned: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        if compile != "off" or cuda_graphs == "on":
            self._prepare(module, compile, f"{precision} {channels_last} {threads}")

    @staticmethod
    def devices_here() -> dict[str, str]:
        """The CPU, and the first CUDA device where torch finds one."""
        cuda = {"cuda": torch.cuda.get_device_name(0)} if torch.cuda.is_available() else {}
        return {"cpu": f"torch {torch.__version__}", **cuda}

    def _prepare(self, module: fx.GraphModule, how: str, settings: str) -> None:
        """Compile or record for the smallest batch, so that what cannot be done is known at once."""
        smallest = self._sizes[-1] if self._sizes else 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch about itself
                if how == "on":
                    compiled: Any = torch.compile(module, dynamic=False, fullgraph=True)
                    self._call = compiled
                elif how == "ahead":
                    with self._settings.applied():
                        self._call = compiled_ahead(module, self.inputs, self._path, self.device, settings)
                self._run([_zeros(spec, smallest) for spec in self.inputs])
        except EngineUnavailable:
            raise
        except Exception as error:  # as above
            what = "recording a CUDA graph" if how == "off" else f"compile={how}"
            advice = "leave cuda_graphs=on out" if how == "off" else "it needs a C++ compiler, on CUDA Triton as well"
            raise EngineUnavailable(f"{what} does not work here ({_reason(error)}): {advice}") from None

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch; see :class:`edgepose.types.Engine`."""
        try:
            arrays = ordered(self.inputs, feeds)
            if not len(arrays[0]):
                return joined(self.outputs, [])
            parts = [part for _, part in split(arrays, self._sizes)] if self._sizes else [arrays]
            return joined(self.outputs, [self._run(part) for part in parts])
        except Exception as error:  # as above
            raise self._failed(error) from None

    def _run(self, arrays: Arrays) -> Arrays:
        with self._lock, self._settings.applied(), torch.inference_mode():
            if self._module is None:
                raise ValueError("the engine is closed")
            if self._graphs is not None:
                return self._graph(len(arrays[0])).run(arrays)
            answers = self._call(*(self._uploaded(index, array) for index, array in enumerate(arrays)))
            return [answer.contiguous().cpu().numpy() for answer in answers]

    def _uploaded(self, index: int, array: NDArray[Any]) -> Tensor:
        """An input on the device; on its way to a GPU it goes through memory that the GPU reads by itself."""
        tensor = _tensor(array)
        if self.device == "cpu":
            return tensor
        key = index, array.shape
        if key not in self._pinned:
            self._pinned[key] = torch.empty_like(tensor, pin_memory=True)
        return self._pinned[key].copy_(tensor).to(torch.device(self.device), non_blocking=True)

    def _graph(self, size: int) -> _CudaGraph:
        """The recorded kernels for one batch size, recorded on first use."""
        assert self._graphs is not None
        if size not in self._graphs:
            self._graphs[size] = _CudaGraph(self._call, [_tensor(_zeros(spec, size)) for spec in self.inputs])
        return self._graphs[size]

    def placement(self) -> dict[str, int]:
        """Operators per device and data type of what they give, for instance ``{"CPU f32": 118, "CPU u8": 1}``.

        They are counted in a run of one zero input, before anything is compiled.
        """
        placement = Placement(self._program())
        self._interpret(placement, [_zeros(spec, spec.shape[0] or 1) for spec in self.inputs])
        return dict(sorted(placement.seen.items()))

    def profile(self, feeds: Mapping[str, NDArray[Any]], runs: int) -> list[OpTime]:
        """Time of each operator of the program; see :class:`edgepose.runtimes.profile.ProfilingEngine`."""
        if self._call is not self._module or self._graphs is not None:
            raise EngineError(
                f"{self._path.name}: compiled or recorded, operators are no longer apart: profile without these options"
            )
        times = OperatorTimes(self._program())
        try:
            arrays = ordered(self.inputs, feeds)
        except ValueError as error:
            raise self._failed(error) from None
        self._interpret(times, arrays)
        times.seconds.clear()  # of the run that is not counted
        for _ in range(runs):
            self._interpret(times, arrays)
        return op_times(times.seconds, runs)

    def _program(self) -> fx.GraphModule:
        if self._module is None:
            raise self._failed("the engine is closed")
        return self._module

    def _interpret(self, interpreter: fx.Interpreter, arrays: Arrays) -> None:
        """Run the program operator by operator."""
        try:
            with self._lock, self._settings.applied(), torch.inference_mode():
                interpreter.run(*(_tensor(array).to(torch.device(self.device)) for array in arrays))
        except Exception as error:  # as above
            raise self._failed(error) from None

    def _failed(self, error: BaseException | str) -> EngineError:
        return EngineError(f"{self._path.name}: torch failed on {self.device} ({_reason(error)})")

    def close(self) -> None:
        """Free the device."""
        with self._lock:
            self._module = None
            self._call = _closed
            self._graphs = None if self._graphs is None else {}
            self._pinned = {}
        if self.device == "cuda":
            torch.cuda.empty_cache()


class _Settings:
    """What torch keeps for the whole process, as one engine needs it."""

    def __init__(self, threads: int | None, *, tf32: bool) -> None:
        self._threads = threads
        self._tf32 = tf32

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set them, and put back what was."""
        threads, products = torch.get_num_threads(), torch.get_float32_matmul_precision()
        convolutions = torch.backends.cudnn.allow_tf32
        try:
            if self._threads is not None:
                torch.set_num_threads(self._threads)
            torch.set_float32_matmul_precision("high" if self._tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = self._tf32
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = convolutions
            torch.set_float32_matmul_precision(products)
            if self._threads is not None:
                torch.set_num_threads(threads)


class _CudaGraph:
    """The kernels of one batch size, recorded once: a run copies pixels in, replays, and copies answers out."""

    def __init__(self, call: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor]) -> None:
        self._pinned = [torch.empty_like(example, pin_memory=True) for example in examples]
        self._inputs = [example.to(torch.device("cuda")) for example in examples]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose their kernels and memory before, on another stream
            for _ in range(_WARM_UP):
                call(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = [answer.contiguous() for answer in call(*self._inputs)]
        self._answers = [torch.empty(answer.shape, dtype=answer.dtype, pin_memory=True) for answer in self._outputs]

    def run(self, arrays: Arrays) -> Arrays:
        """Answers that no later run overwrites."""
        for array, pinned, device in zip(arrays, self._pinned, self._inputs, strict=True):
            device.copy_(pinned.copy_(_tensor(array)), non_blocking=True)
        self._graph.replay()
        for answer, device in zip(self._answers, self._outputs, strict=True):
            answer.copy_(device, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return [answer.numpy().copy() for answer in self._answers]


def _device(device: str) -> str:
    """The device to run on.

    Raises:
        EngineUnavailable: CUDA is asked for and not there.
    """
    if device == "cpu":
        return device
    with warnings.catch_warnings(record=True) as told:  # a driver that is too old is a warning
        warnings.simplefilter("always")
        found = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if found else "cpu"
    if found:
        return device
    if torch.version.cuda is None:
        raise EngineUnavailable(
            f"torch {torch.__version__} is built without CUDA: install a CUDA wheel of torch (on Jetson the one for "
            "your JetPack), or use --device cpu"
        )
    why = f" ({_reason(told[0].message)})" if told else ""
    raise EngineUnavailable(
        f"torch {torch.__version__} finds no CUDA device{why}: check the driver with nvidia-smi, or use --device cpu"
    )


def _check(device: str, precision: str, compiled: str, cuda_graphs: str) -> None:
    """Whether a device has the options.

    Raises:
        EngineUnavailable: It has not.
    """
    if precision not in PRECISIONS:
        raise EngineUnavailable(f"torch has no precision {precision!r}: choose {', '.join(PRECISIONS)}")
    if compiled == "ahead" and cuda_graphs == "on":
        raise EngineUnavailable("torch has compile=ahead or cuda_graphs=on, not both: with CUDA graphs use compile=on")
    for option in ("precision=tf32",) * (precision == "tf32") + ("cuda_graphs=on",) * (cuda_graphs == "on"):
        if device != "cuda":
            raise EngineUnavailable(f"torch has {option} on CUDA alone, and this is {device}: leave it out")


def _closed(*_inputs: Tensor) -> tuple[Tensor, ...]:
    raise ValueError("the engine is closed")


def _zeros(spec: TensorSpec, size: int) -> NDArray[Any]:
    return np.zeros((size, *(side or 1 for side in spec.shape[1:])), spec.dtype)


def _tensor(array: NDArray[Any]) -> Tensor:
    """The same memory as a tensor; torch takes only what is contiguous and may be written to."""
    return torch.from_numpy(np.require(array, None, ["C", "W"]))


def _reason(error: BaseException | str) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]
