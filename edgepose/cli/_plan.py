"""``--target-fps``: the plan, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepose.cli._console import print_table, remark

if TYPE_CHECKING:
    from edgepose.lifter import Lifter
    from edgepose.people import Detector
    from edgepose.pipeline import Estimator
    from edgepose.planning import Plan

__all__ = ["planned"]


def planned(
    estimator: Estimator,
    detector: Detector | None,
    lifter: Lifter | None,
    fps: float,
    most: int,
    detect_every: int | None,
) -> Plan:
    """Measure what people cost here, choose how many a frame rate allows, and show the choice."""
    from edgepose.planning import HEADROOM, measure_costs, plan

    chosen = plan(measure_costs(estimator, detector, lifter, most), fps, most, detect_every)
    counts = sorted({*chosen.costs.people_ms, chosen.most})
    rows = [
        (
            count,
            *(f"{ms:.1f}" for ms in _times(chosen, count)),
            f"{1000 / chosen.frame_ms(count):.0f}",
            chosen.fits(count),
        )
        for count in counts
    ]
    looks = f", the detector looks every {chosen.detect_every} frames" if detector else ""
    look = f"a look takes {chosen.costs.detect_ms:.1f} ms; " if detector else ""
    print_table(
        f"plan for {fps:g} FPS: {chosen.most} {'person' if chosen.most == 1 else 'people'} at most{looks}, "
        f"{chosen.batch} per engine call",
        ("people", "ms", *(["with looks"] if detector else []), "FPS", "fits"),
        [(*row[:-1], "yes" if row[-1] else "no") for row in rows],
        f"medians here; {look}{HEADROOM:.0%} of a frame's {1000 / fps:.1f} ms are planned with",
    )
    if not chosen.reached:
        remark(f"warning: {fps:g} FPS cannot be reached here: about {1000 / chosen.frame_ms(1):.0f} with one person")
    elif chosen.costs.detect_ms > chosen.budget_ms:
        remark(
            f"a look of the detector takes longer than a frame ({chosen.costs.detect_ms:.0f} ms): "
            "it looks aside on live sources, and files wait for it"
        )
    return chosen


def _times(chosen: Plan, people: int) -> list[float]:
    """Milliseconds without the detector, and with its share where there is one."""
    alone = chosen.costs.of(people)
    return [alone, chosen.frame_ms(people)] if chosen.costs.detect_ms else [alone]
