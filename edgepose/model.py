"""A model on an engine, behind its contract: arrays in, arrays out, whatever batch the engine wants."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import EngineError
from edgepose.types import Engine, ModelSpec

__all__ = ["LoadedModel"]

_MAX_BATCH = 32  # a search of an odd-shaped frame has many windows; memory grows with the batch


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

    def infer(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run the engine on any number of samples.

        Args:
            inputs: (N, ...) of the dtype and shape of ``spec.input``.

        Returns:
            (N, ...) float32, the shape of ``spec.output``.

        Raises:
            EngineError: The engine failed, or answered with NaN or infinity.
        """
        parts = [self._run(inputs[i : i + self._batch]) for i in range(0, len(inputs), self._batch)]
        none = np.zeros((0, *(int(side or 0) for side in self.spec.output.shape[1:])), np.float32)
        answer: NDArray[np.float32] = parts[0] if len(parts) == 1 else np.concatenate([none, *parts])
        if not np.isfinite(answer.sum()):
            raise EngineError(
                f"{self.engine.name} on {self.engine.device} answered with NaN or infinity ({self.variant}): "
                "try another device or the FP32 variant"
            )
        return answer

    def _run(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """One engine call; where the engine has a fixed batch, fewer samples are padded and the padding cut off."""
        missing = self._batch - len(inputs) if self._fixed else 0
        padded = np.pad(inputs, ((0, missing), *[(0, 0)] * (inputs.ndim - 1))) if missing else inputs
        answer: NDArray[np.float32] = self.engine.run({self.spec.input.name: padded})[self.spec.output.name]
        return answer[: len(inputs)]

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()
