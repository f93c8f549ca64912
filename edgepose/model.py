"""A model on an engine, behind its contract: arrays in, arrays out, whatever batch the engine wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import EdgePoseError, EngineError
from edgepose.types import Engine, ModelSpec, QueuingEngine

__all__ = ["Answer", "LoadedModel"]

_MAX_BATCH = 32  # a search of an odd-shaped frame has many windows; memory grows with the batch

Answer = Callable[[], NDArray[np.float32]]
"""Waits for what was started."""


class LoadedModel:
    """What 2D and lifting models have in common. Made by :func:`edgepose.load` and :func:`edgepose.load_lifter`.

    Attributes:
        engine: The loaded model.
        spec: Its I/O contract.
        variant: Which artifact this is, for people.
    """

    def __init__(self, engine: Engine, spec: ModelSpec, variant: str = "") -> None:
        self.engine = engine
        self.spec = spec
        self.variant = variant
        fixed = engine.inputs[0].shape[0]
        self._fixed = fixed is not None
        self._batch = fixed or _MAX_BATCH
        self._worker: ThreadPoolExecutor | None = None

    @property
    def batch(self) -> int:
        """So many samples at most go to the engine in one call."""
        return self._batch

    @batch.setter
    def batch(self, count: int) -> None:
        if count < 1 or (self._fixed and count != self._batch):
            kept = f"{self._batch}, for which its model was made" if self._fixed else "1 or more"
            raise EdgePoseError(f"{self.variant or self.spec.name}: batch {count} asked, it can be {kept}")
        self._batch = count

    def infer(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run the engine on any number of samples.

        Args:
            inputs: (N, ...) of the dtype and shape of ``spec.input``.

        Returns:
            (N, ...) float32, the shape of ``spec.output``.

        Raises:
            EngineError: The engine failed, or answered with NaN or infinity.
        """
        return self._joined([self.engine.run(feeds) for feeds in self._feeds(inputs)], len(inputs))

    def start(self, inputs: NDArray[Any]) -> Answer:
        """Start the engine on samples and return at once; what comes back waits for the answer when it is called.

        What is started while the engine works is waiting for it when it is done: in the engine's own queue where it
        has one, else in a thread. Arguments, answer and errors as for :meth:`infer`.
        """
        if isinstance(self.engine, QueuingEngine):
            queued = [self.engine.run_async(feeds) for feeds in self._feeds(inputs)]
            wait = self.engine.result
            return lambda: self._joined([wait(pending) for pending in queued], len(inputs))
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="edgepose-engine")
        return self._worker.submit(partial(self.infer, inputs)).result

    def _feeds(self, inputs: NDArray[Any]) -> Iterator[Mapping[str, NDArray[Any]]]:
        """What goes to the engine, call by call; where it has a fixed batch, the last one is padded."""
        for start in range(0, len(inputs), self._batch):
            part = inputs[start : start + self._batch]
            missing = self._batch - len(part) if self._fixed else 0
            yield {self.spec.input.name: np.pad(part, ((0, missing), *[(0, 0)] * (part.ndim - 1))) if missing else part}

    def _joined(self, answers: Sequence[Mapping[str, NDArray[Any]]], count: int) -> NDArray[np.float32]:
        """The answers of all calls, without those for the padding."""
        parts = [answer[self.spec.output.name] for answer in answers]
        none = np.zeros((0, *(int(side or 0) for side in self.spec.output.shape[1:])), np.float32)
        whole: NDArray[np.float32] = (parts[0] if len(parts) == 1 else np.concatenate([none, *parts]))[:count]
        if not np.isfinite(whole.sum()):
            raise EngineError(
                f"{self.engine.name} on {self.engine.device} answered with NaN or infinity ({self.variant}): "
                "try another device or the FP32 variant"
            )
        return whole

    def close(self) -> None:
        """Free the engine, once what was started is done."""
        if self._worker is not None:
            self._worker.shutdown()
        self.engine.close()
