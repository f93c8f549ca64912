"""Which variant of a bundle is taken where none is named, and why: criteria in order, each with its words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgepose.bundle import Bundle, Variant, parse_variant
from edgepose.errors import BundleError
from edgepose.runtimes.registry import EngineRow, engines

__all__ = ["Ranked", "Situation", "rank_variants", "why_first"]

_CPU = ("int8", "fp16", "fp32")
_CUDA = ("fp16", "fp32", "int8")
_ORDERS: Mapping[str, tuple[str, ...]] = MappingProxyType({"cuda": _CUDA, "tensorrt": _CUDA})
_SLOW_ON_CPU = "onnx-fp16"


@dataclass(frozen=True)
class Situation:
    """What a variant is chosen for: an engine by name or any, a device, and the engines here that fit both."""

    engine: str | None
    device: str
    fitting: tuple[EngineRow, ...]

    @property
    def precisions(self) -> tuple[str, ...]:
        """The best first."""
        return _CUDA if self.engine == "tensorrt" else _ORDERS.get(self.device, _CPU)

    def runs(self, variant: Variant) -> bool:
        """Whether an engine that fits runs such files."""
        return any(Path(variant.file).suffix in row.suffixes for row in self.fitting)


@dataclass(frozen=True)
class _Criterion:
    """How a variant ranks, 0 the best; and what is said of one that comes first by it."""

    place: Callable[[Variant, Situation], int]
    words: Callable[[Situation], str]


def _by_precision(variant: Variant, situation: Situation) -> int:
    order = situation.precisions
    return order.index(variant.precision) if variant.precision in order else len(order)


def _by_format(variant: Variant, situation: Situation) -> int:
    """Variants that are made for the engine come before others that it runs too, such as TensorRT's files."""
    formats = next((row.formats for row in situation.fitting if Path(variant.file).suffix in row.suffixes), ())
    form, _ = parse_variant(variant.name)
    return formats.index(form) if form in formats else len(formats)


def _by_arithmetic(variant: Variant, situation: Situation) -> int:
    return int(variant.name == _SLOW_ON_CPU and situation.precisions is _CPU)


def _by_torch(variant: Variant, situation: Situation) -> int:
    """Of two with one precision torch's on CUDA, and elsewhere the other."""
    return int(variant.name.startswith("torch-") != (situation.device == "cuda"))


_CRITERIA = (
    _Criterion(_by_format, lambda s: "it is made for its engine"),
    _Criterion(_by_arithmetic, lambda s: "onnxruntime has no float16 arithmetic on CPUs"),
    _Criterion(_by_precision, lambda s: f"--device {s.device} takes {', then '.join(s.precisions)}"),
    _Criterion(_by_torch, lambda s: "of one precision torch comes first on CUDA, and last elsewhere"),
)


@dataclass(frozen=True)
class Ranked:
    """A variant, and its place by each criterion."""

    variant: Variant
    places: tuple[int, ...]


def rank_variants(bundle: Bundle, engine: str | None = None, device: str = "auto") -> tuple[list[Ranked], Situation]:
    """Those that the engine and the device run here, the preferred one first; all where none is, for its error.

    Raises:
        BundleError: There are no variants.
    """
    rows = [row for row in engines().values() if engine in (None, row.name) and row.has_device(device)]
    situation = Situation(engine, device, tuple([row for row in rows if row.installed] or rows))
    variants = [variant for variant in bundle.variants if situation.runs(variant)] or bundle.variants
    if not variants:
        raise BundleError(f"{bundle.path}: has no variants: convert again")
    ranked = [Ranked(variant, tuple(rule.place(variant, situation) for rule in _CRITERIA)) for variant in variants]
    return sorted(ranked, key=lambda one: one.places), situation


def why_first(ranked: Sequence[Ranked], situation: Situation) -> str:
    """Why the first comes first, in a line: for each other the criterion that decided."""
    first, *others = ranked
    if not situation.runs(first.variant):
        return "no engine for any of its variants is here"
    if not others:
        return "nothing else in the bundle runs here"
    behind: dict[str, list[str]] = {}
    for other in others:
        behind.setdefault(_decided(first, other, situation), []).append(other.variant.name)
    return "; ".join(f"before {', '.join(names)}: {words}" for words, names in behind.items())


def _decided(first: Ranked, other: Ranked, situation: Situation) -> str:
    """The words of the first criterion by which they differ."""
    pairs = zip(_CRITERIA, first.places, other.places, strict=True)
    return next((rule.words(situation) for rule, a, b in pairs if a != b), "the bundle lists it first")
