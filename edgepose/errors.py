"""Every error that edgepose raises on purpose.

    EdgePoseError                 something the caller can act on; the CLI prints one line, exit code 2
    ├── CheckpointError           a checkpoint that is missing, damaged, unsafe or of another model
    ├── ConversionError           a model that could not be exported, quantized or verified
    │   └── GateError             a model whose accuracy or latency misses what was asked for; exit code 1
    ├── BundleError               a bundle or model file that is missing, damaged, edited or in the way
    ├── EngineUnavailable         an engine or device that this machine does not have
    ├── EngineError               an engine that failed to load or to run a model, or whose answers are off
    ├── SourceError               a camera, video or image folder that cannot be read
    ├── PipelineError             a stage of a running pipeline that failed in a way that nobody foresaw
    ├── SinkError                 an output that cannot be written
    ├── DatasetError              annotations or images that are missing, malformed or do not fit the model
    ├── PruningError              a plan that does not fit a model, or leaves nothing of it
    └── TrainingError             a training that diverged, or that cannot go on from where it stopped

A message says what is wrong, where, and what to do, in one line.

``StopRequested`` is none of them: nothing went wrong, somebody closed the window.
"""

__all__ = [
    "BundleError",
    "CheckpointError",
    "ConversionError",
    "DatasetError",
    "EdgePoseError",
    "EngineError",
    "EngineUnavailable",
    "GateError",
    "PipelineError",
    "PruningError",
    "SinkError",
    "SourceError",
    "StopRequested",
    "TrainingError",
]


class EdgePoseError(Exception):
    """Base of all errors raised on purpose."""


class CheckpointError(EdgePoseError):
    """A checkpoint is missing, damaged, unsafe to open, or belongs to another model."""


class ConversionError(EdgePoseError):
    """A model could not be exported, quantized or verified."""


class GateError(ConversionError):
    """A model's accuracy or latency misses what was asked for."""


class BundleError(EdgePoseError):
    """A bundle or model file is missing, damaged, edited, or in the way of a new one."""


class EngineUnavailable(EdgePoseError):
    """An engine or device was asked for that this machine does not have."""


class EngineError(EdgePoseError):
    """An engine could not load or run a model, or its answers are off."""


class SourceError(EdgePoseError):
    """A camera, video or image folder cannot be read."""


class SinkError(EdgePoseError):
    """An output cannot be written."""


class PipelineError(EdgePoseError):
    """A stage of a running pipeline failed in a way that nobody foresaw."""


class DatasetError(EdgePoseError):
    """Annotations or images are missing, malformed, or do not fit the model."""


class PruningError(EdgePoseError):
    """A plan does not fit a model, leaves nothing of a part of it, or cannot reach what was asked for."""


class TrainingError(EdgePoseError):
    """A training diverged, or cannot go on from where it stopped."""


class StopRequested(Exception):
    """A sink asks for the end of the run, as if the source had ended: raised by ``write``, caught by the pipeline."""
