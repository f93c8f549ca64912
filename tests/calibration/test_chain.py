"""2D variants lifted by lifting variants: every pair against FP32 > FP32, in millimetres."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import edgepose
from edgepose import DatasetError, EdgePoseError, EngineError, Lifter
from edgepose.assets import SAMPLE_CLIP
from edgepose.calibration.chain import validate_chain
from edgepose.calibration.datasets.pictures import Unlabeled
from edgepose.calibration.evidence import evidence_dict
from edgepose.skeletons import get_skeleton

PAIR = ("onnx-fp32", "onnx-fp32")
VARIANTS = ("onnx-fp32", "onnx-int8")


@pytest.fixture(scope="module")
def estimators(starter_bundle):
    return {name: edgepose.load(starter_bundle, variant=name) for name in VARIANTS}


@pytest.fixture(scope="module")
def lifters(lifter_bundle):
    return {name: edgepose.load_lifter(lifter_bundle, variant=name) for name in VARIANTS}


@pytest.fixture(scope="module")
def found(estimators, lifters):
    return validate_chain(estimators, lifters, Unlabeled(SAMPLE_CLIP), baseline=PAIR, limit=30)


def broken(lifter, after):
    """The same lifting model, which fails after some calls."""
    calls = []

    def run(feeds):
        calls.append(1)
        if len(calls) > after:
            raise EngineError("out of memory")
        return lifter.engine.run(feeds)

    engine = SimpleNamespace(run=run, inputs=lifter.engine.inputs, name="x", device="cpu")
    return Lifter(engine, lifter.spec, "onnx-int8")


def test_every_pair_is_a_row_and_the_baseline_is_exact(found):
    rows = {row.variant: row for row in found.rows}
    assert list(rows) == [f"{a} > {b}" for a in VARIANTS for b in VARIANTS]
    assert found.baseline == "onnx-fp32 > onnx-fp32"
    base = rows[found.baseline]
    assert (base.agreement.mean_mm, base.shift_px) == (0, 0)
    assert base.agreement.poses == found.poses > 15


def test_whose_loss_it_is_shows(found):
    rows = {row.variant: row for row in found.rows}
    assert rows["onnx-fp32 > onnx-int8"].shift_px == 0
    assert rows["onnx-int8 > onnx-fp32"].shift_px == rows["onnx-int8 > onnx-int8"].shift_px > 0
    for name in ("onnx-fp32 > onnx-int8", "onnx-int8 > onnx-fp32", "onnx-int8 > onnx-int8"):
        assert 0.1 < found.drop_of(rows[name]) < 60


def test_the_chain_is_what_run_does(estimators, lifters, clip_frames, tmp_path):
    """The distances on one picture by hand: the same region, crops, threshold and mirror."""
    image = clip_frames[60]
    cv2.imwrite(str(tmp_path / "man.png"), image)
    one = validate_chain(estimators, lifters, Unlabeled(tmp_path), baseline=PAIR)
    spec, size = estimators["onnx-fp32"].spec, image.shape[1::-1]
    region = estimators["onnx-fp32"].best_region(image)[0]
    lifted = {
        (a, b): lifters[b].lift(estimators[a].poses_at(image, region), size, spec.score_threshold).keypoints_xyz
        for a in VARIANTS
        for b in VARIANTS
    }
    assert one.poses == 1
    for row in one.rows:
        off = lifted[tuple(row.variant.split(" > "))] - lifted[PAIR]
        assert row.agreement.mean_mm == pytest.approx(1000 * np.linalg.norm(off, axis=-1).mean(), abs=1e-3)


def test_a_variant_that_fails_is_left_out_with_the_reason(estimators, lifters):
    bad = {**lifters, "onnx-int8": broken(lifters["onnx-int8"], after=8)}
    found = validate_chain(estimators, bad, Unlabeled(SAMPLE_CLIP), baseline=PAIR, limit=12)
    assert [row.variant for row in found.rows] == ["onnx-fp32 > onnx-fp32", "onnx-int8 > onnx-fp32"]
    assert set(found.failed) == {"onnx-fp32 > onnx-int8", "onnx-int8 > onnx-int8"}
    assert all(reason.startswith("out of memory (after ") for reason in found.failed.values())


def test_a_baseline_that_fails_is_an_error(estimators, lifters):
    bad = {**lifters, "onnx-fp32": broken(lifters["onnx-fp32"], after=2)}
    with pytest.raises(EngineError, match="out of memory"):
        validate_chain(estimators, bad, Unlabeled(SAMPLE_CLIP), baseline=PAIR, limit=12)


def test_nobody_to_lift_is_an_error(estimators, lifters, tmp_path):
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((200, 300, 3), 127, np.uint8))
    with pytest.raises(DatasetError, match=r"nobody who can be lifted on 1 pictures: are whole bodies in view\?"):
        validate_chain(estimators, lifters, Unlabeled(tmp_path), baseline=PAIR)


def test_skeletons_without_a_map_are_refused_before_any_work(estimators, lifters):
    other = SimpleNamespace(spec=SimpleNamespace(skeleton="coco17", joints=get_skeleton("coco17")))
    with pytest.raises(EdgePoseError, match="no map from lsp14 joints to coco17"):
        validate_chain(estimators, {"onnx-fp32": other}, Unlabeled(SAMPLE_CLIP), baseline=PAIR)


def test_the_figures_are_plain_json(found):
    rows = evidence_dict(found)["rows"]
    assert rows[0]["variant"] == "onnx-fp32 > onnx-fp32"
    assert len(rows[0]["agreement"]["percentiles_mm"]) == 101
