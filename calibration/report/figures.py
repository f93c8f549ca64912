"""The HTML report's charts and pictures: joints, errors, scores, speed, worst crops."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgepose.calibration.evidence import Bin, Exhibit, Validation, VariantEvidence
from edgepose.calibration.report.exhibits import BASELINE_RGB, VARIANT_RGB, draw_exhibit, jpeg_uri
from edgepose.calibration.report.parts import cell, chart, keyed, section, shown, table, tones
from edgepose.calibration.report.plots import Axis, Bars, Line, bar_chart, line_chart, scatter_chart
from edgepose.calibration.report.wording import TIMES, figure, joint_losses, labelled, number, unit_of
from edgepose.skeletons import Skeleton, get_skeleton

__all__ = ["crops_section", "errors_section", "joints_section", "percentile_line", "scores_section", "speed_section"]

_SHOWN_PERCENT = 95
_FEW_JOINTS = 30
_WORST = 10


def _others(validation: Validation) -> list[VariantEvidence]:
    return [row for row in validation.rows if row.variant != validation.baseline]


def joints_section(validation: Validation) -> str:
    """What each joint loses, as bars and as numbers."""
    losses = {row.variant: joint_losses(validation, row) for row in _others(validation)}
    groups = list(dict.fromkeys(joint for values in losses.values() for joint in values))
    if not groups:
        return ""
    tone, accuracy, unit = tones(validation), labelled(validation), unit_of(validation)
    name = validation.baseline
    if accuracy:
        title, axis = f"Drop of {accuracy.joint_metric} per joint", f"drop from {name}, {unit} (right is worse)"
        caption = "Negative bars: the variant does better than the baseline on this joint."
    else:
        title, axis = "Shift per joint", f"mean distance to {name}, crop pixels"
        caption = "Mean distance between the variant's and the baseline's joint, over the joints the baseline finds."
    bars = [Bars(variant, values, tone[variant]) for variant, values in losses.items()]
    svg = bar_chart(title, f"Bars per joint and variant. {axis}.", groups, bars, Axis(axis))
    body = f'<div class="charts">{chart(svg, caption)}{_joint_table(validation, groups, losses)}</div>'
    return section("joints", "Joint by joint", body)


def _joint_table(validation: Validation, groups: Sequence[str], losses: dict[str, dict[str, float]]) -> str:
    tone, accuracy = tones(validation), labelled(validation)
    base = next((row.accuracy for row in validation.rows if row.variant == validation.baseline), None)
    unit = f"drop, {unit_of(validation)}" if accuracy else "shift, px"
    first = (
        [f"{keyed(validation.baseline, 0)}<span class=unit>{shown(accuracy.joint_metric)}</span>"]
        if base and accuracy
        else []
    )
    head = ["Joint", *first, *(f"{keyed(v, tone[v])}<span class=unit>{shown(unit)}</span>" for v in losses)]
    rows = [
        (
            shown(joint.replace("_", " ")),
            [
                *([cell(figure(base.per_joint.get(joint)))] if base and accuracy else []),
                *(cell(number(values.get(joint))) for values in losses.values()),
            ],
        )
        for joint in groups
    ]
    return table(head, rows, "Values per joint")


def errors_section(validation: Validation) -> str:
    """How far joints are from the truth, and from the baseline's."""
    tone = tones(validation)
    error = [
        percentile_line(row.variant, row.accuracy.error_percentiles, tone[row.variant])
        for row in validation.rows
        if row.accuracy and row.accuracy.error_percentiles
    ]
    shift = [
        percentile_line(row.variant, row.agreement.shift_percentiles, tone[row.variant]) for row in _others(validation)
    ]
    axes = Axis("distance, crop pixels", low=0), Axis("joints within, %", 0, 100)
    charts = []
    if error:
        svg = line_chart("Distance to the truth", "Share of joints within each distance of their label.", error, *axes)
        charts.append(
            chart(svg, "Higher and further left is better. Lines end at 95 %: the far tail would set the scale.")
        )
    if any(line.points for line in shift):
        title = f"Distance to {validation.baseline}"
        svg = line_chart(title, "Share of joints within each distance of the baseline's.", shift, *axes)
        charts.append(chart(svg, "Over the joints that the baseline finds. Lines end at 95 %."))
    body = f'<div class="charts">{"".join(charts)}</div>' if charts else ""
    return section("errors", "How far off", body)


def percentile_line(name: str, values: Sequence[float], tone: int) -> Line:
    """Percentiles as a cumulative curve, without the last few."""
    return Line(name, [(value, float(i)) for i, value in enumerate(values[: _SHOWN_PERCENT + 1])], tone)


def scores_section(validation: Validation) -> str:
    """Whether scores keep their meaning: charts, and what they say in words."""
    tone = tones(validation)
    mean = [_bin_line(row.variant, row.agreement.score_bins, tone[row.variant]) for row in _others(validation)]
    right = [
        _bin_line(row.variant, row.accuracy.reliability, tone[row.variant])
        for row in validation.rows
        if row.accuracy and row.accuracy.reliability
    ]
    charts, unit = [], Axis("score", 0, 1)
    if any(line.points for line in mean):
        svg = line_chart(
            "Scores against the baseline's",
            "Mean score of each variant over bins of the baseline's score; the diagonal is equality.",
            mean,
            Axis(f"score of {validation.baseline}", 0, 1),
            Axis("mean score of the variant", 0, 1),
            marks=True,
            diagonal=True,
        )
        charts.append(chart(svg, f"On the diagonal, thresholds carry over. Hollow: fewer than {_FEW_JOINTS} joints."))
    if right:
        svg = line_chart(
            "What a score is worth",
            "Share of joints that are right over bins of the variant's own score.",
            right,
            unit,
            Axis("joints that are right, %", 0, 100),
            marks=True,
        )
        charts.append(
            chart(
                svg,
                f"Right by the labels, per bin of the variant's own score. Hollow: fewer than {_FEW_JOINTS} joints.",
            )
        )
    words = "".join(f"<li>{_score_words(row, tone[row.variant])}</li>" for row in _others(validation))
    body = f'<ul class="plain">{words}</ul><div class="charts">{"".join(charts)}</div>' if words or charts else ""
    return section("scores", "Do scores keep their meaning?", body)


