"""What a validation says in words and numbers: verdicts, units, worst joints. Both reports use it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from edgepose.calibration.evidence import Accuracy, Validation, VariantEvidence, evidence_dict

__all__ = [
    "DASH",
    "FEW_PEOPLE",
    "MINUS",
    "TIMES",
    "Verdict",
    "amount",
    "caption",
    "clean",
    "did_not_run",
    "digits_over",
    "figure",
    "interval",
    "joint_losses",
    "labelled",
    "leaves",
    "lookup",
    "machine_words",
    "number",
    "plain",
    "plural",
    "pruning_words",
    "summary",
    "tally",
    "unit_of",
    "verdicts",
    "worst_joints",
]

DASH, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
FEW_PEOPLE = 100


@dataclass(frozen=True)
class Verdict:
    """One sentence on one variant.

    Attributes:
        variant: Its name.
        state: ``baseline``, ``pass``, ``fail``, ``measured`` (no limit was given) or ``absent`` (not on this machine).
        text: The sentence, without the name.
    """

    variant: str
    state: str
    text: str


def clean(text: object) -> str:
    """Text on one line that every encoding and parser takes: what is not printable becomes a replacement sign."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in str(text))


def number(value: float | None, digits: int = 2) -> str:
    """A number with a real minus sign; a dash where there is none."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else MINUS + "∞"
    rounded = round(value, digits)
    return f"{abs(rounded):.{digits}f}" if rounded >= 0 else f"{MINUS}{-rounded:.{digits}f}"


def figure(value: float | None, digits: int = 2) -> str:
    """A protocol's figure: as :func:`number`, and -1 stands for undefined."""
    return DASH if value == -1 else number(value, digits)


def amount(value: float, unit: str, digits: int = 2) -> str:
    """``0.22 points``, ``1.50 mm``."""
    return f"{number(value, digits)} {unit}"


def labelled(validation: Validation) -> Accuracy | None:
    """The accuracy that names metric and unit: the baseline's, else the first; None for data without labels."""
    rows = sorted(validation.rows, key=lambda row: row.variant != validation.baseline)
    return next((row.accuracy for row in rows if row.accuracy is not None), None)


def unit_of(validation: Validation) -> str:
    """Unit of the drops: ``points`` or ``mm``."""
    accuracy = labelled(validation)
    return accuracy.unit if accuracy else "points"


def _defined(value: float) -> bool:
    return math.isfinite(value) and value != -1


def joint_losses(validation: Validation, row: VariantEvidence) -> dict[str, float]:
    """Joint -> how much worse than the baseline: in the metric's unit with labels, else mean shift in crop pixels."""
    base = validation.base
    if base is None or base.accuracy is None or row.accuracy is None:
        return {joint: value for joint, value in row.agreement.joint_shift_px.items() if math.isfinite(value)}
    sign = 1 if base.accuracy.higher_is_better else -1
    pairs = {
        joint: (value, row.accuracy.per_joint.get(joint, math.nan)) for joint, value in base.accuracy.per_joint.items()
    }
    return {joint: sign * (a - b) for joint, (a, b) in pairs.items() if _defined(a) and _defined(b)}


def worst_joints(validation: Validation, row: VariantEvidence, count: int = 3) -> str:
    """``left wrist 1.20, right ankle 0.90``: the joints that lose most; a dash where none loses anything."""
    losses = sorted(joint_losses(validation, row).items(), key=lambda item: -item[1])[:count]
    lost = [f"{clean(joint).replace('_', ' ')} {number(loss)}" for joint, loss in losses if round(loss, 2) > 0]
    return ", ".join(lost) or DASH


def verdicts(validation: Validation, max_drop: float | None) -> list[Verdict]:
    """One per variant: the baseline first, then the others as given, then those that did not run."""
    rows = sorted(validation.rows, key=lambda row: row.variant != validation.baseline)
    ran = [_verdict(validation, row, max_drop) for row in rows]
    return ran + did_not_run(validation.failed, validation.absent)


def did_not_run(failed: Mapping[str, str], absent: Mapping[str, str]) -> list[Verdict]:
    """The verdicts on variants that are broken, and on those that are not for this machine."""
    broken = [Verdict(clean(name), "fail", f"FAILED: did not run: {clean(why)}") for name, why in failed.items()]
    return broken + [Verdict(clean(name), "absent", f"did not run here: {clean(why)}") for name, why in absent.items()]


def _verdict(validation: Validation, row: VariantEvidence, max_drop: float | None) -> Verdict:
    name, drop = clean(row.variant), validation.drop_of(row)
    headline = _headline(row)
    if row.variant == validation.baseline:
        return Verdict(name, "baseline", f"{headline or 'no labels'}, the baseline")
    unit = unit_of(validation) if row.accuracy else "points"
    headline = headline or f"mean OKS {number(row.agreement.mean_oks, 4)} with {clean(validation.baseline)}"
    if max_drop is None:
        return Verdict(name, "measured", f"{headline}, {_difference(validation, row, drop, unit)}")
    if math.isnan(drop):
        return Verdict(name, "fail", f"{headline}, FAILED: the drop is undefined, {max_drop} {unit} allowed")
    if drop > max_drop:
        dropped = amount(drop, unit, digits_over(drop, max_drop))
        text = f"{headline}, FAILED: drops {dropped}{interval(row)}, {max_drop} allowed"
        return Verdict(name, "fail", text)
    text = f"{headline}, {_difference(validation, row, drop, unit)}: within the {max_drop} allowed"
    return Verdict(name, "pass", text)


def _headline(row: VariantEvidence) -> str:
    """``PCK@0.2 49.97``, ``MPJPE 52.30 mm``; empty without labels."""
    if row.accuracy is None:
        return ""
    unit = "" if row.accuracy.unit == "points" else f" {clean(row.accuracy.unit)}"
    return f"{clean(row.accuracy.metric)} {figure(row.accuracy.value)}{unit}"


