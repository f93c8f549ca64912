"""Load a published or training checkpoint into a registered model, strictly, without running its code."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgepose.errors import CheckpointError, EdgePoseError
from edgepose.files import sha256_file
from edgepose.models.registry import MODELS, ModelRow, get_model

__all__ = ["Checkpoint", "build_random", "load_checkpoint", "pruned_content"]

_WRAPPERS = ("state_dict", "best_state_dict", "model")
_PREFIX = "module."
_POSITION = "pos_embedding"
_PRUNED = "edgepose"
"""Beside the weights of a pruned model: its registered name, configuration and parent."""


@dataclass(frozen=True)
class Checkpoint:
    """A model with its weights.

    Attributes:
        model: In evaluation mode, on the CPU.
        row: The registered model, resized where asked, and as small as pruning has left it.
        source: For the manifest: file name and SHA-256, or the seed of random weights; of a pruned model also
            ``pruned``, its configuration, and ``parent``, what it was pruned from and how.
        notes: What a person should know, for instance a rebuilt position embedding.
    """

    model: nn.Module
    row: ModelRow
    source: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def load_checkpoint(path: Path, row: ModelRow) -> Checkpoint:
    """Load weights strictly: every key and shape must fit.

    Args:
        path: A state dict of any floating-point type, bare or wrapped in ``state_dict``, ``best_state_dict`` or
            ``model``, its keys perhaps prefixed with ``module.``.
        row: The model. Where its input size is not the registered one, the sine position embedding is rebuilt. The
            file of a pruned model says itself how much smaller it is.

    Raises:
        CheckpointError: The file is missing, damaged, holds code, or belongs to another model.
    """
    data = _read(path)
    state = _state_dict(data, path)
    row, pruning = _as_pruned(data, row, path)
    model = row.build()
    _check_plain(state, path)
    state = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    state, notes = _fit_position(state, row, model, path)
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in state.items()}
    if wanted != found:
        raise CheckpointError(_mismatch(path, row, wanted, found))
    model.load_state_dict(state)
    source = {"file": path.name, "sha256": sha256_file(path), "random": False, **pruning}
    return Checkpoint(model, row, source, notes)


def pruned_content(
    row: ModelRow, weights: Mapping[str, Tensor], parent: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What to save with ``torch.save`` so that :func:`load_checkpoint` reads it: bare weights where nothing is pruned.

    Args:
        row: The model, perhaps pruned.
        weights: Its state dict.
        parent: What it was pruned from and how, as JSON values: ``checkpoint.source.get("parent")`` of one that was
            loaded, so that training it further keeps the record.
    """
    if not row.pruned:
        return dict(weights)
    config = {"model": row.name, "config": dict(row.pruned), "parent": dict(parent or {})}
    return {_PRUNED: config, "state_dict": dict(weights)}


def _as_pruned(data: Any, row: ModelRow, path: Path) -> tuple[ModelRow, dict[str, Any]]:
    """The row as a file's configuration has it, and what the manifest says of it."""
    found = data.get(_PRUNED) if isinstance(data, Mapping) else None
    if found is None or isinstance(found, Tensor):
        return row, {}
    if not isinstance(found, Mapping) or not all(isinstance(found.get(k), Mapping) for k in ("config", "parent")):
        raise CheckpointError(f"{path}: its configuration of a pruned model is damaged: copy it again")
    if found.get("model") != row.name:
        raise CheckpointError(f"{path}: is a pruned {str(found.get('model'))[:40]}, not {row.name}: use its --model")
    try:
        json.dumps(found)
        row = row.shrunk(found["config"])
        _check_widths(row)
    except (EdgePoseError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise CheckpointError(f"{path}: its configuration fits no pruned model ({reason}): prune again") from None
    return row, {"pruned": dict(row.pruned), "parent": dict(found["parent"])}


def _check_widths(row: ModelRow) -> None:
    """Run the model without its weights' memory: layers that do not fit each other raise RuntimeError."""
    shape = (1, 3, *row.input_hw) if row.input_hw else (1, *row.spec.input.shape[1:])
    with torch.device("meta"), torch.inference_mode():
        answer = row.build()(torch.zeros([int(side or 0) for side in shape]))
    if tuple(answer.shape[1:]) != tuple(row.spec.output.shape[1:]):
        raise ValueError(f"it answers {_x(tuple(answer.shape))}")


def build_random(row: ModelRow, seed: int) -> Checkpoint:
    """A model with random weights, for experiments; marked as such."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = row.build()
    return Checkpoint(model, row, {"file": None, "sha256": None, "random": True, "seed": seed})


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_scalars()):
            warnings.simplefilter("ignore")  # about other pickle protocols: those load, or fail below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path}: holds Python objects that could run code and was not opened ({_unsafe_name(error)}): "
                "save the weights alone with torch.save(model.state_dict(), ...)"
            ) from None
        raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged: copy or download it again") from None
    except Exception as error:  # a damaged file makes the loader raise anything
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: truncated or damaged ({reason}): copy or download it again") from None


def _numpy_scalars() -> list[Any]:
    """Plain-number types that training checkpoints hold beside the weights (the best score, say)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scalar = np.float64(0).__reduce__()[0]
    types = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "bool")]
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *types]


