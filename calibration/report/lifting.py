"""The report of lifting models and of chains: millimetres against the truth in space, and against the baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from edgepose.calibration.evidence import Accuracy, LiftEvidence, LiftValidation
from edgepose.calibration.report.figures import percentile_line
from edgepose.calibration.report.markdown import escaped, line
from edgepose.calibration.report.parts import (
    cell,
    chart,
    definitions,
    document,
    keyed,
    provenance_section,
    section,
    shown,
    table,
    unit,
    verdict_item,
)
from edgepose.calibration.report.plots import TONES, Axis, Bars, bar_chart, line_chart
from edgepose.calibration.report.wording import (
    DASH,
    FEW_PEOPLE,
    Verdict,
    amount,
    clean,
    did_not_run,
    digits_over,
    figure,
    machine_words,
    number,
    plural,
    pruning_words,
    tally,
)

__all__ = ["lift_report_html", "lift_report_markdown", "lift_summary", "lift_verdicts"]

_STAGES = " > "
_WORST, _SKIPPED = 3, 5
_STATS = {"P-MPJPE": "mm", "3DPCK": "%"}


def lift_verdicts(validation: LiftValidation, max_drop: float | None) -> list[Verdict]:
    """One per variant: the baseline first, then the others as given, then those that did not run.

    Args:
        validation: What was measured.
        max_drop: Millimetres that are allowed, of ``validation.drop_of``; None judges nothing.
    """
    rows = sorted(validation.rows, key=lambda row: row.variant != validation.baseline)
    ran = [_judged(validation, row, max_drop) for row in rows]
    return ran + did_not_run(validation.failed, validation.absent)


def _judged(validation: LiftValidation, row: LiftEvidence, max_drop: float | None) -> Verdict:
    name, headline = clean(row.variant), _headline(row.accuracy)
    if row.variant == validation.baseline:
        return Verdict(name, "baseline", f"{headline or 'no truth'}, the baseline")
    drop = validation.drop_of(row)
    state, words = _judgement(validation, row, drop, max_drop)
    start = f"{headline}, {words}" if headline else words
    return Verdict(name, state, "; ".join(filter(None, [start, _distance(row)])))


def _judgement(validation: LiftValidation, row: LiftEvidence, drop: float, max_drop: float | None) -> tuple[str, str]:
    """State, and what is judged in words."""
    if max_drop is None:
        return "measured", _change(validation, row, drop)
    if math.isnan(drop):
        return "fail", f"FAILED: the drop is undefined, {max_drop} mm allowed"
    if drop > max_drop:
        return "fail", f"FAILED: {_change(validation, row, drop, digits_over(drop, max_drop))}, {max_drop} allowed"
    return "pass", f"{_change(validation, row, drop)}: within the {max_drop} mm allowed"


def _headline(accuracy: Accuracy | None) -> str:
    return f"{clean(accuracy.metric)} {figure(accuracy.value)} {clean(accuracy.unit)}" if accuracy else ""


def _change(validation: LiftValidation, row: LiftEvidence, drop: float, digits: int = 2) -> str:
    """``0.70 mm worse than onnx-fp32``; without truth, the mean distance."""
    name = clean(validation.baseline)
    if math.isnan(drop):
        return f"drop from {name} undefined"
    if row.accuracy is None:
        return f"its joints are {amount(drop, 'mm', digits)} from the baseline's on average"
    if round(drop, digits) == 0:
        return f"equal to {name} within 0.01 mm"
    return f"{amount(abs(drop), 'mm', digits)} {'worse' if drop > 0 else 'better'} than {name}"


def _distance(row: LiftEvidence) -> str:
    """How far the joints are from the baseline's, as far as the sentence has not said it; empty where undefined."""
    a = row.agreement
    if not math.isfinite(a.mean_mm):
        return ""
    spread = f"95 % within {amount(a.p95_mm, 'mm')}"
    mean = f"its joints are {amount(a.mean_mm, 'mm')} from the baseline's on average ({spread})"
    most = [f"most at {joint} ({amount(distance, 'mm')})" for joint, distance in _worst(row, 1)]
    return ", ".join([spread if row.accuracy is None else mean, *most])