def _difference(validation: Validation, row: VariantEvidence, drop: float, unit: str) -> str:
    """``0.22 points below onnx-fp32``; the direction is the metric's own, and (better) says when it is welcome."""
    name = clean(validation.baseline)
    if math.isnan(drop):
        return f"drop from {name} undefined"
    if round(drop, 2) == 0:
        return f"equal to {name} within 0.01 {unit}{interval(row)}"
    if row.accuracy is None:
        return f"a drop of {amount(drop, unit)}"
    above = (drop < 0) == row.accuracy.higher_is_better
    better = " (better)" if drop < 0 else ""
    return f"{amount(abs(drop), unit)} {'above' if above else 'below'} {name}{better}{interval(row)}"


def interval(row: VariantEvidence) -> str:
    """`` (95 %: a drop of -0.25 to 0.44)``, or nothing."""
    if row.drop_interval is None:
        return ""
    low, high = row.drop_interval
    return f" (95 %: a drop of {number(low)} to {number(high)})"


def digits_over(drop: float, limit: float) -> int:
    """Enough digits that a drop just over the limit does not read like the limit."""
    return next((digits for digits in range(2, 7) if round(drop, digits) > limit), 7)


def summary(validation: Validation, max_drop: float | None) -> str:
    """One line over all verdicts."""
    limit = None if max_drop is None else f"{max_drop} {unit_of(validation)}"
    return tally(verdicts(validation, max_drop), len(validation.failed), limit, validation.baseline)


def tally(found: Sequence[Verdict], broken: int, limit: str | None, baseline: str, noun: str = "variant") -> str:
    """How many stay within a limit (text with its unit), and what became of the others; ``broken`` did not run."""
    states = [verdict.state for verdict in found]
    judged, bad = len([s for s in states if s not in ("baseline", "absent")]), states.count("fail")
    kept = f"{judged - bad} of {plural(judged, noun)}"
    if limit is None:
        return f"{kept} measured against {clean(baseline)}; no limit was set"
    absent = states.count("absent")
    counts = (bad - broken, "over the limit"), (broken, "did not run"), (absent, "not for this machine")
    kept += f" {'stays' if judged == 1 else 'stay'} within {limit} of {clean(baseline)}"
    return kept + "".join(f"; {count} {what}" for count, what in counts if count)


def plural(count: int, noun: str) -> str:
    """``1 crop``, ``1,200 crops``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def caption(validation: Validation, provenance: Mapping[str, Any]) -> str:
    """What was measured, on how much of it, with which versions, on which processor."""
    parts = [
        f"{clean(PurePath(validation.data).name or validation.data)} ({clean(validation.kind)}): "
        f"{plural(validation.crops, 'crop')} of {plural(validation.images, 'picture')}",
        f"boxes: {clean(validation.boxes)}",
        f"flip test {'on' if validation.flip else 'off'}",
    ]
    if validation.skipped:
        parts.append(f"{plural(len(validation.skipped), 'picture')} skipped")
    return "; ".join(parts + pruning_words(provenance) + machine_words(provenance))


_STAGES = {
    "before": "before",
    "pruned": "after pruning",
    "recovered": "after recovery",
    "converted": "of the variants",
}


def pruning_words(provenance: Mapping[str, Any]) -> list[str]:
    """What a pruned model was cut from, and its main score at each stage; nothing for other models."""
    told = lookup(provenance, "pruning")
    if not isinstance(told, Mapping):
        return []
    words = [f"pruned from {clean(told.get('file'))} ({clean(told.get('sha256'))[:12]})"]
    scores = told.get("scores")
    stages = scores if isinstance(scores, Mapping) else {}
    for key, name in _STAGES.items():
        found = stages.get(key)
        if isinstance(found, Mapping) and found:
            words.append(f"{name} {_main_scores(found)}")
    return [", ".join(words)]


def _main_scores(found: Mapping[str, Any]) -> str:
    """``PCK@0.2 48.6``; of several variants, each one's."""
    nested = {name: value for name, value in found.items() if isinstance(value, Mapping) and value}
    if nested:
        return ", ".join(f"{clean(name)} {_main_scores(value)}" for name, value in nested.items())
    name, value = next(iter(found.items()))
    return f"{clean(name)} {number(value, 1) if isinstance(value, (int, float)) else clean(value)}"


def machine_words(provenance: Mapping[str, Any]) -> list[str]:
    """Versions and processor, as far as they are known."""
    found, cpu = lookup(provenance, "versions"), lookup(provenance, "cpu")
    versions = [f"{clean(name)} {clean(value)}" for name, value in found.items()] if isinstance(found, Mapping) else []
    parts = [", ".join(versions), ", ".join(value for _, value in leaves(plain(cpu))) if cpu else ""]
    return [part for part in parts if part]


def lookup(value: Any, key: str) -> Any:
    """The first value under a key, anywhere in a nested mapping; None without."""
    if not isinstance(value, Mapping):
        return None
    if key in value:
        return value[key]
    return next((found for item in value.values() if (found := lookup(item, key)) is not None), None)


def plain(value: Any) -> Any:
    """What JSON can hold of any nested value: numbers, text, lists and dicts; all else becomes its text."""
    value = evidence_dict(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, text) of every leaf of nested dicts and lists; a list of plain values is one leaf."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path} / {clean(key)}" if path else clean(key))
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for i, item in enumerate(value, start=1):
            yield from leaves(item, f"{path} {i}")
    elif isinstance(value, list):
        yield path, " ".join(clean(item) for item in value) or DASH
    else:
        yield path, DASH if value is None or value in ({}, "") else clean(value)
