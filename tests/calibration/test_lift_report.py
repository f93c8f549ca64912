"""The report of lifting models and chains: what a reader finds in it, and that any figures give a sound page."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as Tree

import pytest

from edgepose.calibration.evidence import Accuracy, LiftAgreement, LiftEvidence, LiftValidation, Validation
from edgepose.calibration.report.lifting import (
    lift_report_html,
    lift_report_markdown,
    lift_summary,
    lift_verdicts,
)
from edgepose.calibration.report.write import evidence, render, write_report
from edgepose.files import canonical_json
from edgepose.skeletons import get_skeleton

NAN, INF = math.nan, math.inf
JOINTS = get_skeleton("h36m17").joints
HOSTILE = '<script>alert("x")</script> | a&b \ud800'
BASE, CHAIN = "onnx-fp32", "onnx-fp32 > onnx-fp32"
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
PROVENANCE = {
    "command": ["edgepose", "validate"],
    "machine": {"cpu": "Some CPU", "versions": {"edgepose": "0.2.0"}},
    "model": {"sha256": "ab" * 32},
}


def accuracy(value: float, **changes: Any) -> Accuracy:
    joints = {joint: value + i / 10 for i, joint in enumerate(JOINTS)}
    stats = {"MPJPE": value, "P-MPJPE": value - 20, "3DPCK": 91.3, "AUC": 60.0}
    made = Accuracy("MPJPE", value, "mm", False, 988, stats, "MPJPE", joints, remarks=("3DPCK is percent",))
    return dataclasses.replace(made, **changes)


def agreement(mean: float, **changes: Any) -> LiftAgreement:
    joints = {joint: mean * i / 8 for i, joint in enumerate(JOINTS)}
    curve = tuple(mean * i / 50 for i in range(101))
    made = LiftAgreement(988, mean, 2.5 * mean, 6 * mean, joints, curve, 0.01, 31.0)
    return dataclasses.replace(made, **changes)


def row(variant: str, value: float | None, mean: float = 3.2, **changes: Any) -> LiftEvidence:
    truth = None if value is None else accuracy(value)
    return dataclasses.replace(
        LiftEvidence(variant, "onnxruntime cpu", truth, agreement(mean), 12.0, 6.6, 0.84), **changes
    )


def validation(*rows: LiftEvidence, **changes: Any) -> LiftValidation:
    made = LiftValidation(
        "mocap", "data/poses.npz", {"poses.npz": "9f" * 32}, "of the data set", "h36m17", BASE, True, 988, (), rows
    )
    return dataclasses.replace(made, **changes)


def judged(**changes: Any) -> LiftValidation:
    return validation(row(BASE, 61.4, 0.0), row("onnx-int8", 62.1), row("tflite-int8", 64.9, 7.0), **changes)


def unlabelled(**changes: Any) -> LiftValidation:
    return validation(row(BASE, None, 0.0), row("onnx-int8", None), **changes)


def chain(**changes: Any) -> LiftValidation:
    rows = [
        row(f"{first} > {second}", None, a + b, shift_px=a / 2)
        for first, a in ((BASE, 0.0), ("onnx-int8", 4.0))
        for second, b in ((BASE, 0.0), ("openvino-int8", 1.5))
    ]
    return validation(*rows, **({"kind": "chain on video", "data": "clip.mp4", "baseline": CHAIN} | changes))


class Page(HTMLParser):
    """The parsed page: tags balance, what is said, and what is asked for."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.said: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.said.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.said))


def page(value: LiftValidation, max_drop: float | None = 1.0) -> Page:
    return Page(lift_report_html(value, PROVENANCE, max_drop))


