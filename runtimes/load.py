"""``edgepose.load``: a bundle or a lone model file becomes an Estimator or Lifter, checked before it is handed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from edgepose.bundle import MANIFEST, Bundle, Variant
from edgepose.errors import BundleError, EngineError, EngineUnavailable
from edgepose.files import sha256_file
from edgepose.lifter import Lifter
from edgepose.machine import machine
from edgepose.model import LoadedModel
from edgepose.opening import Opening
from edgepose.pipeline import Estimator
from edgepose.runtimes.choice import Choice
from edgepose.runtimes.placement import strays
from edgepose.runtimes.preference import rank_variants
from edgepose.runtimes.registry import open_engine
from edgepose.types import SPEC_KEY, Engine, ModelSpec, TensorSpec

__all__ = [
    "fits",
    "load",
    "load_file",
    "load_lifter",
    "load_model",
    "load_model_file",
    "model_bytes",
    "model_files",
    "self_test",
]

NO_OPTIONS: Mapping[str, str] = MappingProxyType({})
_ROUNDING = 0.01

FASTEST = "fastest"
"""In place of a variant's name: the one that is."""


def load(
    path: str | Path,
    engine: str | None = None,
    device: str = "auto",
    variant: str | None = None,
    *,
    threads: int | None = None,
    self_test: bool = True,
    options: Mapping[str, str] = NO_OPTIONS,
    strict: bool = False,
) -> Estimator:
    """Load a 2D model: a bundle, or one model file that edgepose wrote.

    Args:
        path: A bundle folder, or a file such as ``onnx-int8.onnx``, inside its bundle or copied elsewhere.
        engine: Engine name; by default the first that runs the file.
        device: ``auto``, or a device of the engine: ``cpu``, ``cuda``, ``gpu``, ``npu``, ``edgetpu`` and so on.
        variant: Which variant of a bundle. By default INT8, with ``device="cuda"`` a float one, of those that the
            engine and the device run, and whose engine is installed; of two with one precision torch's on CUDA, and
            elsewhere the other. ``fastest`` times them all, once: the answer is kept in the user's cache. A file is its
            own.
        threads: Threads of one inference; by default the engine's choice.
        self_test: Replay the bundle's golden inputs and refuse an engine whose answers are off. A lone file has
            no golden inputs, so nothing is replayed.
        options: The engine's own, by name: ``{"mode": "throughput"}``; ``edgepose doctor`` lists them.
        strict: Refuse an engine that runs single nodes on another device than the one asked for.

    Raises:
        BundleError: Not there, damaged, edited, or without a specification.
        EngineUnavailable: The engine or the device is not on this machine, or the engine has no such option.
        EngineError: The engine cannot load the model, or its answers are off.
    """
    model = load_model(
        path, engine, device, variant, threads=threads, self_test=self_test, options=options, strict=strict
    )
    return _as_estimator(model, Path(path))


def load_lifter(
    path: str | Path,
    engine: str | None = None,
    device: str = "auto",
    variant: str | None = None,
    *,
    threads: int | None = 1,
    self_test: bool = True,
    options: Mapping[str, str] = NO_OPTIONS,
    strict: bool = False,
) -> Lifter:
    """Load a bundle or model file that lifts 2D keypoints into space; arguments and errors as for :func:`load`.

    One thread is the default: in a model this small, several wait for each other (docs/lifting.md).
    """
    model = load_model(
        path, engine, device, variant, threads=threads, self_test=self_test, options=options, strict=strict
    )
    if not isinstance(model, Lifter):
        model.close()
        raise BundleError(
            f"{path}: {model.spec.name} finds joints in pictures, and a lifting model (2D to 3D) is needed here"
        )
    return model


def load_model(
    path: str | Path,
    engine: str | None = None,
    device: str = "auto",
    variant: str | None = None,
    *,
    threads: int | None = None,
    self_test: bool = True,
    options: Mapping[str, str] = NO_OPTIONS,
    strict: bool = False,
) -> LoadedModel:
    """Load a model for any task: an :class:`Estimator` or a :class:`Lifter`; see :func:`load`."""
    path = Path(path)
    how = Opening(engine, device, threads, options, self_test, strict)
    if path.is_file() and variant not in (None, path.stem):
        raise BundleError(f"{path}: is one model file, variant {variant!r} cannot be chosen from it")
    if path.is_file() and (path.parent / MANIFEST).is_file():
        bundle = Bundle.open(path.parent)
        row = next((v for v in bundle.variants if v.file == path.name), None)
        if row is not None:
            return _from_bundle(bundle, row, how)
    if path.is_file():
        return load_model_file(path, engine, device, threads=threads, options=options, strict=strict)
    bundle = Bundle.open(path)
    if variant == FASTEST:
        return _fastest(bundle, _ranked_variants(bundle, engine, device), how)
    row = bundle.variant(variant) if variant else _ranked_variants(bundle, engine, device)[0]
    return _from_bundle(bundle, row, how)


def _from_bundle(bundle: Bundle, row: Variant, how: Opening) -> LoadedModel:
    opened = open_engine(bundle.checked_variant(row), how.engine, how.device, how.threads, how.options)
    if how.strict:
        _refuse_strays(opened, bundle.path / row.file)
    if _embedded_spec(opened, bundle.path / row.file) != bundle.spec:
        raise BundleError(f"{bundle.path / row.file}: its specification is not the manifest's: convert again")
    model = _MODELS[bundle.spec.task](opened, bundle.spec, row.name)
    if how.self_test:
        self_test(model, bundle, row)
    return model