def _worst(row: LiftEvidence, count: int = _WORST) -> list[tuple[str, float]]:
    """The joints that are furthest from the baseline's; none of those that are as good as equal."""
    known = [(name, distance) for name, distance in row.agreement.joint_mm.items() if math.isfinite(distance)]
    far = sorted(known, key=lambda item: -item[1])[:count]
    return [(clean(name).replace("_", " "), distance) for name, distance in far if round(distance, 2) > 0]


def lift_summary(validation: LiftValidation, max_drop: float | None) -> str:
    """One line over all verdicts."""
    limit, noun = None if max_drop is None else f"{max_drop} mm", "chain" if _is_chain(validation) else "variant"
    return tally(lift_verdicts(validation, max_drop), len(validation.failed), limit, validation.baseline, noun)


def _is_chain(validation: LiftValidation) -> bool:
    return validation.kind.startswith("chain")


def _others(validation: LiftValidation) -> list[LiftEvidence]:
    return [row for row in validation.rows if row.variant != validation.baseline]


def _truth(validation: LiftValidation) -> list[Accuracy]:
    """The accuracies there are; none without truth in space."""
    return [row.accuracy for row in validation.rows if row.accuracy is not None]


def _data_name(validation: LiftValidation) -> str:
    return clean(PurePath(validation.data).name or validation.data)


@dataclass(frozen=True)
class _Column:
    """One column of the results: title, unit, text of a row, and whether the baseline has nothing to say in it."""

    title: str
    unit: str
    text: Callable[[LiftEvidence], str]
    compared: bool = False


def _columns(validation: LiftValidation) -> list[_Column]:
    """The columns of both tables; the first that compares is the one that is judged."""
    truth = _truth(validation)
    judged = [_Column("Drop", "mm", lambda row: number(validation.drop_of(row)), True)] if truth else []
    shifted = any(row.shift_px is not None for row in validation.rows)
    return [
        *(_Column(accuracy.metric, accuracy.unit, _value) for accuracy in truth[:1]),
        *(_statistic(name, unit) for name, unit in _STATS.items() if any(name in a.stats for a in truth)),
        *judged,
        _Column("Distance", "mean, mm", lambda row: number(row.agreement.mean_mm), True),
        _Column("Distance", "p95, mm", lambda row: number(row.agreement.p95_mm), True),
        _Column("Worst pose", "mean, mm", lambda row: number(row.agreement.worst_mm), True),
        _Column("Worst joints", "mm", _worst_words, True),
        *([_Column("2D shift", "mean, px", lambda row: number(row.shift_px), True)] if shifted else []),
        _Column("Latency", "ms", lambda row: number(row.latency_ms)),
        _Column("Size", "MB", lambda row: number(row.megabytes, 1)),
    ]


def _value(row: LiftEvidence) -> str:
    return figure(row.accuracy.value if row.accuracy else None)


def _statistic(name: str, unit: str) -> _Column:
    return _Column(name, unit, lambda row: figure(row.accuracy.stats.get(name) if row.accuracy else None))


def _worst_words(row: LiftEvidence) -> str:
    return ", ".join(f"{joint} {number(distance)}" for joint, distance in _worst(row)) or DASH


def _texts(validation: LiftValidation, row: LiftEvidence) -> list[str]:
    """A row's texts, one per column."""
    columns = _columns(validation)
    if row.variant != validation.baseline:
        return [column.text(row) for column in columns]
    judged = next(column for column in columns if column.compared)
    return ["baseline" if column is judged else DASH if column.compared else column.text(row) for column in columns]


def _over(validation: LiftValidation, max_drop: float | None) -> set[str]:
    """Names, cleaned, of the variants over the limit."""
    return {verdict.variant for verdict in lift_verdicts(validation, max_drop) if verdict.state == "fail"}


def _skipped(validation: LiftValidation) -> str:
    more = len(validation.skipped) - _SKIPPED
    left = [f"{more:,} more (all in evidence.json)"] if more > 0 else []
    return ", ".join([*map(clean, validation.skipped[:_SKIPPED]), *left])


