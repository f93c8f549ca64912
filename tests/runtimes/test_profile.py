"""The time of each operator, in one form for every engine that tells it."""

from __future__ import annotations

import numpy as np
import pytest

from edgepose import EngineError
from edgepose.runtimes.profile import OpTime, ProfilingEngine, op_times
from edgepose.runtimes.registry import open_engine

FILES = {
    "onnxruntime": ("starter_bundle", "onnx-int8.onnx"),
    "openvino": ("starter_openvino", "openvino-fp32.xml"),
    "torch": ("starter_torch", "torch-fp32.pt2"),
}


@pytest.fixture(params=list(FILES))
def engine(request):
    folder, name = FILES[request.param]
    opened = open_engine(request.getfixturevalue(folder) / name, request.param, "cpu", 1)
    yield opened
    opened.close()


def image(engine, batch=1):
    (_, height, width, _) = engine.inputs[0].shape
    return {"image": np.zeros((batch, height, width, 3), np.uint8)}


def test_every_operator_has_a_name_a_kind_a_place_and_a_time(engine):
    assert isinstance(engine, ProfilingEngine)
    rows = engine.profile(image(engine), 3)
    assert len(rows) > 20
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert all(row.name and row.kind and row.ms > 0 for row in rows)
    assert all("CPU" in row.where for row in rows)
    assert any("conv" in row.kind.lower() for row in rows)
    assert [row.ms for row in rows] == sorted((row.ms for row in rows), reverse=True)


def test_times_are_of_one_run_however_many_there_were(engine):
    alone = sum(row.ms for row in engine.profile(image(engine), 2))
    many = sum(row.ms for row in engine.profile(image(engine), 10))
    assert many < 4 * alone  # not five times as long: other processes may slow either


def test_the_engine_can_run_afterwards(engine):
    engine.profile(image(engine, 3), 1)
    assert len(engine.run(image(engine, 3))["heatmaps"]) == 3


def test_wrong_inputs_are_an_engine_error(engine):
    with pytest.raises(EngineError, match=f"{engine.name} failed"):
        engine.profile({"image": np.zeros((1, 5, 5, 3), np.uint8)}, 1)


def test_rows_are_means_and_shares():
    assert op_times({("a", "Conv", "CPU"): 0.3, ("b", "Add", "CPU"): 0.1, ("c", "Nop", "CPU"): 0.0}, 10) == [
        OpTime("a", "Conv", "CPU", pytest.approx(30), pytest.approx(0.75)),
        OpTime("b", "Add", "CPU", pytest.approx(10), pytest.approx(0.25)),
    ]
    assert op_times({}, 1) == []