def _unsafe_name(error: Exception) -> str:
    """The name that the safe loader refused, out of its message."""
    words = str(error).split("GLOBAL ", 1)[-1].split()
    return words[0] if words else "unknown"


def _state_dict(data: Any, path: Path) -> dict[str, Tensor]:
    """Unwrap to a flat mapping of names to tensors."""
    candidates = [data] + [data[name] for name in _WRAPPERS if isinstance(data, Mapping) and name in data]
    for candidate in candidates:
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return {str(key).removeprefix(_PREFIX): tensor for key, tensor in candidate.items()}
    keys = ", ".join(str(key) for key in list(data)[:5]) if isinstance(data, Mapping) else type(data).__name__
    raise CheckpointError(
        f"{path}: no weights found: expected tensors by name, bare or under {', '.join(_WRAPPERS)}; the file has {keys}"
    )


def _fit_position(
    state: dict[str, Tensor], row: ModelRow, model: nn.Module, path: Path
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Replace a sine position embedding that was stored for the registered input size."""
    stored = state.get(_POSITION)
    own = model.state_dict().get(_POSITION)
    registered = MODELS.get(row.name, row)
    if stored is None or own is None or registered.input_hw == row.input_hw:
        return state, ()
    assert registered.input_hw
    assert row.input_hw
    sine = registered.build().state_dict()[_POSITION]
    if stored.shape == own.shape or stored.shape != sine.shape:
        return state, ()
    if not torch.allclose(stored, sine, atol=1e-3):
        raise CheckpointError(
            f"{path}: its position embedding was learned for {registered.input_hw[0]}x{registered.input_hw[1]} "
            "and cannot be rebuilt for another input size"
        )
    note = f"position embedding rebuilt for {_x(row.input_hw)} (the file's is for {_x(registered.input_hw)})"
    return {**state, _POSITION: own}, (note,)


def _check_plain(state: Mapping[str, Tensor], path: Path) -> None:
    for key, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex():
            raise CheckpointError(
                f"{path}: {key} is no plain tensor ({tensor.dtype}, {tensor.layout}): save dense weights"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {key} holds NaN or infinity: the training diverged, take an earlier one")


Shapes = Mapping[str, tuple[int, ...]]


def _mismatch(path: Path, row: ModelRow, wanted: Shapes, found: Shapes) -> str:
    """One line: which model it looks like, and the first keys that do not fit."""
    parts = []
    for label, keys in (("missing", wanted.keys() - found.keys()), ("unexpected", found.keys() - wanted.keys())):
        if keys:
            parts.append(f"{len(keys)} {label} ({_first(keys)})")
    shaped = [key for key in wanted.keys() & found.keys() if wanted[key] != found[key]]
    if shaped:
        key = min(shaped)
        parts.append(f"{len(shaped)} mis-shaped ({key}: file {_x(found[key])}, model {_x(wanted[key])})")
    return f"{path}: does not fit {row.name}: {', '.join(parts)}; {_advice(row, found)}"


def _advice(row: ModelRow, found: Shapes) -> str:
    name, matched = _closest(found)
    total = len(found)
    if matched <= total // 2:
        return f"no registered model is close (best: {name}, {matched} of {total} tensors)"
    if matched == total and name != row.name:
        return f"it is {name} ({matched} of {total} tensors): use --model {name}"
    return f"the closest registered model is {name} ({matched} of {total} tensors)"


def _closest(found: Shapes) -> tuple[str, int]:
    """Registered model with the most tensors of the same name and shape."""
    scores = {}
    for name in MODELS:
        with torch.device("meta"):
            shapes = {key: tuple(tensor.shape) for key, tensor in get_model(name).build().state_dict().items()}
        scores[name] = sum(found.get(key) == shape for key, shape in shapes.items())
    best = max(scores, key=lambda name: scores[name])
    return best, scores[best]


def _first(keys: Iterable[str], count: int = 3) -> str:
    ordered = sorted(keys)
    return ", ".join(ordered[:count]) + (", ..." if len(ordered) > count else "")


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape) or "scalar"
