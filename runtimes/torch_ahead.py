"""Models compiled ahead of time by AOTInductor, kept in the user's cache.

Such a file is native code, so it is never taken from a bundle: it is made here from the ``.pt2``, by whoever runs it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, fx

from edgepose.errors import EngineUnavailable
from edgepose.files import replace_file, sha256_file
from edgepose.types import TensorSpec

__all__ = ["cache_folder", "compiled_ahead"]


def compiled_ahead(
    module: fx.GraphModule, inputs: Sequence[TensorSpec], path: Path, device: str, settings: str
) -> Callable[..., Sequence[Tensor]]:
    """The compiled form of a module, made now where it is not in the cache.

    Args:
        module: On its device.
        inputs: What it takes; None is the free batch.
        path: The file that it comes from.
        device: ``cpu`` or ``cuda``.
        settings: All else that decides what comes out, as text: precision, layout, threads.

    Raises:
        EngineUnavailable: Others could change what is in the cache.
        Exception: Whatever torch raises where it cannot compile.
    """
    folder = cache_folder()
    package = folder / f"{_key(path, device, settings)}.pt2"
    if not package.exists():
        examples = tuple(_example(spec, device) for spec in inputs)
        batch = torch.export.Dim("N")
        shapes = tuple({0: batch} if spec.shape[0] is None else None for spec in inputs)
        with torch.no_grad(), replace_file(package) as partial:
            program = torch.export.export(module, examples, dynamic_shapes=(*shapes,), strict=False)
            torch._inductor.aoti_compile_and_package(program, package_path=str(partial))
    loaded: Callable[..., Sequence[Tensor]] = torch._inductor.aoti_load_package(str(package))
    return loaded


def cache_folder() -> Path:
    """The folder, which belongs to the user and which nobody else may write to.

    Raises:
        EngineUnavailable: It is another's, or others may write there.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgepose" / "torch"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = folder.stat()
    if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & 0o022):
        raise EngineUnavailable(
            f"{folder}: compiled models are kept there, and others may write to it: chmod 700 it, or leave compile out"
        )
    return folder


def _key(path: Path, device: str, settings: str) -> str:
    """Another file, torch, processor, GPU or setting is another key."""
    if device == "cuda":
        where = f"{torch.cuda.get_device_name()} {torch.cuda.get_device_capability()}"
    else:
        where = torch.backends.cpu.get_cpu_capability()
    text = f"{sha256_file(path)} {torch.__version__} {device} {where} {torch.get_num_threads()} {settings}"
    return hashlib.sha256(text.encode()).hexdigest()


def _example(spec: TensorSpec, device: str) -> Tensor:
    return torch.zeros([2 if side is None else side for side in spec.shape], dtype=getattr(torch, spec.dtype)).to(
        torch.device(device)
    )
