"""Overlap of boxes by hand. Poses: tests/calibration/test_metrics.py."""

from __future__ import annotations

import numpy as np

from edgepose.similarity import intersections, ious


def test_boxes_by_hand():
    a = [[0, 0, 10, 10], [20, 20, 30, 40]]
    b = [[5, 5, 15, 15], [20, 20, 30, 30], [10, 0, 20, 10]]  # the last one touches, and shares nothing
    np.testing.assert_array_equal(intersections(a, b), [[25, 0, 0], [0, 100, 0]])
    np.testing.assert_allclose(ious(a, b), [[25 / 175, 0, 0], [0, 0.5, 0]])


def test_boxes_without_area_and_no_boxes_at_all():
    assert ious([1, 1, 1, 1], [1, 1, 1, 1]).tolist() == [[0]]
    assert ious([], [[0, 0, 1, 1]]).shape == (0, 1)
    assert intersections([], []).shape == (0, 0)