def _caption(validation: LiftValidation, provenance: Mapping[str, Any]) -> str:
    """What was measured, on how much of it, with which versions, on which processor."""
    parts = [
        f"{_data_name(validation)} ({clean(validation.kind)}): {plural(validation.poses, 'pose')}",
        f"2D keypoints: {clean(validation.keypoints)}",
        f"flip test {'on' if validation.flip else 'off'}",
    ]
    if validation.skipped:
        parts.append(f"skipped: {_skipped(validation)}")
    return "; ".join(parts + pruning_words(provenance) + machine_words(provenance))


def _remarks(validation: LiftValidation) -> list[str]:
    """What a reader must know, each once."""
    texts = [clean(text) for accuracy in _truth(validation) for text in accuracy.remarks]
    if validation.poses < FEW_PEOPLE:
        texts.append(f"Only {plural(validation.poses, 'pose')}: small differences may be chance.")
    return list(dict.fromkeys(texts))


def lift_report_markdown(validation: LiftValidation, provenance: Mapping[str, Any], max_drop: float | None) -> str:
    """Summary line, table with one row per variant, those that failed among them, remarks and caption.

    Args:
        validation: What was measured.
        provenance: What it was measured with; ``versions`` and ``cpu`` in it, at any depth, go into the caption.
        max_drop: Millimetres that were allowed.
    """
    columns, over = _columns(validation), _over(validation, max_drop)
    judged = next(i for i, column in enumerate(columns) if column.compared)
    lines = [
        ["variant", "engine", *(escaped(f"{column.title}, {column.unit}") for column in columns)],
        [":--", ":--", *["--:"] * len(columns)],
    ]
    for row in validation.rows:
        texts = [escaped(text) for text in _texts(validation, row)]
        if clean(row.variant) in over:
            texts[judged] = f"**{texts[judged]} FAILED**"
        lines.append([escaped(row.variant), escaped(row.engine), *texts])
    reasons = [(name, f"**FAILED**: {escaped(why)}") for name, why in validation.failed.items()]
    reasons += [(name, f"not here: {escaped(why)}") for name, why in validation.absent.items()]
    lines += [[escaped(name), why, *[DASH] * len(columns)] for name, why in reasons]
    notes = "\n".join(f"- {escaped(text)}" for text in _remarks(validation))
    parts = [f"**{escaped(lift_summary(validation, max_drop))}**", "\n".join(map(line, lines)), notes]
    return "\n\n".join([*filter(None, parts), f"<sub>{escaped(_caption(validation, provenance))}</sub>"]) + "\n"


def lift_report_html(validation: LiftValidation, provenance: Mapping[str, Any], max_drop: float | None) -> str:
    """The page.

    Args:
        validation: What was measured.
        provenance: What it was measured with and from: any nested mapping.
        max_drop: Millimetres that are allowed; None judges nothing.
    """
    count = len(validation.rows) + len(validation.failed) + len(validation.absent)
    what = "chain" if _is_chain(validation) else "lifting variant"
    title = f"Validation of {plural(count, what)} on {_data_name(validation)}"
    sections = [
        _top(validation, provenance, max_drop, title),
        _results(validation, max_drop),
        _stages(validation),
        _distances(validation),
        _measured(validation),
        provenance_section(provenance),
        _glossary(validation),
    ]
    return document(title, *sections)


def _tones(validation: LiftValidation) -> dict[str, int]:
    """Tones of the baseline and of the variants furthest from it: as many as a chart can tell apart."""
    others = _others(validation)
    far = sorted(others, key=lambda row: -row.agreement.mean_mm if math.isfinite(row.agreement.mean_mm) else 0.0)
    kept = {row.variant for row in far[: TONES - 1]}
    names = [row.variant for row in others if row.variant in kept]
    return {validation.baseline: 0} | {name: i for i, name in enumerate(names, start=1)}


def _charted(validation: LiftValidation) -> tuple[list[LiftEvidence], str]:
    """The variants that have a tone, and what to say of the others."""
    tone, others = _tones(validation), _others(validation)
    kept = [row for row in others if row.variant in tone]
    left = len(others) - len(kept)
    return kept, f" The {len(kept)} variants furthest from it; {left} nearer ones are left out." if left else ""


def _name(variant: str, tone: Mapping[str, int]) -> str:
    return keyed(variant, tone[variant]) if variant in tone else f"<b>{shown(variant)}</b>"