def test_verdicts_say_it_in_plain_words():
    value = judged(failed={"trt": "no engine"}, absent={"coreml-fp16": "needs a Mac"})
    assert {v.variant: (v.state, v.text) for v in lift_verdicts(value, 1.0)} == {
        BASE: ("baseline", "MPJPE 61.40 mm, the baseline"),
        "onnx-int8": (
            "pass",
            "MPJPE 62.10 mm, 0.70 mm worse than onnx-fp32: within the 1.0 mm allowed; its joints are 3.20 mm from the "
            "baseline's on average (95 % within 8.00 mm), most at right wrist (6.40 mm)",
        ),
        "tflite-int8": (
            "fail",
            "MPJPE 64.90 mm, FAILED: 3.50 mm worse than onnx-fp32, 1.0 allowed; its joints are 7.00 mm from the "
            "baseline's on average (95 % within 17.50 mm), most at right wrist (14.00 mm)",
        ),
        "trt": ("fail", "FAILED: did not run: no engine"),
        "coreml-fp16": ("absent", "did not run here: needs a Mac"),
    }


NO_TRUTH = "from the baseline's on average"


@pytest.mark.parametrize(
    ("base", "other", "limit", "state", "words"),
    [
        (row(BASE, 61.0), row("v", 61.5), None, "measured", "MPJPE 61.50 mm, 0.50 mm worse than onnx-fp32; its joints"),
        (row(BASE, 61.0), row("v", 60.5), 1.0, "pass", "0.50 mm better than onnx-fp32: within the 1.0 mm allowed;"),
        (row(BASE, 61.0), row("v", 61.0), 0.0, "pass", "equal to onnx-fp32 within 0.01 mm: within the 0.0 mm allowed"),
        (row(BASE, 61.0), row("v", 62.001), 1.0, "fail", "FAILED: 1.001 mm worse than onnx-fp32, 1.0 allowed"),
        (row(BASE, 61.0), row("v", NAN), 1.0, "fail", "FAILED: the drop is undefined, 1.0 mm allowed"),
        (row(BASE, 61.0), row("v", NAN), None, "measured", "drop from onnx-fp32 undefined"),
        (row("other", 61.0), row("v", 61.0), 1.0, "fail", "the drop is undefined"),  # the baseline is not there
        (row(BASE, None), row("v", None), None, "measured", f"its joints are 3.20 mm {NO_TRUTH}; 95 % within 8.00 mm"),
        (row(BASE, None), row("v", None), 5.0, "pass", f"3.20 mm {NO_TRUTH}: within the 5.0 mm allowed; 95 %"),
        (row(BASE, None), row("v", None), 3.0, "fail", f"FAILED: its joints are 3.20 mm {NO_TRUTH}, 3.0 allowed"),
        (row(BASE, None), row("v", None, NAN), 3.0, "fail", "FAILED: the drop is undefined, 3.0 mm allowed"),
        (row(BASE, None), row("v", None, 0.0), 3.0, "pass", "; 95 % within 0.00 mm"),  # and no joint is named
    ],
)
def test_verdict_of(base, other, limit, state, words):
    verdict = next(v for v in lift_verdicts(validation(base, other), limit) if v.variant == "v")
    assert verdict.state == state
    assert words in verdict.text
    assert ("most at" in verdict.text) == (other.agreement.mean_mm > 0)


def test_a_baseline_without_truth():
    assert lift_verdicts(unlabelled(), None)[0].text == "no truth, the baseline"


def test_summary_counts():
    value = judged(failed={"trt": "x"}, absent={"coreml-fp16": "y"})
    assert lift_summary(value, 1.0) == (
        "1 of 3 variants stay within 1.0 mm of onnx-fp32; 1 over the limit; 1 did not run; 1 not for this machine"
    )
    assert lift_summary(unlabelled(), None) == "1 of 1 variant measured against onnx-fp32; no limit was set"
    assert lift_summary(chain(), 5.0) == f"2 of 3 chains stay within 5.0 mm of {CHAIN}; 1 over the limit"


