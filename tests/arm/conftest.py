"""The ARM test bed as fixtures, and its table at the end of the run. See docs/arm.md."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))  # its helpers are shared by name with the emulated Python

from arm_bed import Bed, Unavailable, set_up
from arm_cells import Answer, Cell, Row, Scene, judge, run_cell, table

_LINES = pytest.StashKey[list[str]]()
_ROWS = pytest.StashKey[list[Row]]()

_FRAMES = 2

Beds = Callable[[str], Bed]


@pytest.fixture(scope="session")
def arm_bed_of(request: pytest.FixtureRequest) -> Beds:
    """The bed of an architecture; skips with the reason where there can be none."""
    known: dict[str, Bed | str] = {}
    lines = request.config.stash.setdefault(_LINES, [])

    def bed_of(name: str) -> Bed:
        if os.environ.get("EDGEPOSE_ARM") == "off":
            pytest.skip("EDGEPOSE_ARM=off")
        if name not in known:
            try:
                known[name] = bed = set_up(name)
                lines.append(f"{name}: {bed.version()}, set up in {bed.seconds:.0f} s")
            except Unavailable as error:
                known[name] = str(error)
        found = known[name]
        if isinstance(found, str):
            pytest.skip(f"no ARM test bed: {found}")
        return found

    return bed_of


@pytest.fixture(scope="session")
def arm_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter model in every FP32 and INT8 variant that this edgepose makes, quantized for ARM."""
    from edgepose.assets import SAMPLE_CLIP, STARTER_MODEL, STARTER_WEIGHTS
    from edgepose.converters.checkpoint import load_checkpoint
    from edgepose.converters.convert import convert
    from edgepose.converters.recipes import get_recipe
    from edgepose.converters.variants import VARIANTS
    from edgepose.models.registry import get_model

    path = tmp_path_factory.mktemp("arm") / "bundle"
    left_out = ("fp16",) if os.environ.get("EDGEPOSE_ARM") == "all" else ("fp16", "int8-16x8")
    variants = [name for name in VARIANTS if not name.endswith(left_out)]
    recipes = {"onnxruntime": get_recipe("onnxruntime-arm")}
    checkpoint = load_checkpoint(STARTER_WEIGHTS, get_model(STARTER_MODEL))
    convert(checkpoint, path, variants, calibration=SAMPLE_CLIP, calibration_size=16, recipes=recipes)
    return path


@pytest.fixture(scope="session")
def arm_scene(starter_bundle: Path, clip_frames: list[NDArray[np.uint8]]) -> Scene:
    """Two frames of the sample clip, with the boxes that the search finds on this machine."""
    from edgepose.runtimes.load import load

    estimator = load(starter_bundle, variant="onnx-fp32")
    poses = ((frame, estimator.estimate(frame)) for frame in clip_frames[::10])
    found = [(frame, pose.boxes_xyxy[0]) for frame, pose in poses if len(pose)][:_FRAMES]
    estimator.close()
    assert len(found) == _FRAMES
    return Scene(*(np.stack(column) for column in zip(*found, strict=True)))


@pytest.fixture(scope="session")
def arm_answers(
    request: pytest.FixtureRequest,
    arm_bed_of: Beds,
    arm_bundle: Path,
    arm_scene: Scene,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Cell], Mapping[str, Answer | str]]]:
    """What each cell answers by variant. With the first all start, as many at once as there are cores."""
    out = tmp_path_factory.mktemp("arm-answers")
    scene = arm_scene.save(out / "scene.npz")
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    wanted = [call.params["cell"] for call in calls if call and isinstance(call.params.get("cell"), Cell)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        running: dict[Cell, Future[dict[str, Answer | str]]] = {}

        def start(cell: Cell) -> None:
            folder = out / cell.library / cell.cpu
            running[cell] = pool.submit(run_cell, cell, arm_bed_of(cell.bed), arm_bundle, scene, folder)

        def answers(cell: Cell) -> Mapping[str, Answer | str]:
            bed = arm_bed_of(cell.bed)
            for other in wanted:
                if other.bed == bed.row.name and other not in running:
                    start(other)
            return running[cell].result()

        yield answers


@pytest.fixture(scope="session")
def arm_rows(request: pytest.FixtureRequest, arm_bed_of: Beds) -> Callable[[Cell], list[Row]]:
    """The judged rows of a cell; they go into the table. Without a bed nothing is converted."""
    printed = request.config.stash.setdefault(_ROWS, [])

    def rows_of(cell: Cell) -> list[Row]:
        arm_bed_of(cell.bed)
        answers, bundle, scene = (request.getfixturevalue(f"arm_{name}") for name in ("answers", "bundle", "scene"))
        rows = judge(cell, bundle, scene, answers(cell))
        printed.extend(rows)
        return rows

    return rows_of


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, [])
    if rows:
        terminalreporter.section("ARM under emulation, against this machine")
        for line in [*config.stash.get(_LINES, []), *table(rows)]:
            terminalreporter.write_line(line)
