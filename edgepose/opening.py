"""How a model is opened: what Python's loaders, the command line and remote boards say alike. Imports no NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Opening"]


@dataclass(frozen=True)
class Opening:
    """The arguments that :func:`edgepose.load` and most commands share; ``load(path, **vars(opening))``.

    Attributes:
        engine: By name; by default the first that runs a file.
        device: One of the engine's.
        threads: Of one inference.
        options: The engine's own, by name.
        self_test: Whether to replay the golden inputs.
        strict: Whether to refuse an engine that runs nodes on another device.
    """

    engine: str | None = None
    device: str = "auto"
    threads: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    self_test: bool = True
    strict: bool = False