def _top(validation: LiftValidation, provenance: Mapping[str, Any], max_drop: float | None, title: str) -> str:
    tone = {clean(name): key for name, key in _tones(validation).items()}
    items = "".join(verdict_item(verdict, tone.get(verdict.variant)) for verdict in lift_verdicts(validation, max_drop))
    return (
        f'<header><p class="eyebrow">edgepose validation</p><h1>{shown(title)}</h1>'
        f'<p class="lead">{shown(lift_summary(validation, max_drop))}.</p>'
        f'<p class="soft">{shown(_caption(validation, provenance))}.</p><ul class="verdicts">{items}</ul></header>'
    )


def _results(validation: LiftValidation, max_drop: float | None) -> str:
    columns, over, tone = _columns(validation), _over(validation, max_drop), _tones(validation)
    head = ["Variant", *(shown(column.title) + unit(column.unit) for column in columns)]
    judged = next(i for i, column in enumerate(columns) if column.compared)
    rows: list[tuple[str, Sequence[str]]] = []
    for row in validation.rows:
        css = {judged: "bad"} if clean(row.variant) in over else {}
        texts = ["<br>".join(map(shown, text.split(", "))) for text in _texts(validation, row)]
        cells = [cell(text, css.get(i, "")) for i, text in enumerate(texts)]
        rows.append((_name(row.variant, tone) + unit(row.engine), cells))
    reasons = [(name, f'<b class="bad">FAILED</b> {shown(why)}') for name, why in validation.failed.items()]
    reasons += [(name, f"did not run here: {shown(why)}") for name, why in validation.absent.items()]
    rows += [(shown(n), [cell(f'<span class="why">{why}</span>', "long", len(columns))]) for n, why in reasons]
    notes = "".join(f"<li>{shown(text)}</li>" for text in _remarks(validation))
    remarks = f'<ul class="plain note">{notes}</ul>' if notes else ""
    return section("results", "Results", table(head, rows, "Results per variant"), remarks)


def _stages(validation: LiftValidation) -> str:
    """Of chains: the mean distance of every 2D variant with every lifting variant, so that each stage's part shows."""
    found = {row.variant.partition(_STAGES)[::2]: number(row.agreement.mean_mm) for row in validation.rows}
    if not _is_chain(validation) or len(found) < 2:
        return ""
    lifters = list(dict.fromkeys(lifter for _, lifter in found))
    rows = [
        (shown(name), [cell(found.get((name, lifter), DASH)) for lifter in lifters])
        for name in dict.fromkeys(name for name, _ in found)
    ]
    note = (
        "<p class=soft>Mean distance of the joints from the baseline's, mm: a row is a 2D variant, a column a lifting "
        "variant. The row and the column of the baseline show what one stage costs alone.</p>"
    )
    head = ["2D variant", *(shown(lifter) for lifter in lifters)]
    return section("stages", "Stage by stage", note, table(head, rows, "Mean distance per 2D and lifting variant"))


def _distances(validation: LiftValidation) -> str:
    """How far the joints are from the baseline's: by joint, their distribution, and the numbers."""
    groups = list(dict.fromkeys(joint for row in _others(validation) for joint in row.agreement.joint_mm))
    (charted, remark), tone, base = _charted(validation), _tones(validation), validation.base
    bars = [Bars(row.variant, row.agreement.joint_mm, tone[row.variant]) for row in charted]
    lines = [percentile_line(row.variant, row.agreement.percentiles_mm, tone[row.variant]) for row in charted]
    if not groups:
        return ""
    axis = "mean distance to the baseline, mm"
    by_joint = bar_chart("Distance per joint", f"Bars per joint and variant. {axis}.", groups, bars, Axis(axis))
    spread = line_chart(
        "Distance to the baseline",
        "Share of joints within each distance of the baseline's.",
        lines,
        Axis("distance, mm", low=0),
        Axis("joints within, %", 0, 100),
    )
    mean = f"How far the variant's joint is from the baseline's on average.{remark}"
    tail = f"Further left is nearer to the baseline. Lines end at 95 %: the far tail would set the scale.{remark}"
    charts = f'<div class="charts">{chart(by_joint, mean)}{chart(spread, tail)}</div>'
    below = "Beneath each distance: how much further from the truth than the baseline's joint, mm."
    note = f"<p class=soft>{below}</p>" if base and base.accuracy else ""
    return section("joints", "Joint by joint", charts, note, _joint_table(validation, groups))


