"""Every variant of a bundle that runs here, and why the others do not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepose.cli._console import remark
from edgepose.errors import BundleError, EdgePoseError, EngineUnavailable
from edgepose.opening import Opening

if TYPE_CHECKING:
    from edgepose.model import LoadedModel

__all__ = ["load_variants", "remark_strays"]


def remark_strays(name: str, model: LoadedModel) -> None:
    """Say so where an engine runs single nodes on another device than asked."""
    from edgepose.runtimes.placement import stray_words, strays

    if elsewhere := strays(model.engine):
        remark(str(stray_words(name, model.engine.device, elsewhere)))


def load_variants(
    path: Path,
    variants: list[str] | None = None,
    opening: Opening | None = None,
    *,
    measure_anyway: bool = False,
    tell: bool = True,
) -> tuple[dict[str, LoadedModel], dict[str, EdgePoseError]]:
    """Load every variant that runs here; the others come back with the reason.

    Args:
        path: A bundle or a model file.
        variants: Only these.
        opening: Engine, device and the rest.
        measure_anyway: A file that was edited or fails the self-test is loaded all the same, and the terminal says
            so: finding out what it costs is what validation is for.
        tell: Whether to say where single nodes run on another device.

    Raises:
        EdgePoseError: None runs.
    """
    from edgepose.runtimes.load import load_model, load_model_file, model_files

    how = opening or Opening()
    models: dict[str, LoadedModel] = {}
    failed: dict[str, EdgePoseError] = {}
    for name, file in model_files(path, variants).items():
        try:
            models[name] = load_model(file, **vars(how))
        except EngineUnavailable as error:
            failed[name] = error
        except EdgePoseError as error:
            try:
                if not measure_anyway:
                    raise
                models[name] = load_model_file(
                    file, how.engine, how.device, threads=how.threads, options=how.options, strict=how.strict
                )
                remark(f"warning: {name}: {error}; measured all the same")
            except EdgePoseError:
                failed[name] = error
    specs = {name: model.spec for name, model in models.items()}
    for name in [name for name, spec in specs.items() if spec != next(iter(specs.values()))]:
        models.pop(name).close()
        failed[name] = BundleError(f"{name}: is of another model than {next(iter(specs))}")
    for name, model in models.items() if tell else ():
        remark_strays(name, model)
    if not models:
        raise EdgePoseError("; ".join(dict.fromkeys(map(str, failed.values()))))
    return models, failed
