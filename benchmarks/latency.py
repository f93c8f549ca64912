"""Several bundles in one table: `latency.py FOLDER BUNDLE... [--threads 1]`.

For each bundle `edgepose bench --native` measures every variant, one bundle after the other; its JSON stays in FOLDER.
The last column is our median over that of the engine's own tool, in turn with it, each in processes of their own.
Variants that cannot run are rows with the reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgepose.bundle import Bundle

HEADS = ("model", "variant", "engine", "threads", "p50 ms", "95 %", "p95 ms", "CPU ms", "x FP32", "MB", "tool", "ratio")


def measured(bundle: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command says of a bundle."""
    out = arguments.folder / f"{Bundle.open(bundle).spec.name}.json"
    command = [sys.executable, "-m", "edgepose", "bench", str(bundle), "--native", "--threads", arguments.threads]
    with out.with_suffix(".log").open("w", encoding="utf-8") as log:
        subprocess.run([*command, "--json", str(out), "--force"], check=True, stdout=log, stderr=subprocess.STDOUT)
    document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return document


def lines(model: str, document: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row for each variant."""
    for row in document["rows"]:
        native = row.get("native") or {}
        ratio = native.get("ratio")
        yield (
            *(model, row["variant"], row["engine"], str(row["threads"] or "")),
            *(f"{row['infer_ms']:.2f}", f"{row['infer_low_ms']:.2f} to {row['infer_high_ms']:.2f}"),
            *(f"{row['p95_ms']:.2f}", f"{row['cpu_ms']:.2f}", f"{row['speedup']:.2f}" if row["speedup"] else ""),
            *(f"{row['mb']:.1f}", native.get("tool") or native.get("note") or ""),
            f"{ratio:.3f}" if ratio else "",
        )
    for name, reason in document["failed"].items():
        yield (model, name, reason, *[""] * (len(HEADS) - 3))


def main() -> None:
    """Bundle by bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--threads", default="1", help="One number, or several by commas")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    documents = {Bundle.open(bundle).spec.name: measured(bundle, arguments) for bundle in arguments.bundles}
    print(json.dumps(next(iter(documents.values()))["machine"]), "\n")
    for row in (
        HEADS,
        ("---",) * len(HEADS),
        *(row for name, found in documents.items() for row in lines(name, found)),
    ):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
