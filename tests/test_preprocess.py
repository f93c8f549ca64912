"""Crops, against the reference implementation's and a bilinear oracle of our own."""

from __future__ import annotations

import json

import cv2
import numpy as np

from edgepose.geometry import clip_boxes_xywh, regions_from_boxes
from edgepose.preprocess import crop
from edgepose.sources import read_image


def test_equals_the_reference(shared):
    data = np.load(shared / "golden" / "crops.npz")
    folder = shared / "data" / "coco-sample"
    annotations = json.loads((folder / "person_keypoints_val2017.json").read_text())
    images = {row["id"]: row for row in annotations["images"]}
    people = [row for row in annotations["annotations"] if f"crop_{row['id']}" in data]
    assert len(people) == 6
    for person in people:
        image = images[person["image_id"]]
        frame = read_image(folder / "val2017" / image["file_name"], exif=False)
        box = clip_boxes_xywh(person["bbox"], (image["width"], image["height"]))
        pixels = crop(frame, regions_from_boxes(box, 0.75, 1.25), (192, 256))[0]
        expected = data[f"crop_{person['id']}"]
        assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= 1  # grey level
        normalised = (pixels / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        np.testing.assert_allclose(normalised.mean((0, 1)), data[f"tensor_mean_{person['id']}"], atol=1e-3)


def test_equals_bilinear_sampling_by_hand():
    """Smooth content, so that OpenCV's 1/32-pixel steps stay below one grey level; part of it is off the frame."""
    ys, xs = np.mgrid[:90, :120]
    frame = np.stack([2 * xs, 255 - 2 * ys, xs + ys], axis=-1).astype(np.uint8)
    region = np.array([[20.0, 50.0, 60.0, 80.0]])
    pixels = crop(frame, region, (48, 64))[0]
    scale = (60 - 1) / (48 - 1)
    x = 20 + (np.arange(48) - 47 / 2) * scale
    y = 50 + (np.arange(64) - 63 / 2) * scale
    inside = (x > 0)[None, :] & (y < 89)[:, None]
    outside = (x < -1)[None, :] | (y > 90)[:, None]
    expected = np.stack(np.broadcast_arrays(x[None] + y[:, None], 255 - 2 * y[:, None], 2 * x[None]), axis=-1)
    assert np.abs(pixels - expected)[inside].max() <= 1.1
    assert (pixels[outside] == 0).all()
    assert inside.sum() > 1000
    assert outside.any()


def test_crops_are_rgb():
    frame = np.zeros((40, 40, 3), np.uint8)
    frame[..., 0] = 200  # blue in OpenCV's order
    assert crop(frame, np.array([[20.0, 20, 30, 40]]), (24, 32))[0, 16, 12].tolist() == [0, 0, 200]


def test_no_regions_no_crops():
    assert crop(np.zeros((9, 9, 3), np.uint8), np.zeros((0, 4)), (24, 32)).shape == (0, 32, 24, 3)


def test_exif_orientation_is_for_people_not_for_datasets(tmp_path):
    jpeg = cv2.imencode(".jpg", np.zeros((10, 20, 3), np.uint8))[1].tobytes()
    turned = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6: on its side
    path = tmp_path / "turned.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + (len(turned) + 2).to_bytes(2, "big") + turned + jpeg[2:])
    assert read_image(path).shape == (20, 10, 3)
    assert read_image(path, exif=False).shape == (10, 20, 3)
