"""Every variant of a bundle that runs here, and why the others do not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepose.errors import EdgePoseError

if TYPE_CHECKING:
    from edgepose.pipeline import Estimator

__all__ = ["load_variants"]


def load_variants(
    path: Path,
    variants: list[str] | None = None,
    engine: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    self_test: bool = True,
) -> tuple[dict[str, Estimator], dict[str, str]]:
    """Load every variant that runs here; the others come back with the reason.

    Raises:
        EdgePoseError: None runs.
    """
    from edgepose.runtimes.load import load, model_files

    estimators, failed = {}, {}
    for name, file in model_files(path, variants).items():
        try:
            estimators[name] = load(file, engine, device, threads=threads, self_test=self_test)
        except EdgePoseError as error:
            failed[name] = str(error)
    if not estimators:
        raise EdgePoseError("; ".join(dict.fromkeys(failed.values())))
    return estimators, failed
