"""``edgepose bench`` as a user meets it: documents, files, tables of several hosts, the gate's exit codes."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from edgepose.assets import SAMPLE_CLIP
from edgepose.cli._bench_files import CSV_FIELDS, benchmark_csv, benchmark_markdown
from edgepose.cli._bench_tables import print_benchmark

QUICK = ("--iterations", 30, "--warmup", 2, "--threads", 1)


@pytest.fixture(scope="module")
def measured(starter_bundle, tmp_path_factory):
    """One run with everything on, and what it wrote."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("bench")
    outputs = [f"--{kind}={folder / 'b'}.{kind}" for kind in ("json", "csv", "markdown", "html")]
    more = ["--profile", "--batch", "1,2", "--source", SAMPLE_CLIP, "--frames", "12"]
    command = [sys.executable, "-m", "edgepose", "bench", starter_bundle, *QUICK, *more, *outputs]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done, folder


@pytest.fixture(scope="module")
def document(measured):
    return json.loads((measured[1] / "b.json").read_text())


def test_the_document_has_its_schema(document, starter_bundle):
    assert document.keys() == {
        *("schema", "bundle", "model", "began", "settings", "machine", "conditions", "rows", "failed", "profiles"),
        *("no_profile", "end_to_end", "remarks"),
    }
    assert document["schema"] == 1
    assert document["model"] == "transpose-r-t"
    assert document["settings"]["batch"] == [1, 2]
    assert document["settings"]["threads"] == [1]
    assert document["machine"]["versions"]["onnxruntime"]
    assert document["conditions"]["other_cores"] is None or document["conditions"]["other_cores"] >= 0


def test_every_field_is_documented(document):
    text = (Path(__file__).parents[2] / "docs" / "bench.md").read_text()
    told = set(re.findall(r"`(\w+)`", text))
    inside = ("settings", "machine", "conditions")
    fields = {*document, *(key for name in inside for key in document[name])}
    fields |= {key for name in ("rows", "end_to_end") for row in document[name] for key in row}
    assert fields <= told, fields - told


def test_every_variant_and_batch_is_a_row(document):
    assert [(row["variant"], row["batch"]) for row in document["rows"]] == [
        ("onnx-fp32", 1), ("onnx-int8", 1), ("onnx-fp32", 2), ("onnx-int8", 2),
    ]  # fmt: skip
    for row in document["rows"]:
        assert row["threads"] == 1
        assert row["iterations"] == 30
        assert row["rss_mib"] > 30
        assert row["mb"] > 1
        assert row["infer_ms"] == pytest.approx(row["percentiles_ms"][50])
        assert row["placement"].keys() == {"CPUExecutionProvider"}
        assert row["baseline"] == "onnx-fp32"
        assert set(CSV_FIELDS) - {"failed"} <= row.keys()


def test_operators_are_profiled_once_for_each_variant(document):
    assert document["profiles"].keys() == {"onnx-fp32", "onnx-int8"}
    assert document["no_profile"] == {}
    for rows in document["profiles"].values():
        assert sum(op["share"] for op in rows) == pytest.approx(1)


def test_the_whole_pipeline_is_timed_stage_by_stage(document):
    assert [row["variant"] for row in document["end_to_end"]] == ["onnx-fp32", "onnx-int8"]
    for row in document["end_to_end"]:
        assert row["frames"] == 12
        assert row["fps"] > 0
        assert row["stages_ms"].keys() == {"read", "pose", "poses", "camera to result"}


def test_the_tables_say_what_was_measured(measured):
    text = measured[0].stdout
    for part in (
        "transpose-r-t: latency, 30 timed runs per variant, variants in turn, batch 1/2, 1 thread",
        "x FP32: speed-up of the median over onnx-fp32 with the same threads and batch",
        "median ms of each stage",
        "whole pipeline on",
        "operators of onnx-int8",
        "by kind: ",
    ):
        assert part in text


def test_csv_parses_back(measured, document):
    rows = list(csv.DictReader(io.StringIO((measured[1] / "b.csv").read_text())))
    assert len(rows) == 4
    for found, row in zip(rows, document["rows"], strict=True):
        assert found["variant"] == row["variant"]
        assert float(found["infer_ms"]) == pytest.approx(row["infer_ms"])
        assert found["energy_mj"] == ("" if row["energy_mj"] is None else str(row["energy_mj"]))


def test_markdown_parses_back(measured, document):
    lines = (measured[1] / "b.markdown").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    head, rule, *rows = table[: 2 + len(document["rows"])]
    assert head[:3] == ["variant", "engine", "p50 ms"]
    assert all(set(cell) <= set(":-") for cell in rule)
    for cells, row in zip(rows, document["rows"], strict=True):
        assert len(cells) == len(head)
        assert cells[0].startswith(row["variant"])
        assert float(cells[2]) == pytest.approx(row["infer_ms"], abs=0.005)


def test_failed_variants_are_rows_in_every_file(document):
    broken = document | {"failed": {"tflite-fp32": "no | library"}}
    assert list(csv.DictReader(io.StringIO(benchmark_csv(broken))))[-1]["failed"] == "no | library"
    assert "| tflite-fp32 | **did not run**: no \\| library |" in benchmark_markdown(broken)