def everything() -> list[LiftValidation]:
    """Figures of every kind that a report must stand."""
    odd = agreement(NAN, snr_db=INF, joint_mm={}, percentiles_mm=())
    partly = agreement(INF, joint_mm=dict.fromkeys(JOINTS, NAN), percentiles_mm=(NAN,) * 101)
    named = accuracy(50.0, metric=HOSTILE, joint_metric=HOSTILE, stats={HOSTILE: 1.0}, remarks=(HOSTILE,))
    return [
        judged(),
        unlabelled(),
        chain(),
        chain(rows=chain().rows[:1]),
        validation(row(BASE, 61.0)),  # the baseline alone
        validation(row(BASE, None, megabytes=None, latency_ms=None)),
        validation(row("onnx-int8", 61.0), failed={BASE: "did not load"}),
        validation(failed={BASE: "did not load"}),
        validation(row(BASE, NAN), row("v", 1, agreement=odd), row("w", 2, agreement=partly)),
        validation(row(BASE, 61.0), row("v", None), row("w", 62, accuracy=accuracy(62.0, per_joint={}, stats={}))),
        validation(row(BASE, 61.0), *(row(f"v{i}", 61.0 + i, 1.0 + i) for i in range(12))),
        validation(
            row(BASE, 50.0, accuracy=named),
            row(HOSTILE, 49.0, engine=HOSTILE, agreement=agreement(2.0, joint_mm={HOSTILE: 3.0})),
            failed={HOSTILE + "2": HOSTILE},
            absent={HOSTILE + "3": HOSTILE},
            data=HOSTILE,
            kind="chain " + HOSTILE,
            keypoints=HOSTILE,
            skeleton=HOSTILE,
            data_sha256={HOSTILE: HOSTILE},
            skipped=(HOSTILE,) * 30,
        ),
    ]