def _fastest(bundle: Bundle, variants: Sequence[Variant], how: Opening) -> LoadedModel:
    """The variant that is fastest here, as it was measured before; else all are measured."""
    here = machine()
    asked = {"engine": how.engine, "device": how.device, "threads": how.threads, "options": dict(how.options)}
    known = Choice({**asked, "bundle": sha256_file(bundle.path / MANIFEST), "cpu": here["cpu"], **here["versions"]})
    rows = {row.name: row for row in variants}
    if known.name in rows:
        return _from_bundle(bundle, rows[known.name], how)
    models, reasons = {}, []
    for row in variants:
        try:
            models[row.name] = _from_bundle(bundle, row, how)
        except (EngineError, EngineUnavailable) as error:
            reasons.append(error)
    if not models:
        raise reasons[0]
    best = known.measure(models)
    for name, model in models.items():
        if name != best:
            model.close()
    return models[best]


def load_file(
    path: Path,
    engine: str | None = None,
    device: str = "auto",
    *,
    threads: int | None = None,
    options: Mapping[str, str] = NO_OPTIONS,
    strict: bool = False,
) -> Estimator:
    """Load one 2D model file by its own specification alone, even from inside a bundle: no hashes, no self-test.

    Raises:
        See :func:`load`.
    """
    model = load_model_file(path, engine, device, threads=threads, options=options, strict=strict)
    return _as_estimator(model, path)


def load_model_file(
    path: Path,
    engine: str | None = None,
    device: str = "auto",
    *,
    threads: int | None = None,
    options: Mapping[str, str] = NO_OPTIONS,
    strict: bool = False,
) -> LoadedModel:
    """The same for a model for any task."""
    opened = open_engine(path, engine, device, threads, options)
    if strict:
        _refuse_strays(opened, path)
    spec = _embedded_spec(opened, path)
    return _MODELS[spec.task](opened, spec, path.stem)


_MODELS: Mapping[str, type[LoadedModel]] = {"pose2d": Estimator, "lift3d": Lifter}


def _as_estimator(model: LoadedModel, path: Path) -> Estimator:
    if not isinstance(model, Estimator):
        model.close()
        raise BundleError(
            f"{path}: {model.spec.name} lifts 2D joints into space, and a model that takes pictures is needed here: "
            "give this one with --lift (in Python: edgepose.load_lifter)"
        )
    return model


def _ranked_variants(bundle: Bundle, engine: str | None, device: str) -> list[Variant]:
    """Those that run here, the preferred one first: see ``preference.py``."""
    ranked, _ = rank_variants(bundle, engine, device)
    return [one.variant for one in ranked]


def _refuse_strays(engine: Engine, path: Path) -> None:
    """Close an engine that runs nodes on another device.

    Raises:
        EngineError: It does.
    """
    elsewhere = strays(engine)
    if elsewhere:
        engine.close()
        where = ", ".join(f"{count} nodes on {place}" for place, count in elsewhere.items())
        raise EngineError(f"{path}: {engine.name} runs {where}, not {engine.device}: another variant, or no --strict")


def _embedded_spec(engine: Engine, where: Path) -> ModelSpec:
    """The specification that a model file carries, checked against the tensors that its engine sees.

    Batch sizes may differ: an engine may have been built for a fixed one.
    """
    text = engine.metadata.get(SPEC_KEY)
    if text is None:
        attach = f", or attach one: edgepose inspect {where} --attach spec.json" if where.suffix == ".tflite" else ""
        raise BundleError(
            f"{where}: carries no edgepose specification: convert the checkpoint with edgepose convert{attach}"
        )
    spec = ModelSpec.from_json(text, str(where))
    if not fits(spec, engine.inputs, engine.outputs):
        raise BundleError(
            f"{where}: its tensors {engine.inputs + engine.outputs} do not fit its specification "
            f"{(spec.input, spec.output)}: convert again"
        )
    return spec


def fits(spec: ModelSpec, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> bool:
    """Whether a specification is of the model that has these tensors, batch sizes aside."""
    return [replace(tensor, shape=(None, *tensor.shape[1:])) for tensor in inputs + outputs] == [
        spec.input,
        spec.output,
    ]


def self_test(model: LoadedModel, bundle: Bundle, row: Variant) -> None:
    """Replay the golden inputs and compare with the FP32 answers.

    The error may exceed the one measured at conversion by half, plus one percent for other kernels' rounding; an engine
    that was asked to compute in fewer bits says in ``rounding`` how much that is.

    Raises:
        EngineError: The answers are off.
    """
    golden = bundle.golden()
    error = golden.error_of(model.infer(golden.inputs))
    limit = 1.5 * row.golden_error + float(getattr(model.engine, "rounding", _ROUNDING))
    if not error <= limit:
        raise EngineError(
            f"{bundle.path / row.file}: self-test failed on {model.engine.name} {model.engine.device}: "
            f"{model.spec.output.name} are {error:.1%} off the FP32 answers, {row.golden_error:.1%} when converted "
            f"(limit {limit:.1%}): check engine version and driver, or load with --no-self-test"
        )


def model_files(path: Path, variants: list[str] | None = None) -> dict[str, Path]:
    """Model files by variant name: a bundle's, all or the named ones, or the one file itself.

    Raises:
        BundleError: Not there, or a variant is not in the bundle.
    """
    if path.is_file():
        if variants not in (None, [path.stem]):
            raise BundleError(f"{path}: is one model file, variants cannot be chosen from it")
        return {path.stem: path}
    bundle = Bundle.open(path)
    if not bundle.variants:
        raise BundleError(f"{path}: has no variants: convert again")
    rows = [bundle.variant(name) for name in variants] if variants else bundle.variants
    return {row.name: bundle.path / row.file for row in rows}


def model_bytes(path: Path) -> int:
    """Size of a model file, with the weights that lie beside it under the same name."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" and weights.is_file() else 0)
