"""The report of a validation: what a reader finds in it whatever the data, and files that are whole or not there."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Tree

import numpy as np
import pytest

from edgepose.calibration.evidence import Accuracy, Agreement, Bin, Exhibit, Validation, VariantEvidence
from edgepose.calibration.report import write as report
from edgepose.calibration.report.exhibits import BASELINE_RGB, VARIANT_RGB, draw_exhibit
from edgepose.calibration.report.wording import number, summary, verdicts
from edgepose.calibration.report.write import check_report, report_html, report_markdown, write_report
from edgepose.errors import SinkError
from edgepose.files import canonical_json
from edgepose.skeletons import get_skeleton

NAN, INF = math.nan, math.inf
SKELETON = get_skeleton("lsp14")
HOSTILE = '<script>alert("x")</script> | a&b \ud800'
BASE = "onnx-fp32"
PROVENANCE = {
    "command": ["edgepose", "validate", "--max-drop", "1.0"],
    "machine": {"cpu": "Some CPU", "cores": 4, "versions": {"edgepose": "0.2.0", "numpy": "2.3"}},
    "checkpoint": {"path": Path("weights.pth"), "sha256": "ab" * 32},
}


def accuracy(value: float, **changes: Any) -> Accuracy:
    joints = {joint: value + i / 10 for i, joint in enumerate(SKELETON.joints)}
    made = Accuracy("PCK@0.2", value, "points", True, 988, {"PCK@0.2": value, "PCK@0.1": -1.0}, "PCK@0.2", joints)
    made = dataclasses.replace(made, reliability=(Bin(0, 0.5, 5, 20.0), Bin(0.5, 1, 500, 80.0)))
    made = dataclasses.replace(made, error_percentiles=tuple(float(i) for i in range(101)))
    return dataclasses.replace(made, **({"per_size": {"medium": value, "large": value + 2}} | changes))


def agreement(oks: float, **changes: Any) -> Agreement:
    shifts = {joint: i / 4 for i, joint in enumerate(SKELETON.joints)}
    bins = (Bin(0, 0.5, 0, NAN), Bin(0.5, 1, 900, 0.7))
    made = Agreement(
        988, 9000, 0.65, oks, oks - 0.1, 1.5, 4.5, shifts, {"large": oks}, tuple(i / 50 for i in range(101)),
        0.97, 0.991, bins, 0.012, 0.008, None, 0.1, 31.0,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def exhibit(name: str = "00005.jpg #1") -> Exhibit:
    g = np.random.default_rng(0)
    crop = g.integers(0, 255, (64, 48, 3), dtype=np.uint8)
    xy = g.uniform(0, 48, (2, 14, 2)).astype(np.float32)
    scores = np.linspace(0, 1, 14, dtype=np.float32)
    return Exhibit(name, crop, xy[0], scores, xy[1], scores, 0.42)


def row(variant: str, value: float | None, oks: float = 0.99, **changes: Any) -> VariantEvidence:
    labels = None if value is None else accuracy(value)
    made = VariantEvidence(variant, "onnxruntime cpu", labels, agreement(oks), 12.0, (exhibit(),), 6.6, 19.8)
    return dataclasses.replace(made, **changes)


def validation(*rows: VariantEvidence, **changes: Any) -> Validation:
    made = Validation(
        "lspet", "data/val.zip", {"val.zip": "9f" * 32}, "ground truth", "lsp14", BASE, False, 988, 988, (), rows,
        {}, 300.0, 30.0,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def labelled(**changes: Any) -> Validation:
    return validation(row(BASE, 50.19, 1.0), row("onnx-int8", 49.97), row("tflite-int8", 37.89), **changes)


def unlabelled(**changes: Any) -> Validation:
    return validation(row(BASE, None, 1.0), row("onnx-int8", None, 0.985), **changes)


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


def page(value: Validation, max_drop: float | None = 1.0) -> Page:
    return Page(report_html(value, PROVENANCE, max_drop))


def test_verdicts_say_it_in_plain_words():
    said = {v.variant: (v.state, v.text) for v in verdicts(labelled(failed={"trt": "no engine"}), 1.0)}
    assert said == {
        BASE: ("baseline", "PCK@0.2 50.19, the baseline"),
        "onnx-int8": ("pass", "PCK@0.2 49.97, 0.22 points below onnx-fp32: within the 1.0 allowed"),
        "tflite-int8": ("fail", "PCK@0.2 37.89, FAILED: drops 12.30 points, 1.0 allowed"),
        "trt": ("fail", "FAILED: did not run: no engine"),
    }


@pytest.mark.parametrize(
    ("base", "other", "limit", "state", "words"),
    [
        (row(BASE, 50.0), row("v", 49.0), None, "measured", "1.00 points below onnx-fp32"),
        (row(BASE, 50.0), row("v", 50.5), 1.0, "pass", "0.50 points above onnx-fp32 (better): within"),
        (row(BASE, 50.0), row("v", 50.0), 0.0, "pass", "equal to onnx-fp32"),
        (row(BASE, 50.0), row("v", 48.999), 1.0, "fail", "drops 1.001 points, 1.0 allowed"),
        (row(BASE, 50.0), row("v", NAN), 1.0, "fail", "FAILED: the drop is undefined"),
        (row(BASE, -1.0), row("v", -1.0), 1.0, "fail", "FAILED: the drop is undefined"),  # COCO's undefined
        (row(BASE, None), row("v", None, 0.985), 2.0, "pass", "mean OKS 0.9850 with onnx-fp32, a drop of 1.50 points"),
        (row("other", 50.0), row("v", 49.0), 1.0, "fail", "FAILED: the drop is undefined"),  # the baseline is not there
    ],
)
def test_verdict_of(base, other, limit, state, words):
    verdict = next(v for v in verdicts(validation(base, other), limit) if v.variant == "v")
    assert verdict.state == state
    assert words in verdict.text


@pytest.mark.parametrize(
    ("value", "state", "words"), [(53.0, "fail", "drops 3.00 mm"), (49.0, "pass", "1.00 mm below")]
)
def test_errors_are_worse_when_they_grow(value, state, words):
    def mpjpe(value: float) -> Accuracy:
        return accuracy(value, metric="MPJPE", unit="mm", higher_is_better=False)

    made = validation(row(BASE, 0, accuracy=mpjpe(50.0)), row("v", 0, accuracy=mpjpe(value)))
    verdict = verdicts(made, 1.0)[1]
    assert (verdict.state, words in verdict.text) == (state, True)
    assert "mm" in page(made).text


def test_summary_counts():
    assert summary(labelled(failed={"trt": "x"}), 1.0) == (
        "1 of 3 variants stay within 1.0 points of onnx-fp32; 1 over the limit; 1 did not run"
    )
    assert summary(unlabelled(), None) == "1 of 1 variant measured against onnx-fp32; no limit was set"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.005, "1.00"), (-0.5, "\N{MINUS SIGN}0.50"), (-0.001, "0.00"), (NAN, "\N{EN DASH}"), (None, "\N{EN DASH}")],
)
def test_numbers(value, text):
    assert number(value) == text


def everything() -> list[Validation]:
    """Data of every kind that a report must stand."""
    odd = agreement(NAN, score_ratio=NAN, score_correlation=NAN, snr_db=INF, joint_shift_px={}, shift_percentiles=())
    odd_labels = accuracy(NAN, per_joint={"nose": NAN}, per_size={}, error_percentiles=(NAN,) * 101, reliability=())
    lost = dataclasses.replace(exhibit(), variant_xy=np.full((14, 2), NAN, np.float32))
    hostile = row(HOSTILE, 49.0, engine=HOSTILE, worst=(exhibit(HOSTILE),))
    named = accuracy(50.0, metric=HOSTILE, joint_metric=HOSTILE, stats={HOSTILE: 1.0}, remarks=(HOSTILE,))
    return [
        labelled(),
        unlabelled(),
        validation(row(BASE, 50.0)),  # the baseline alone
        validation(row(BASE, None, worst=(), megabytes=None, latency_ms=None)),
        validation(row("onnx-int8", 50.0), failed={BASE: "did not load"}),
        validation(failed={BASE: "did not load"}),
        validation(row(BASE, NAN), row("v", 1, accuracy=odd_labels, agreement=odd, worst=(lost,))),
        validation(row(BASE, 50.0), row("v", None)),  # labels for one only
        validation(row(BASE, 50.0), *(row(f"v{i}", 50.0 - i) for i in range(8))),
        validation(*(row(n, None, agreement=agreement(1.0, jitter_px=1.5)) for n in (BASE, "v"))),
        validation(
            row(BASE, 50.0, accuracy=named),
            hostile,
            failed={HOSTILE: HOSTILE},
            data=HOSTILE,
            kind=HOSTILE,
            boxes=HOSTILE,
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
    assert not re.search(r"url\(|@import", html)
    for svg in re.findall(r"<svg xmlns.*?</svg>", html, re.DOTALL):
        Tree.fromstring(svg)
    assert not re.search(r"\b(nan|inf|None)\b", parsed.text)
    for variant in [r.variant for r in value.rows] + list(value.failed):
        assert variant.split(" ")[0] in parsed.text
    table = [line for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert len(table) == 2 + len(value.rows) + len(value.failed)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {11}
    json.loads((tmp_path / "evidence.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_the_page_forbids_itself_everything_from_elsewhere():
    html = report_html(labelled(), PROVENANCE, 1.0)
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in html


def test_labelled_page_has_its_parts():
    text = page(labelled(skipped=("broken.jpg",), failed={"trt": "no engine"})).text
    for words in (
        "Drop of PCK@0.2 per joint", "Distance to the truth", "Distance to onnx-fp32", "By the person's size",
        "scores are 0.97 times the baseline's", "1.2 % of the joints", "What a score is worth", "Worst crops",
        "00005.jpg #1", "Latency against accuracy", "9f9f9f", "broken.jpg", "30.0 s (10.0 %)", "checkpoint / sha256",
        "Some CPU", "validate --max-drop 1.0", "Object keypoint similarity", "no engine", "medium", "drop 12.30",
    ):  # fmt: skip
        assert words in text, words
    assert "Jitter" not in text


def test_unlabelled_page_shows_shifts_and_says_what_the_drop_is():
    text = page(unlabelled()).text
    assert "Shift per joint" in text
    assert "without labels, how far from the baseline" in text
    assert "Distance to the truth" not in text


def test_few_people_are_pointed_out():
    few = [row(n, 0, accuracy=accuracy(50.0, people=28)) for n in (BASE, "v")]
    assert "Only 28 people" in page(validation(*few)).text
    assert "Only" not in page(labelled()).text


def test_remarks_are_printed_once():
    told = [row(n, 0, accuracy=accuracy(50.0, remarks=("pelvis has no counterpart",))) for n in (BASE, "v")]
    assert page(validation(*told)).text.count("pelvis has no counterpart") == 1
    assert report_markdown(validation(*told), {}, None).count("pelvis has no counterpart") == 1


def test_markdown_is_a_table_for_a_pull_request():
    text = report_markdown(labelled(failed={"trt": "no | engine"}), PROVENANCE, 1.0)
    lines = text.splitlines()
    dash = "\N{EN DASH}"
    assert lines[0] == "**1 of 3 variants stay within 1.0 points of onnx-fp32; 1 over the limit; 1 did not run**"
    assert f"| onnx-fp32 | onnxruntime cpu | 50.19 | baseline | {dash} |" in text
    assert "| onnx-int8 | onnxruntime cpu | 49.97 | 0.22 | 0.9900 | 1.50 | 4.50 | right ankle 0.22" in text
    assert "| **12.30 FAILED** |" in text
    assert "| trt | **FAILED**: no \\| engine |" in text
    assert "val.zip (lspet): 988 crops of 988 pictures; boxes: ground truth; flip test off" in lines[-1]
    assert "edgepose 0.2.0, numpy 2.3; Some CPU" in lines[-1]


def test_worst_joints_come_worst_first():
    base = accuracy(50.0, per_joint={"neck": 50.0, "left_knee": 50.0, "left_hip": 50.0, "head_top": 50.0})
    other = accuracy(49.0, per_joint={"neck": 49.0, "left_knee": 45.0, "left_hip": 51.0, "head_top": 47.5})
    text = report_markdown(validation(row(BASE, 0, accuracy=base), row("v", 0, accuracy=other)), {}, None)
    assert "left knee 5.00, head top 2.50, neck 1.00 |" in text


def test_exhibits_show_both_skeletons_and_hide_joints_that_are_nowhere():
    shown = dataclasses.replace(exhibit(), crop=np.zeros((64, 48, 3), np.uint8))
    picture = draw_exhibit(shown, SKELETON)
    assert picture.shape == (320, 240, 3)
    assert (picture == BASELINE_RGB).all(axis=2).any()
    assert (picture == VARIANT_RGB).all(axis=2).any()
    gone = dataclasses.replace(shown, variant_xy=np.full((14, 2), NAN, np.float32))
    assert not (draw_exhibit(gone, SKELETON) == VARIANT_RGB).all(axis=2).any()


def test_exhibit_joints_lie_on_their_pixels():
    xy = np.full((14, 2), NAN, np.float32)
    xy[-1] = (10, 20)
    one = dataclasses.replace(exhibit(), crop=np.zeros((64, 48, 3), np.uint8), baseline_xy=xy, variant_xy=xy)
    y, x = np.nonzero(draw_exhibit(one, SKELETON).any(axis=2))
    assert (x.mean(), y.mean()) == pytest.approx((10.5 * 5 - 0.5, 20.5 * 5 - 0.5), abs=0.51)  # drawn at whole pixels


def test_the_three_files_and_their_json(tmp_path):
    value = labelled(failed={"trt": "no engine"})
    paths = write_report(tmp_path / "a" / "b", value, PROVENANCE, 1.0, force=False)
    assert sorted(path.name for path in paths) == ["evidence.json", "report.html", "report.md"]
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "evidence.json",
        "report.html",
        "report.md",
    ]
    text = (tmp_path / "a" / "b" / "evidence.json").read_text(encoding="utf-8")
    data = json.loads(text)
    assert canonical_json(data) == text
    assert set(data) == {"schema_version", "validation", "drops", "max_drop", "provenance"}
    assert data["schema_version"] == 1
    assert data["drops"] == {"onnx-int8": pytest.approx(0.22), "tflite-int8": pytest.approx(12.3)}
    assert data["max_drop"] == 1.0
    assert data["validation"]["failed"] == {"trt": "no engine"}
    assert data["validation"]["rows"][1]["worst"][0]["oks"] == 0.42
    assert data["provenance"]["checkpoint"]["path"] == "weights.pth"


def test_reports_are_the_same_bytes_every_time(tmp_path):
    for name in ("a", "b"):
        write_report(tmp_path / name, labelled(), PROVENANCE, 1.0, force=False)
    for name in ("report.html", "report.md", "evidence.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", ["report.html", "report.md", "evidence.json"])
def test_an_earlier_report_is_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")
    message = rf"{name}: exists: give another name, or --force to replace it"
    with pytest.raises(SinkError, match=message):
        check_report(tmp_path, force=False)
    with pytest.raises(SinkError, match=message):
        write_report(tmp_path, labelled(), {}, None, force=False)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]
    check_report(tmp_path, force=True)
    write_report(tmp_path, labelled(), {}, None, force=True)
    assert (tmp_path / name).read_text(encoding="utf-8") != "mine"


def test_checking_leaves_nothing_behind(tmp_path):
    check_report(tmp_path / "a" / "b", force=False)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match="cannot write here"):
        check_report(tmp_path / "file" / "report", force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failure_half_way_leaves_the_earlier_report(tmp_path, monkeypatch):
    write_report(tmp_path, labelled(), {}, None, force=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_text = Path.write_text

    def full(path: Path, *arguments: Any, **options: Any) -> int:
        if path.name.startswith(".evidence"):
            raise OSError(28, "No space left on device")
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(report.Path, "write_text", full)
    with pytest.raises(SinkError, match=r"cannot write the report \(No space left on device\): choose another folder"):
        write_report(tmp_path, unlabelled(), {}, None, force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
