"""A validation as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import PurePath
from typing import Any

from edgepose.calibration.evidence import Validation, VariantEvidence
from edgepose.calibration.report.figures import (
    crops_section,
    errors_section,
    joints_section,
    scores_section,
    speed_section,
)
from edgepose.calibration.report.parts import (
    cell,
    definitions,
    document,
    keyed,
    provenance_section,
    section,
    shown,
    table,
    tones,
    unit,
    verdict_item,
)
from edgepose.calibration.report.wording import (
    DASH,
    FEW_PEOPLE,
    MINUS,
    TIMES,
    caption,
    clean,
    figure,
    labelled,
    number,
    summary,
    unit_of,
    verdicts,
    worst_joints,
)

__all__ = ["report_html"]

_SIZES = ("small", "medium", "large")
_SKIPPED = 20


def report_html(validation: Validation, provenance: Mapping[str, Any], max_drop: float | None) -> str:
    """The page.

    Args:
        validation: What was measured.
        provenance: What it was measured with and from: any nested mapping.
        max_drop: The drop that is allowed, in the metric's unit; None judges nothing.
    """
    count, data = len(validation.rows) + len(validation.failed) + len(validation.absent), _data_name(validation)
    title = f"Validation of {count} variant{'' if count == 1 else 's'} on {data}"
    sections = [
        _results(validation, max_drop),
        joints_section(validation),
        errors_section(validation),
        _sizes(validation),
        scores_section(validation),
        _jitter(validation),
        crops_section(validation),
        speed_section(validation),
        _figures(validation),
        _measured(validation),
        provenance_section(provenance),
        _glossary(validation),
    ]
    return document(title, _top(validation, provenance, max_drop, title), *sections)


def _data_name(validation: Validation) -> str:
    return clean(PurePath(validation.data).name or validation.data)


def _top(validation: Validation, provenance: Mapping[str, Any], max_drop: float | None, title: str) -> str:
    tone = {clean(name): key for name, key in tones(validation).items()}
    items = "".join(verdict_item(verdict, tone.get(verdict.variant)) for verdict in verdicts(validation, max_drop))
    return (
        f'<header><p class="eyebrow">edgepose validation</p><h1>{shown(title)}</h1>'
        f'<p class="lead">{shown(summary(validation, max_drop))}.</p>'
        f'<p class="soft">{shown(caption(validation, provenance))}.</p><ul class="verdicts">{items}</ul></header>'
    )


def _results(validation: Validation, max_drop: float | None) -> str:
    accuracy = labelled(validation)
    metric = [f"{shown(accuracy.metric)}{unit(accuracy.unit)}"] if accuracy else []
    head = [
        "Variant", *metric, f"Drop{unit(unit_of(validation))}", "Mean OKS", f"OKS{unit('5th percentile')}",
        f"Shift{unit('mean, px')}", f"Shift{unit('p95, px')}", f"Lost{unit('% of joints')}",
        f"Worst joints{unit('drop' if accuracy else 'px')}", f"Latency{unit('ms')}", f"Size{unit('MB')}",
    ]  # fmt: skip
    bad = {v.variant for v in verdicts(validation, max_drop) if v.state == "fail"}
    key = tones(validation)
    rows = [
        (keyed(row.variant, key[row.variant]) + unit(row.engine), _cells(validation, row, bad))
        for row in validation.rows
    ]
    failed = [
        (shown(name), [cell(f'<span class="why"><b class="bad">FAILED</b> {shown(why)}</span>', "long", len(head) - 1)])
        for name, why in validation.failed.items()
    ]
    failed += [
        (shown(name), [cell(f'<span class="why">did not run here: {shown(why)}</span>', "long", len(head) - 1)])
        for name, why in validation.absent.items()
    ]
    return section("results", "Results", table(head, [*rows, *failed], "Results per variant"), _remarks(validation))


def _cells(validation: Validation, row: VariantEvidence, bad: Iterable[str]) -> list[str]:
    a = row.agreement
    spread = unit(f"{number(row.drop_interval[0])} to {number(row.drop_interval[1])}") if row.drop_interval else ""
    drop = cell(number(validation.drop_of(row)) + spread, "bad" if clean(row.variant) in bad else "")
    joints = "<br>".join(shown(worst_joints(validation, row)).split(", "))
    compared = [
        drop,
        *map(cell, (number(a.mean_oks, 4), number(a.p5_oks, 4), number(a.mean_shift_px), number(a.p95_shift_px))),
        cell(number(100 * a.lost, 1)),
        cell(joints),
    ]
    same = [cell("baseline", "soft"), *[cell(DASH)] * 6]
    return [
        *([cell(figure(row.accuracy.value if row.accuracy else None))] if labelled(validation) else []),
        *(same if row.variant == validation.baseline else compared),
        cell(number(row.latency_ms)),
        cell(number(row.megabytes, 1)),
    ]


def _remarks(validation: Validation) -> str:
    """What a reader must know, each once."""
    accuracy = labelled(validation)
    texts = [text for row in validation.rows if row.accuracy for text in row.accuracy.remarks]
    people = accuracy.people if accuracy else validation.crops
    if people < FEW_PEOPLE:
        texts.append(f"Only {people} people: small differences may be chance.")
    items = "".join(f"<li>{shown(text)}</li>" for text in dict.fromkeys(texts))
    return f'<ul class="plain note">{items}</ul>' if items else ""


def _sizes(validation: Validation) -> str:
    accuracy, tone = labelled(validation), tones(validation)
    values = _known(row.accuracy.per_size for row in validation.rows if row.accuracy)
    oks = _known(row.agreement.size_oks for row in validation.rows)
    if not (values or oks):
        return ""
    name = accuracy.joint_metric or accuracy.metric if accuracy else ""
    head = ["Variant", *(shown(size) + unit(name) for size in values), *(shown(size) + unit("OKS") for size in oks)]
    rows = [
        (
            keyed(row.variant, tone[row.variant]),
            [_size_value(validation, row, size) for size in values]
            + [_size_oks(validation, row, size) for size in oks],
        )
        for row in validation.rows
    ]
    limits = "small up to 32 &times; 32 pixels, medium up to 96 &times; 96, large above"
    note = f"<p class=soft>By the person's box in the picture: {limits}.</p>"
    return section("sizes", "By the person's size", note, table(head, rows, "Values by person size"))


def _size_value(validation: Validation, row: VariantEvidence, size: str) -> str:
    """The value, and beneath it the drop."""
    base = validation.base
    value = row.accuracy.per_size.get(size, math.nan) if row.accuracy else math.nan
    if base is None or base is row or base.accuracy is None:
        return cell(figure(value))
    loss = (base.accuracy.per_size.get(size, math.nan) - value) * (1 if base.accuracy.higher_is_better else -1)
    return cell(figure(value) + (unit(f"drop {number(loss)}") if math.isfinite(loss) else ""))


def _size_oks(validation: Validation, row: VariantEvidence, size: str) -> str:
    return cell(DASH if row.variant == validation.baseline else figure(row.agreement.size_oks.get(size), 4))


def _known(tables: Iterable[Mapping[str, float]]) -> list[str]:
    """Names of sizes that any variant has, smallest first."""
    names = set(chain.from_iterable(tables))
    return [size for size in _SIZES if size in names] + sorted(names - set(_SIZES))


def _jitter(validation: Validation) -> str:
    shaken = [row for row in validation.rows if row.agreement.jitter_px is not None]
    if not shaken:
        return ""
    tone = tones(validation)
    base = next((row.agreement.jitter_px for row in shaken if row.variant == validation.baseline), None)
    rows = [
        (
            keyed(row.variant, tone[row.variant]),
            [cell(number(jitter)), cell(f"{number(jitter / base)}{TIMES}" if base else DASH)],
        )
        for row in shaken
        if (jitter := row.agreement.jitter_px) is not None
    ]
    note = "<p class=soft>Mean acceleration of the joints over consecutive frames. People move too: compare.</p>"
    head = ["Variant", f"Jitter{unit('px per frame²')}", f"Against{unit(validation.baseline)}"]
    return section("jitter", "Jitter", note, table(head, rows, "Jitter per variant"))


def _figures(validation: Validation) -> str:
    """Everything that was measured, one column per variant."""
    tone = tones(validation)
    stats = list(dict.fromkeys(name for row in validation.rows if row.accuracy for name in row.accuracy.stats))
    unit_text = unit_of(validation)
    rows = [
        (
            f"{shown(name)} <span class=soft>{shown(unit_text)}</span>",
            [cell(figure(row.accuracy.stats.get(name) if row.accuracy else None)) for row in validation.rows],
        )
        for name in stats
    ]
    columns = [_agreement(row, row.variant == validation.baseline) for row in validation.rows]
    rows += [(shown(name), [cell(column[name]) for column in columns]) for name in columns[0]] if columns else []
    head = ["Figure", *(keyed(row.variant, tone[row.variant]) for row in validation.rows)]
    return section("figures", "All figures", table(head, rows, "All figures per variant")) if rows else ""


def _agreement(row: VariantEvidence, is_base: bool) -> dict[str, str]:
    a = row.agreement
    people = f"{row.accuracy.people:,}" if row.accuracy else DASH
    compared = {
        "joints compared": f"{a.joints:,} ({number(100 * a.share, 1)} %)",
        "mean OKS": number(a.mean_oks, 4),
        "5th percentile of OKS": number(a.p5_oks, 4),
        "mean shift, px": number(a.mean_shift_px, 3),
        "95th percentile of shift, px": number(a.p95_shift_px, 3),
        "joints lost, %": number(100 * a.lost),
        "joints gained, %": number(100 * a.gained),
        "score ratio, median": number(a.score_ratio, 3),
        "score correlation": number(a.score_correlation, 4),
        "largest heatmap error": number(a.max_abs_error, 4),
        "heatmap SNR, dB": number(a.snr_db, 1),
    }
    measured = {"people judged": people, "time in the engine, s": number(row.seconds, 1)}
    return measured | (dict.fromkeys(compared, DASH) if is_base else compared)


def _measured(validation: Validation) -> str:
    pairs = [
        ("Data", f"<code>{shown(validation.data)}</code> ({shown(validation.kind)})"),
        *((f"SHA-256 of {name}", f"<code>{shown(digest)}</code>") for name, digest in validation.data_sha256.items()),
        ("Boxes", shown(validation.boxes)),
        ("Skeleton", shown(validation.skeleton)),
        ("Flip test", "on: averaged with the mirrored crop" if validation.flip else "off"),
        ("Counts", f"{validation.images:,} pictures, {validation.crops:,} crops; every variant saw the same ones"),
        ("Skipped", _skipped(validation.skipped)),
        ("CPU time", _cpu(validation)),
    ]
    return section("measured", "How it was measured", definitions(pairs))


def _skipped(names: tuple[str, ...]) -> str:
    if not names:
        return "none"
    more = f", and {len(names) - _SKIPPED:,} more (all in evidence.json)" if len(names) > _SKIPPED else ""
    return f"{len(names):,} that could not be read and count nowhere: {shown(', '.join(names[:_SKIPPED]))}{more}"


def _cpu(validation: Validation) -> str:
    total, host = validation.cpu_seconds, validation.host_cpu_seconds
    if not total > 0:
        return DASH
    share = number(100 * host / total, 1)
    outside = f"{number(host, 1)} s ({share} %) outside the engines: reading, cropping, decoding, counting"
    return f"{number(total, 1)} s over all threads, of which {outside}"


_TERMS = {
    "AP": "COCO average precision: mean over OKS limits 0.50 to 0.95 (points, higher is better).",
    "PCK": "Share of joints within the given part of a reference length from the truth (points, higher is better).",
    "MPJPE": "Mean distance of the joints to the truth (mm, lower is better).",
}


def _glossary(validation: Validation) -> str:
    accuracy = labelled(validation)
    terms = [(name, text) for name, text in _TERMS.items() if accuracy and name in accuracy.metric.upper()]
    if accuracy:
        drop = "How much worse than the baseline the metric is, in its own unit; negative where the variant is better."
    else:
        drop = f"100 {TIMES} (1 {MINUS} mean OKS): without labels, how far from the baseline, not how wrong."
    terms += [
        ("Drop", drop),
        (
            "OKS",
            "Object keypoint similarity of the variant's and the baseline's pose, COCO's tolerances: 1 is equal.",
        ),
        ("OKS, 5th percentile", "One crop in twenty agrees less than this: how the worst crops fare."),
        ("Shift", "Distance between the variant's and the baseline's joint, in pixels of the crop."),
        (
            "Lost, gained",
            "Joints that only the baseline, or only the variant, finds, as a part of those the baseline finds.",
        ),
        (
            "Score ratio",
            "Median of the variant's score over the baseline's; well below 1, thresholds find fewer joints.",
        ),
        ("Worst joints", "The three joints that lose most, and how much."),
        (
            "Latency",
            "Median time of one crop alone in the engine; variants take turns, so that a warm processor hits all.",
        ),
        ("SNR", "Power of the baseline's heatmaps over that of the difference; ∞ where they are equal."),
        (DASH, "Undefined, or not measured."),
    ]
    return section("glossary", "Terms", definitions((term, shown(text)) for term, text in terms))
