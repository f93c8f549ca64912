"""The report of a validation: a page for people, a table for pull requests, and the values for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgepose.bundle import MANIFEST
from edgepose.calibration.evidence import LiftValidation, Validation, evidence_dict
from edgepose.calibration.report.html import report_html
from edgepose.calibration.report.lifting import lift_report_html, lift_report_markdown, lift_verdicts
from edgepose.calibration.report.markdown import report_markdown
from edgepose.calibration.report.wording import Verdict, plain, verdicts
from edgepose.errors import SinkError
from edgepose.files import canonical_json, replace_file
from edgepose.sinks import check_output

__all__ = [
    "FILES",
    "check_report",
    "evidence",
    "render",
    "report_html",
    "report_markdown",
    "verdicts_of",
    "write_report",
]

FILES = ("report.html", "report.md", "evidence.json")
_SCHEMA_VERSION = 1


def check_report(folder: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse a folder that a report cannot or must not be written to, before anything is measured.

    Raises:
        SinkError: A file of a report is there and ``force`` is not given, the folder is a bundle or among ``inputs``,
            or it cannot be written.
    """
    if (folder / MANIFEST).exists():
        raise SinkError(f"{folder}: is a bundle, which keeps its own report: choose another folder")
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        for name in FILES:
            check_output(folder / name, force=force, inputs=inputs)
    finally:
        for path in missing:
            if path.is_dir():
                path.rmdir()


def write_report(
    folder: Path,
    validation: Validation | LiftValidation,
    provenance: Mapping[str, Any],
    max_drop: float | None,
    *,
    force: bool,
) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``evidence.json``: all of them, or none.

    Args:
        folder: Where to; it is created.
        validation: What was measured.
        provenance: What it was measured with and from: any nested mapping. ``versions`` and ``cpu`` are quoted in the
            table's caption.
        max_drop: The drop that is allowed, in the metric's unit; None judges nothing.
        force: Whether files of an earlier report may be replaced.

    Returns:
        The paths that were written.

    Raises:
        SinkError: See :func:`check_report`.
    """
    check_report(folder, force=force)
    texts = {
        **render(validation, provenance, max_drop),
        "evidence.json": canonical_json(evidence(validation, provenance, max_drop)),
    }
    try:
        with ExitStack() as files:
            for name, text in texts.items():
                partial = files.enter_context(replace_file(folder / name))
                # A file name that is no UTF-8 reaches JSON as an escape, which reads back as the same name.
                partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise SinkError(f"{folder}: cannot write the report ({error.strerror}): choose another folder") from None
    return [folder / name for name in texts]


def render(
    validation: Validation | LiftValidation, provenance: Mapping[str, Any], max_drop: float | None
) -> dict[str, str]:
    """File name -> text of the page and of the table; arguments as in :func:`write_report`."""
    if isinstance(validation, LiftValidation):
        page = lift_report_html(validation, provenance, max_drop)
        return {"report.html": page, "report.md": lift_report_markdown(validation, provenance, max_drop)}
    page = report_html(validation, provenance, max_drop)
    return {"report.html": page, "report.md": report_markdown(validation, provenance, max_drop)}


def evidence(
    validation: Validation | LiftValidation, provenance: Mapping[str, Any], max_drop: float | None
) -> dict[str, Any]:
    """The content of ``evidence.json``, as plain values."""
    others = [row for row in validation.rows if row.variant != validation.baseline]
    drop_of: Callable[[Any], float] = validation.drop_of
    return {
        "schema_version": _SCHEMA_VERSION,
        "validation": evidence_dict(validation),
        "drops": {row.variant: drop_of(row) for row in others},
        "max_drop": max_drop,
        "provenance": plain(provenance),
    }


def verdicts_of(validation: Validation | LiftValidation, max_drop: float | None) -> list[Verdict]:
    """One sentence and state per variant; arguments as in :func:`write_report`."""
    if isinstance(validation, LiftValidation):
        return lift_verdicts(validation, max_drop)
    return verdicts(validation, max_drop)
