"""edgepose: put a human pose estimation checkpoint on an edge device, with evidence.

    import edgepose

    estimator = edgepose.load("bundle")
    poses = estimator.estimate(frame_bgr)

Importing this package loads no engine and no torch: names are resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepose.errors import (
        BundleError,
        CheckpointError,
        ConversionError,
        DatasetError,
        EdgePoseError,
        EngineError,
        EngineUnavailable,
        GateError,
        PipelineError,
        PruningError,
        SinkError,
        SourceError,
        TrainingError,
    )
    from edgepose.lifter import Lifter
    from edgepose.pipeline import Estimator, Pipeline
    from edgepose.runtimes.detectors import load_detector
    from edgepose.runtimes.load import load, load_lifter
    from edgepose.sources import open_source
    from edgepose.streaming import stream
    from edgepose.types import Engine, ModelSpec, Poses

__version__ = "0.1.0"
__all__ = [
    "BundleError",
    "CheckpointError",
    "ConversionError",
    "DatasetError",
    "EdgePoseError",
    "Engine",
    "EngineError",
    "EngineUnavailable",
    "GateError",
    "Estimator",
    "Lifter",
    "ModelSpec",
    "Pipeline",
    "PipelineError",
    "PruningError",
    "Poses",
    "SinkError",
    "SourceError",
    "TrainingError",
    "__version__",
    "load",
    "load_detector",
    "load_lifter",
    "open_source",
    "stream",
]

_HOME = {
    "BundleError": "edgepose.errors",
    "CheckpointError": "edgepose.errors",
    "ConversionError": "edgepose.errors",
    "DatasetError": "edgepose.errors",
    "EdgePoseError": "edgepose.errors",
    "EngineError": "edgepose.errors",
    "EngineUnavailable": "edgepose.errors",
    "GateError": "edgepose.errors",
    "PipelineError": "edgepose.errors",
    "PruningError": "edgepose.errors",
    "SinkError": "edgepose.errors",
    "SourceError": "edgepose.errors",
    "TrainingError": "edgepose.errors",
    "Engine": "edgepose.types",
    "Estimator": "edgepose.pipeline",
    "Lifter": "edgepose.lifter",
    "Pipeline": "edgepose.pipeline",
    "ModelSpec": "edgepose.types",
    "Poses": "edgepose.types",
    "load": "edgepose.runtimes.load",
    "load_lifter": "edgepose.runtimes.load",
    "load_detector": "edgepose.runtimes.detectors",
    "open_source": "edgepose.sources",
    "stream": "edgepose.streaming",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgepose' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
