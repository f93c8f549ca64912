"""What ``edgepose inspect`` does with a ``.tflite`` file: describe it without an engine, and attach a specification."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepose.cli._console import out, print_table, remark
from edgepose.errors import BundleError

if TYPE_CHECKING:
    from edgepose.types import ModelSpec, TensorSpec

__all__ = ["attach_spec", "describe", "print_description"]


def describe(path: Path) -> dict[str, Any]:
    """Specification (None where the file has none), origin, tensors, operators and INT8 readiness, for JSON.

    Raises:
        BundleError: The file is damaged, or its specification is damaged or of another model.
    """
    from edgepose.cli.inspect import read_origin
    from edgepose.runtimes.load import fits
    from edgepose.runtimes.tflite_file import read_tflite, tensor_specs
    from edgepose.runtimes.tflite_ops import int8_readiness
    from edgepose.types import ORIGIN_KEY, SPEC_KEY, ModelSpec

    model = read_tflite(path)
    text = model.text()
    spec = ModelSpec.from_json(text[SPEC_KEY], str(path)) if SPEC_KEY in text else None
    inputs, outputs = tensor_specs(model)
    if spec is not None and not fits(spec, inputs, outputs):
        raise BundleError(f"{path}: its tensors {inputs + outputs} do not fit its specification: convert again")
    counts = Counter(op.name for op in model.operators)
    leaving = int8_readiness(model.operators)
    gone = sum(row.count for row in leaving)
    return {
        "file": str(path),
        "spec": json.loads(spec.to_json()) if spec else None,
        "origin": read_origin(text.get(ORIGIN_KEY, "{}")),
        "inputs": [asdict(tensor) for tensor in inputs],
        "outputs": [asdict(tensor) for tensor in outputs],
        "operators": dict(counts.most_common()),
        "int8_delegate": {
            "operators": len(model.operators),
            "leaving": gone,
            "share": gone / max(len(model.operators), 1),
            "rows": [asdict(row) for row in leaving],
        },
    }


def print_description(path: Path, described: dict[str, Any]) -> None:
    """Print :func:`describe` as tables."""
    from edgepose.cli.inspect import print_origin, print_spec
    from edgepose.types import ModelSpec

    if described["spec"]:
        print_spec(ModelSpec.from_json(json.dumps(described["spec"]), str(path)), str(path))
        if described["origin"]:
            print_origin(described["origin"])
    else:
        ends = [(side, _tensor(t)) for side in ("input", "output") for t in described[f"{side}s"]]
        print_table(str(path), ("<", "<"), ends)
        remark(f"{path}: carries no edgepose specification: attach one with edgepose inspect {path} --attach spec.json")
    _print_operators(described["operators"], described["int8_delegate"])


def _print_operators(operators: dict[str, int], int8: dict[str, Any]) -> None:
    leaving = Counter[str]()
    reasons: dict[str, list[str]] = {}
    for row in int8["rows"]:
        leaving[row["name"]] += row["count"]
        reasons.setdefault(row["name"], []).append(row["reason"])
    rows = [(name, n, leaving[name] or None, "; ".join(reasons.get(name, []))) for name, n in operators.items()]
    print_table("operators", ("<operator", "count", "leave INT8", "<why"), rows)
    out.print(
        f"{int8['leaving']} of {int8['operators']} operators ({int8['share']:.0%}) would leave an INT8-only delegate "
        "(Edge TPU, many NPUs) for the CPU",
        soft_wrap=True,
    )


def _tensor(tensor: dict[str, Any]) -> str:
    shape = ", ".join("N" if side is None else str(side) for side in tensor["shape"])
    return f"{tensor['name']}  {tensor['dtype']} ({shape})"


def attach_spec(path: Path, spec_file: Path, output: Path | None, *, force: bool) -> Path:
    """Put a specification into a ``.tflite`` file; the file is replaced whole, or stays as it is.

    Args:
        path: The model file.
        spec_file: The specification: as :meth:`ModelSpec.to_json` writes it, or under ``spec`` in a larger JSON object,
            such as a bundle's manifest or what ``edgepose inspect --json`` prints.
        output: Where to write; by default to ``path`` itself.
        force: Replace a specification or an output that is there.

    Returns:
        The file that was written.

    Raises:
        BundleError: The file or the specification is damaged, they do not fit, or there is a specification already.
        SinkError: The output cannot be written.
    """
    from edgepose.files import replace_file, sync
    from edgepose.runtimes.load import fits
    from edgepose.runtimes.tflite_file import read_tflite, tensor_specs, with_metadata
    from edgepose.sinks import check_output
    from edgepose.types import SPEC_KEY

    if path.suffix.lower() != ".tflite":
        raise BundleError(f"{path}: specifications are attached to .tflite files alone: convert the checkpoint")
    model, spec = read_tflite(path), _read_spec(spec_file)
    if SPEC_KEY in model.metadata and not (force or output):
        raise BundleError(f"{path}: has a specification already: give --output, or --force to replace it")
    _check_no_bundle(output or path)
    check_output(output or path, force=force or output is None, inputs=[spec_file, *([path] if output else [])])
    changed = with_metadata(path.read_bytes(), {SPEC_KEY: spec.to_json().encode("utf-8")})
    inputs, outputs = tensor_specs(read_tflite(path, changed))
    if not fits(spec, inputs, outputs):
        raise BundleError(
            f"{spec_file}: is not of {path}, whose tensors are {_ends(inputs, outputs)}, where the specification has "
            f"{_ends((spec.input,), (spec.output,))}: nothing was attached"
        )
    with replace_file(output or path) as partial:
        partial.write_bytes(changed)
        sync(partial)
    remark(f"wrote {output or path}")
    return output or path


def _read_spec(path: Path) -> ModelSpec:
    from edgepose.types import ModelSpec

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
    except (RecursionError, ValueError) as error:
        raise BundleError(f"{path}: is no JSON ({error})") from None
    inner = data.get("spec", data) if isinstance(data, dict) else data
    return ModelSpec.from_json(json.dumps(inner), str(path))


def _check_no_bundle(path: Path) -> None:
    from edgepose.bundle import MANIFEST, Bundle

    if (path.parent / MANIFEST).is_file() and path.name in Bundle.open(path.parent).files:
        raise BundleError(f"{path}: is part of a bundle, whose manifest holds its hash: give --output elsewhere")


def _ends(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> str:
    return " and ".join(", ".join(_tensor(asdict(tensor)) for tensor in side) for side in (inputs, outputs))
