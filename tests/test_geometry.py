"""Boxes, regions and affine maps, by hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest

from edgepose.geometry import (
    boxes_around,
    clip_boxes_xywh,
    regions_from_boxes,
    scale_and_shift,
    xywh_to_xyxy,
    xyxy_to_xywh,
)


@pytest.mark.parametrize(
    ("box", "region"),
    [
        ((0, 0, 75, 100), (37, 49.5, 93.75, 125)),  # has the aspect already
        ((10, 20, 150, 100), (84.5, 69.5, 187.5, 250)),  # too wide: the height grows
        ((10, 20, 30, 100), (24.5, 69.5, 93.75, 125)),  # too tall: the width grows
    ],
)
def test_a_box_grows_to_the_aspect_and_the_padding(box, region):
    np.testing.assert_allclose(regions_from_boxes([box], 0.75, 1.25), [region])


def test_the_corners_of_a_region_are_the_corner_pixels_of_its_crop():
    scale, shift = scale_and_shift([(50, 60, 97, 129), (50, 60, 193, 257)], (97, 129))
    corners = np.array([[0, 0], [96, 128], [48, 64]])
    np.testing.assert_allclose(corners * scale[0] + shift[0], [[2, -4], [98, 124], [50, 60]])
    np.testing.assert_allclose(corners * scale[1] + shift[1], [[-46, -68], [146, 188], [50, 60]])


def test_boxes_are_clipped_to_the_image():
    clipped = clip_boxes_xywh([(-10, 5, 50, 20), (90, 90, 50, 50), (200, 0, 10, 10), (5, 5, 0, 8)], (100, 100))
    np.testing.assert_allclose(clipped[:2], [(0, 5, 50, 20), (90, 90, 10, 10)])
    assert np.isnan(clipped[2:]).all()  # outside, and without area


def test_formats_convert_back_and_forth():
    np.testing.assert_array_equal(xywh_to_xyxy([(1, 2, 3, 4)]), [(1, 2, 4, 6)])
    np.testing.assert_array_equal(xyxy_to_xywh([(1, 2, 4, 6)]), [(1, 2, 3, 4)])


def test_a_box_around_points():
    np.testing.assert_array_equal(boxes_around([(1, 9), (4, 2)]), (1, 2, 3, 7))
    assert np.isnan(boxes_around(np.zeros((0, 2)))).all()