@pytest.mark.parametrize("limit", [None, 1.0])
@pytest.mark.parametrize("case", range(len(everything())))
def test_any_validation_gives_a_sound_page(case, limit, tmp_path):
    value = everything()[case]
    provenance = PROVENANCE | {HOSTILE: {"list": [{"x": HOSTILE}, 1], "none": None}}
    write_report(tmp_path, value, provenance, limit, force=False)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = Page(html)
    assert {"script", "iframe", "object", "form", "base"}.isdisjoint(parsed.tags)
    assert all(link.startswith("data:") for link in parsed.links)
    assert set(re.findall(r"https?://[^\"' )<]+", html)) <= {"http://www.w3.org/2000/svg"}
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in html
    for svg in re.findall(r"<svg xmlns.*?</svg>", html, re.DOTALL):
        Tree.fromstring(svg)
    assert not re.search(r"\b(nan|inf|None)\b", parsed.text)
    names = [r.variant for r in value.rows] + list(value.failed) + list(value.absent)
    for name in names:
        assert name.split(" ")[0] in parsed.text
    table = [line for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert len(table) == 2 + len(names)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    json.loads((tmp_path / "evidence.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_the_page_has_its_parts():
    value = judged(skipped=("12 poses with too few joints",), failed={"trt": "no engine"}, absent={"coreml": "a Mac"})
    text = page(value).text
    for words in (
        "Validation of 5 lifting variants on poses.npz", "1 of 3 variants stay within 1.0 mm of onnx-fp32",
        "✗ FAIL", "✓ PASS", "BASELINE", "NOT HERE", "MPJPE mm", "P-MPJPE mm", "42.10", "3DPCK %", "91.30",
        "FAILED no engine", "did not run here: a Mac", "right wrist 6.40", "3DPCK is percent",
        "mean distance to the baseline, mm", "MPJPE, mm", "Beneath each distance", "drop 0.70",
        "Distance per joint", "Distance to the baseline", "joints within, %",
        "12 poses with too few joints", "9f9f9f", "of the data set", "h36m17", "averaged with the mirrored pose",
        "988 poses; every variant saw the same ones", "onnx-int8 12.0 s", "Some CPU", "model / sha256",
        "moved, turned and scaled",
    ):  # fmt: skip
        assert words in text, words
    for words in ("2D shift", "Stage by stage", "Without truth", "Only"):
        assert words not in text, words


def test_a_page_without_truth_judges_distances():
    text = page(unlabelled(poses=28), 3.0).text
    assert "Without truth, this is what is judged: how far from the baseline, not how wrong." in text
    assert "Only 28 poses: small differences may be chance." in text
    assert "MPJPE" not in text
    assert '<td class="bad">3.20</td>' in lift_report_html(unlabelled(), PROVENANCE, 3.0)


def test_chains_show_what_each_stage_costs():
    text = page(chain(), 5.0).text
    assert "Validation of 4 chains on clip.mp4" in text
    assert "2D variant onnx-fp32 openvino-int8 onnx-fp32 0.00 1.50 onnx-int8 4.00 5.50" in text
    assert "2D shift mean, px" in text
    assert "onnx-int8 > openvino-int8" in text
    assert "in pixels of the picture" in text


def test_charts_keep_the_variants_that_are_furthest():
    many = validation(row(BASE, 61.0, 0.0), *(row(f"v{i}", 61.0, 1.0 + i) for i in range(9)))
    html = lift_report_html(many, PROVENANCE, None)
    charts = re.findall(r'<svg xmlns="[^"]*" class="plot".*?</svg>', html, re.DOTALL)
    assert len(charts) == 2
    for svg in charts:
        assert set(re.findall(r"\bv\d\b", svg)) == {f"v{i}" for i in range(2, 9)}
        assert set(re.findall(r"tone(\d)", svg)) == set("1234567")  # no two in one colour
    assert page(many).text.count("The 7 variants furthest from it; 2 nearer ones are left out.") == 2


def test_markdown_is_a_table_for_a_pull_request():
    text = lift_report_markdown(judged(failed={"trt": "no | engine"}), PROVENANCE, 1.0)
    lines = text.splitlines()
    assert lines[0] == "**1 of 3 variants stay within 1.0 mm of onnx-fp32; 1 over the limit; 1 did not run**"
    assert lines[2].startswith(
        "| variant | engine | MPJPE, mm | P-MPJPE, mm | 3DPCK, % | Drop, mm | Distance, mean, mm |"
    )
    assert f"| onnx-fp32 | onnxruntime cpu | 61.40 | 41.40 | 91.30 | baseline | {DASH} |" in text
    assert (
        "| onnx-int8 | onnxruntime cpu | 62.10 | 42.10 | 91.30 | 0.70 | 3.20 | 8.00 | 19.20 | right wrist 6.40" in text
    )
    assert "| 0.84 | 6.6 |" in text
    assert "| **3.50 FAILED** |" in text
    assert "| trt | **FAILED**: no \\| engine |" in text
    assert text.count("3DPCK is percent") == 1
    assert lines[-1] == (
        "<sub>poses.npz (mocap): 988 poses; 2D keypoints: of the data set; flip test on; edgepose 0.2.0; Some CPU</sub>"
    )


def test_markdown_of_a_chain_has_the_shift_in_the_picture():
    text = lift_report_markdown(chain(skipped=("a.jpg",) * 7), {}, None)
    assert "| 2D shift, mean, px |" in text
    assert (
        f"| onnx-fp32 &gt; onnx-fp32 | onnxruntime cpu | baseline | {DASH} | {DASH} | {DASH} | {DASH} | 0.84 |" in text
    )
    assert "| 2.00 | 0.84 | 6.6 |" in text
    assert "skipped: a.jpg, a.jpg, a.jpg, a.jpg, a.jpg, 2 more (all in evidence.json)" in text


def test_the_figures_survive_their_file(tmp_path):
    value = judged(failed={"trt": "no engine"})
    write_report(tmp_path, value, PROVENANCE, 1.0, force=False)
    text = (tmp_path / "evidence.json").read_text(encoding="utf-8")
    data = json.loads(text)
    assert canonical_json(data) == text == canonical_json(evidence(value, PROVENANCE, 1.0))
    assert data["drops"] == {"onnx-int8": pytest.approx(0.7), "tflite-int8": pytest.approx(3.5)}
    assert data["validation"]["failed"] == {"trt": "no engine"}
    assert data["validation"]["rows"][1]["agreement"]["joint_mm"]["right_wrist"] == 6.4
    assert data["validation"]["poses"] == 988


def test_either_kind_gets_its_own_page():
    assert render(judged(), PROVENANCE, 1.0) == {
        "report.html": lift_report_html(judged(), PROVENANCE, 1.0),
        "report.md": lift_report_markdown(judged(), PROVENANCE, 1.0),
    }
    other = Validation("lspet", "val.zip", {}, "ground truth", "lsp14", BASE, False, 9, 9, (), ())
    assert "crops" in render(other, PROVENANCE, None)["report.md"]
