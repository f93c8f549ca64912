"""The bricks of the HTML report: style sheet, sections, tables, figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from edgepose.calibration.evidence import Validation
from edgepose.calibration.report.plots import PLOT_CSS, TONES, swatch
from edgepose.calibration.report.wording import Verdict, clean, leaves, plain

__all__ = [
    "STYLE",
    "cell",
    "chart",
    "definitions",
    "document",
    "keyed",
    "provenance_section",
    "section",
    "shown",
    "table",
    "tones",
    "unit",
    "verdict_item",
]

_SHORT = 20
_PILLS = {"baseline": "BASELINE", "pass": "✓ PASS", "fail": "✗ FAIL", "measured": "MEASURED", "absent": "NOT HERE"}

_SHEET = """
:root{color-scheme:light dark;--bg:#f7f7f5;--panel:#fff;--ink:#1b1f26;--soft:#59616e;--rule:#e3e4e8;--zebra:#fafafa;
--good:#136c41;--good-bg:#e6f4ec;--bad:#b3261e;--bad-bg:#fceae8;--note:#44506a;--note-bg:#eceff5}
@media(prefers-color-scheme:dark){:root{--bg:#13161b;--panel:#1a1e25;--ink:#e7e9ed;--soft:#a0a8b5;--rule:#2d333d;
--zebra:#1e232b;--good:#6fd6a1;--good-bg:#16352a;--bad:#ff9a8f;--bad-bg:#43201f;--note:#b4c0d6;--note-bg:#262e3b}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
overflow-wrap:anywhere}
main{max-width:1200px;margin:0 auto;padding:48px clamp(16px,4vw,40px) 72px}
h1{font-size:clamp(26px,4vw,36px);line-height:1.2;letter-spacing:-.015em;margin:4px 0 12px}
h2{font-size:21px;line-height:1.3;letter-spacing:-.005em;margin:0 0 4px}
h3{font-size:16px;margin:26px 0 8px}
p{margin:8px 0;max-width:76ch}
a{color:inherit;text-underline-offset:3px}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.eyebrow{font-size:13px;font-weight:600;letter-spacing:.08em;text-transform:uppercase;color:var(--soft);margin:0}
.lead{font-size:18px}.soft,figcaption,.note{color:var(--soft)}
section{margin-top:56px}
.verdicts{list-style:none;padding:0;margin:24px 0 0;display:grid;gap:8px}
.verdicts li{display:grid;grid-template-columns:92px minmax(0,1fr);gap:4px 14px;align-items:baseline;padding:11px 16px;
background:var(--panel);border:1px solid var(--rule);border-radius:10px}
.pill{font-size:12px;font-weight:650;letter-spacing:.05em;text-align:center;border-radius:99px;padding:2px 8px;
color:var(--note);background:var(--note-bg)}
.pass .pill{color:var(--good);background:var(--good-bg)}
.fail .pill{color:var(--bad);background:var(--bad-bg)}
.verdicts .fail{border-color:var(--bad)}
.swatch{vertical-align:-2px;margin-right:7px}.key b{font-weight:600;overflow-wrap:anywhere}
thead .key{display:inline-block;min-width:104px}
.scroll{overflow-x:auto;background:var(--panel);border:1px solid var(--rule);border-radius:10px;margin:14px 0}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums;overflow-wrap:normal}
th,td{padding:8px 12px;text-align:right;vertical-align:baseline;border-top:1px solid var(--rule);white-space:nowrap}
thead th{border-top:0;color:var(--soft);font-weight:600;font-size:13px;line-height:1.3;vertical-align:bottom;
white-space:normal;overflow-wrap:normal}
thead th:first-child,tbody th,#provenance th,#operators :is(th,td):nth-child(-n+3),
#native :is(th,td):nth-child(2){text-align:left}
tbody th{font-weight:600;white-space:normal;min-width:120px;overflow-wrap:break-word}
#results tbody th{min-width:176px}#joints tbody th{white-space:nowrap}thead .unit{white-space:nowrap}
thead .swatch{display:block;margin:0 0 3px auto}.short{white-space:nowrap}
tbody th .unit{font-size:13px;color:var(--soft);margin-left:29px}td .unit{font-size:12.5px;color:var(--soft)}
.why{display:block;max-width:min(640px,42vw)}
tbody tr:nth-child(even){background:var(--zebra)}
.long{white-space:normal;text-align:left;overflow-wrap:anywhere}
.unit{display:block;font-weight:400}
.bad{color:var(--bad);font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:20px;margin-top:18px;
align-items:start}
.charts>*{min-width:0;margin:0}
figure.panel{background:var(--panel);border:1px solid var(--rule);border-radius:10px;padding:18px 18px 14px;
max-width:580px}
figcaption{font-size:13.5px;line-height:1.45;margin-top:10px}
.crops{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(44%,190px),1fr));gap:18px 14px}
.crops figure{margin:0;break-inside:avoid}
.crops img{display:block;width:100%;height:auto;border-radius:8px;background:#000}
.crops figcaption{font-size:13px;margin-top:6px}.crops b{color:var(--ink);font-variant-numeric:tabular-nums}
.dot{display:inline-block;width:11px;height:11px;border-radius:50%;margin:0 5px 0 12px;box-shadow:0 0 0 1.5px #141414}
details{margin-top:22px}summary{cursor:pointer;font-weight:600;margin-bottom:12px}
dl{display:grid;grid-template-columns:minmax(130px,max-content) minmax(0,1fr);gap:7px 24px;margin:14px 0;font-size:15px}
dt{font-weight:600}dd{margin:0;max-width:80ch}
ul.plain{margin:8px 0;padding-left:20px;max-width:76ch}
footer{margin-top:64px;font-size:13px;color:var(--soft)}
@media(max-width:560px){dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin-bottom:10px}
main{padding-top:28px}section{margin-top:44px}th,td{padding:7px 10px}
.verdicts li{grid-template-columns:minmax(0,1fr);justify-items:start}figure.panel{padding:14px 12px 10px}}
@media print{:root{color-scheme:light;--bg:#fff;--panel:#fff;--ink:#000;--soft:#444;--rule:#ccc;--zebra:#fff;
--good:#136c41;--good-bg:#fff;--bad:#b3261e;--bad-bg:#fff;--note:#333;--note-bg:#fff}body{font-size:10.5pt}main{max-width:none;padding:0}
section{margin-top:26pt}h2,h3,summary{break-after:avoid}figure,tr,li{break-inside:avoid}
.scroll{overflow:visible;border:0}table{font-size:7.5pt}th,td{padding:3px 5px}
thead .unit{white-space:normal}thead th,tbody th .unit,td .unit{font-size:7pt}#results tbody th{min-width:100px}
.charts{grid-template-columns:1fr 1fr}#joints .charts{grid-template-columns:1fr}
.crops{grid-template-columns:repeat(5,1fr)}*{print-color-adjust:exact}}
"""
STYLE = PLOT_CSS + _SHEET.replace("\n", "")
"""The whole style sheet of the page."""


def document(title: str, *parts: str, made_by: str = "edgepose validate") -> str:
    """The whole page, which needs nothing from elsewhere and forbids itself to ask."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{shown(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}<footer>Made by {shown(made_by)}.</footer></main></body></html>\n"
    )


def shown(text: object) -> str:
    """Any text as HTML."""
    return escape(clean(text))


def tones(validation: Validation) -> dict[str, int]:
    """Variant -> tone: the baseline's is 0, the others count on from 1."""
    others = [row.variant for row in validation.rows if row.variant != validation.baseline]
    return {validation.baseline: 0} | {name: 1 + i % (TONES - 1) for i, name in enumerate(others)}


def keyed(name: str, tone: int) -> str:
    """A variant's name behind its line and mark."""
    css = "key short" if len(name) <= _SHORT else "key"
    return f'<span class="{css}">{swatch(tone)}<b>{shown(name)}</b></span>'


def section(anchor: str, title: str, *body: str) -> str:
    """A titled part of the page; empty where there is nothing to show."""
    inner = "".join(body)
    return f'<section id="{anchor}"><h2>{shown(title)}</h2>{inner}</section>' if inner else ""


def cell(content: str, css: str = "", span: int = 1) -> str:
    """One ``td``."""
    columns = f' colspan="{span}"' if span > 1 else ""
    return f"<td{_css(css)}{columns}>{content}</td>"


def _css(css: str) -> str:
    return f' class="{css}"' if css else ""


def table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], label: str) -> str:
    """A table that scrolls inside its own box.

    Args:
        head: HTML of the column heads, the first being the rows' names.
        rows: HTML of the row's head, and its ``td`` elements.
        label: What it shows, for readers who do not see it.
    """
    heads = "".join(f'<th scope="col">{item}</th>' for item in head)
    body = "".join(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>' for name, cells in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{shown(label)}"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def chart(svg: str, caption: str = "") -> str:
    """A chart in its panel; the caption is text."""
    below = f"<figcaption>{shown(caption)}</figcaption>" if caption else ""
    return f'<figure class="panel">{svg}{below}</figure>'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Terms (text) and what they mean (HTML)."""
    return "<dl>" + "".join(f"<dt>{shown(term)}</dt><dd>{meaning}</dd>" for term, meaning in pairs) + "</dl>"


def unit(text: str) -> str:
    """Small text on a line of its own."""
    return f'<span class="unit">{shown(text)}</span>'


def verdict_item(verdict: Verdict, tone: int | None) -> str:
    """A verdict with its pill; without a tone, the name alone."""
    name = f"<b>{shown(verdict.variant)}</b>" if tone is None else keyed(verdict.variant, tone)
    pill = f'<span class="pill">{_PILLS[verdict.state]}</span>'
    return f'<li class="{verdict.state}">{pill}<span>{name}: {shown(verdict.text)}</span></li>'


def provenance_section(provenance: Mapping[str, Any]) -> str:
    """Every leaf of a nested mapping."""
    rows = [
        (shown(path), [cell(f"<code>{shown(text)}</code>", "long")]) for path, text in leaves(plain(provenance)) if path
    ]
    body = table(["What", "Value"], rows, "Provenance") if rows else ""
    return section("provenance", "Provenance", body)