def _joint_table(validation: LiftValidation, groups: Sequence[str]) -> str:
    tone, base, others = _tones(validation), validation.base, _others(validation)
    truth = base.accuracy if base else None
    first = [keyed(validation.baseline, 0) + unit(f"{truth.joint_metric}, mm")] if truth else []
    head = ["Joint", *first, *(_name(row.variant, tone) + unit("distance, mm") for row in others)]
    rows = [
        (
            shown(joint.replace("_", " ")),
            [
                *([cell(figure(truth.per_joint.get(joint)))] if truth else []),
                *(cell(_joint_words(row, truth, joint)) for row in others),
            ],
        )
        for joint in groups
    ]
    return table(head, rows, "Values per joint")


def _joint_words(row: LiftEvidence, truth: Accuracy | None, joint: str) -> str:
    """The distance, and beneath it how much further from the truth than the baseline's joint."""
    distance = number(row.agreement.joint_mm.get(joint))
    if truth is None or row.accuracy is None:
        return distance
    drop = row.accuracy.per_joint.get(joint, math.nan) - truth.per_joint.get(joint, math.nan)
    return distance + (unit(f"drop {number(drop)}") if math.isfinite(drop) else "")


def _measured(validation: LiftValidation) -> str:
    seconds = ", ".join(f"{shown(row.variant)} {number(row.seconds, 1)} s" for row in validation.rows)
    pairs = [
        ("Data", f"<code>{shown(validation.data)}</code> ({shown(validation.kind)})"),
        *((f"SHA-256 of {name}", f"<code>{shown(digest)}</code>") for name, digest in validation.data_sha256.items()),
        ("2D keypoints", shown(validation.keypoints)),
        ("Skeleton", shown(validation.skeleton)),
        ("Baseline", shown(validation.baseline)),
        ("Flip test", "on: averaged with the mirrored pose" if validation.flip else "off"),
        ("Counts", f"{plural(validation.poses, 'pose')}; every variant saw the same ones"),
        ("Skipped", shown(_skipped(validation)) or "none"),
        ("Time in the engines", seconds or DASH),
    ]
    return section("measured", "How it was measured", definitions(pairs))


_TERMS = {
    "MPJPE": "Mean distance of the joints to the truth, both relative to the pelvis (mm, lower is better).",
    "P-MPJPE": "MPJPE after each pose is moved, turned and scaled onto its truth: what is left is the error in shape.",
    "3DPCK": "Share of joints less than 150 mm from the truth (%, higher is better).",
    "Drop": "How much larger the error is than the baseline's (mm); negative where the variant is better.",
}


def _glossary(validation: LiftValidation) -> str:
    truth = _truth(validation)
    known = {"Drop", *(accuracy.metric for accuracy in truth), *(name for a in truth for name in a.stats)}
    judged = "" if truth else " Without truth, this is what is judged: how far from the baseline, not how wrong."
    terms = [(name, text) for name, text in _TERMS.items() if truth and name in known]
    terms += [
        ("Distance", f"From the variant's joint to the baseline's in space, for the same pose (mm).{judged}"),
        ("Distance, p95", "One joint in twenty is further away than this."),
        ("Worst pose", "Mean distance of the joints of the pose that differs most."),
        ("Worst joints", "The three joints that are furthest from the baseline's on average, and how far."),
    ]
    if _is_chain(validation):
        terms += [
            ("Chain", "A 2D variant whose keypoints a lifting variant takes, written 2D > lifting; judged as a whole."),
            ("2D shift", "Mean distance of the chain's 2D joints from the baseline's, in pixels of the picture."),
        ]
    terms += [
        (
            "Latency",
            "Median time of one pose alone in the engines; variants take turns, so that a warm processor hits all.",
        ),
        (DASH, "Undefined, or not measured."),
    ]
    return section("glossary", "Terms", definitions((term, shown(text)) for term, text in terms))