def _bin_line(name: str, bins: Sequence[Bin], tone: int) -> Line:
    kept = [b for b in bins if b.count > 0]
    faint = frozenset(i for i, b in enumerate(kept) if b.count < _FEW_JOINTS)
    return Line(name, [((b.low + b.high) / 2, b.value) for b in kept], tone, faint)


def _score_words(row: VariantEvidence, tone: int) -> str:
    a = row.agreement
    change = "" if math.isnan(a.score_ratio) else f"scores are {number(a.score_ratio)} times the baseline's (median)"
    same = f"correlation {number(a.score_correlation, 3)}"
    found = f"{number(100 * a.lost, 1)} % of the joints that the baseline finds are lost"
    new = f"{number(100 * a.gained, 1)} % as many are found anew"
    return f"{keyed(row.variant, tone)}: " + "; ".join(part for part in (change, same, f"{found}, {new}") if part) + "."


def speed_section(validation: Validation) -> str:
    """Latency against accuracy, where latency was measured."""
    timed = [row for row in validation.rows if row.latency_ms is not None]
    if not timed:
        return ""
    tone, accuracy = tones(validation), labelled(validation)
    if accuracy:
        direction = "higher" if accuracy.higher_is_better else "lower"
        label = f"{accuracy.metric}, {accuracy.unit} ({direction} is better)"
        values = [row.accuracy.value if row.accuracy else math.nan for row in timed]
    else:
        label, values = f"mean OKS with {validation.baseline} (higher is better)", [r.agreement.mean_oks for r in timed]
    points = [
        Line(row.variant, [(row.latency_ms or 0.0, value)], tone[row.variant])
        for row, value in zip(timed, values, strict=True)
    ]
    svg = scatter_chart(
        "Latency against accuracy",
        f"{label} over latency.",
        points,
        Axis("latency of one crop, ms", low=0),
        Axis(label),
    )
    caption = "Median of one crop alone in the engine, the variants in turn. The vertical axis does not begin at zero."
    return section(
        "speed",
        "What accuracy costs",
        f'<div class="charts">{chart(svg, caption)}{_speed_table(timed, validation)}</div>',
    )


def _speed_table(timed: Sequence[VariantEvidence], validation: Validation) -> str:
    tone = tones(validation)
    base = next((row.latency_ms for row in timed if row.variant == validation.baseline), None)
    rows = [
        (
            keyed(row.variant, tone[row.variant]),
            [
                cell(number(row.latency_ms)),
                cell(f"{number(base / row.latency_ms)}{TIMES}" if base and row.latency_ms else number(None)),
                cell(number(row.megabytes, 1)),
            ],
        )
        for row in timed
    ]
    head = ["Variant", "Latency<span class=unit>ms</span>", "Speed-up", "Size<span class=unit>MB</span>"]
    return table(head, rows, "Latency and size")


def crops_section(validation: Validation) -> str:
    """The worst crops of every variant, with both skeletons."""
    skeleton, tone = get_skeleton(validation.skeleton), tones(validation)
    parts = [
        _gallery(row, skeleton, tone[row.variant], validation.score_threshold)
        for row in _others(validation)
        if row.worst
    ]
    if not parts:
        return ""
    name = shown(validation.baseline)
    key = (
        f"<p class=soft>The crops on which poses differ most, worst first.{_dot(BASELINE_RGB)}{name} "
        f"{_dot(VARIANT_RGB)}the variant. Thin limbs end in a joint that scores below "
        f"{validation.score_threshold:g}.</p>"
    )
    return section("crops", "Worst crops", key, *parts)


def _dot(rgb: tuple[int, int, int]) -> str:
    return f'<span class="dot" style="background:rgb{rgb}"></span>'.replace(", ", ",")


def _gallery(row: VariantEvidence, skeleton: Skeleton, tone: int, threshold: float) -> str:
    figures = "".join(_exhibit(exhibit, row.variant, skeleton, threshold) for exhibit in row.worst[:_WORST])
    return f'<details open><summary>{keyed(row.variant, tone)}</summary><div class="crops">{figures}</div></details>'


def _exhibit(exhibit: Exhibit, variant: str, skeleton: Skeleton, threshold: float) -> str:
    picture = draw_exhibit(exhibit, skeleton, threshold)
    height, width = picture.shape[:2]
    oks = f"OKS {number(exhibit.oks, 3)}"
    alt = shown(f"{exhibit.name}: skeletons of the baseline and of {variant}, {oks}")
    return (
        f'<figure><img src="{jpeg_uri(picture)}" width="{width}" height="{height}" alt="{alt}">'
        f"<figcaption><b>{oks}</b><br>{shown(exhibit.name)}</figcaption></figure>"
    )