def test_the_page_is_whole(measured):
    page = (measured[1] / "b.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "Accuracy against latency" in page
    assert "People per second by batch" in page


def test_several_hosts_share_a_table(document, capsys):
    other = document | {"failed": {"onnx-fp16": "no such file"}}
    print_benchmark({"": document, "pi@board": other})
    text = capsys.readouterr().out
    assert "pi@board: transpose-r-t: latency" in text
    line = next(line for line in text.splitlines() if line.startswith("host"))
    assert line.split()[:3] == ["host", "variant", "engine"]
    assert sum("pi@board" in line and "onnx-int8" in line for line in text.splitlines()) >= 4
    assert any("pi@board" in line and "did not run" in line for line in text.splitlines())


def test_a_document_of_an_older_edgepose_is_printed_too(document, capsys):
    """Boards may have a version that measured less."""
    old = (
        "variant",
        "engine",
        "device",
        "threads",
        "batch",
        "infer_ms",
        "p95_ms",
        "p99_ms",
        "speedup",
        "mb",
        "rss_mib",
    )
    rows = [{key: row[key] for key in old} for row in document["rows"]]
    kept = {key: document[key] for key in ("schema", "bundle", "model", "settings", "machine", "failed")}
    print_benchmark({"here": kept | {"rows": rows}})
    assert "onnx-int8" in capsys.readouterr().out


def test_json_alone_on_standard_output(edgepose, starter_bundle):
    done = edgepose("bench", starter_bundle, "--variants", "onnx-int8", "--iterations", 3, "--warmup", 0, "--json", "-")
    assert [row["variant"] for row in json.loads(done.stdout)["rows"]] == ["onnx-int8"]


def test_the_gate(edgepose, starter_bundle, document, tmp_path):
    """The times of an earlier benchmark are made shorter: what is measured now is a slow-down."""
    same, quicker, other = tmp_path / "same.json", tmp_path / "quicker.json", tmp_path / "other.json"
    same.write_text(json.dumps(document))
    for row in document["rows"]:
        row |= {key: row[key] / 100 for key in ("infer_ms", "infer_low_ms", "infer_high_ms") if row[key]}
        row["infer_low_ms"], row["infer_high_ms"] = 0.99 * row["infer_ms"], 1.01 * row["infer_ms"]
    quicker.write_text(json.dumps(document))
    other.write_text(json.dumps(document | {"machine": document["machine"] | {"cpu": "another"}}))
    arguments = ("bench", starter_bundle, *QUICK, "--variants", "onnx-int8", "--compare")
    failed = edgepose(*arguments, quicker, code=1)
    assert "SLOWER" in failed.stdout
    assert f"slower than {quicker}: onnx-int8 (1 thread)" in failed.stderr
    passed = edgepose(*arguments, same, "--max-slowdown", "900%")
    assert "no slower than allowed" in passed.stdout or "faster" in passed.stdout
    assert "of another machine (cpu: another then" in edgepose(*arguments, other, code=2).stderr


def test_throughput_keeps_several_requests_in_flight(edgepose, starter_bundle, starter_openvino, tmp_path):
    for folder, name in ((starter_bundle, "onnx-int8.onnx"), (starter_openvino, "openvino-fp32.xml")):
        path = tmp_path / f"{name}.json"
        edgepose("bench", folder / name, "--mode", "throughput", "--duration", 0.3, "--in-flight", 2, "--json", path)
        (row,) = json.loads(path.read_text())["rows"]
        assert (row["mode"], row["in_flight"], row["pre_ms"]) == ("throughput", 2, None)
        assert row["fps"] > 0
        assert row["threads"] == (1 if name.startswith("onnx") else None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threads", "1,x"), "'1,x': give whole numbers from 1 to 256, separated by commas"),
        (("--batch", "0"), "'0': give whole numbers from 1 to 1024"),
        (("--iterations", 5, "--duration", 5), "--iterations and --duration both say how long: give one of them"),
        (("--in-flight", 2), "--in-flight goes with --mode throughput"),
        (("--compare", "none.json"), "none.json: cannot be read (No such file or directory): give a file that --json"),
        (("--max-slowdown", "fast"), "'fast': give percent, for instance 10%"),
        (("--source", "none.mp4"), "none.mp4"),
    ],
)
def test_bad_input_is_one_line(edgepose, starter_bundle, tmp_path, arguments, message):
    done = edgepose("bench", starter_bundle, *arguments, code=2, cwd=tmp_path)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_files_are_not_replaced_unasked(edgepose, starter_bundle, tmp_path):
    (tmp_path / "b.html").write_text("mine")
    done = edgepose("bench", starter_bundle, "--html", tmp_path / "b.html", code=2)
    assert "b.html" in done.stderr
    assert (tmp_path / "b.html").read_text() == "mine"


def test_a_lifting_model_has_no_source(edgepose, lifter_bundle):
    done = edgepose("bench", lifter_bundle, "--iterations", 2, "--source", SAMPLE_CLIP, code=2)
    assert "--source needs a model that takes pictures" in done.stderr


def test_a_variant_that_cannot_run_is_a_row_with_the_reason(edgepose, starter_bundle, tmp_path):
    shutil.copytree(starter_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "onnx-int8.onnx").write_bytes(b"cut")
    path = tmp_path / "b.json"
    done = edgepose("bench", tmp_path / "bundle", "--iterations", 2, "--batch", "1,2", "--json", path)
    assert "onnx-int8 did not run" in done.stderr
    data = json.loads(path.read_text())
    assert "3 bytes, the manifest says" in data["failed"]["onnx-int8"]
    assert [row["batch"] for row in data["rows"]] == [1, 2]
