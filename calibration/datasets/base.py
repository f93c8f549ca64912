"""What every data set gives: pictures with people for 2D models, or keypoints with their 3D truth for lifting models.

Both are streams: a data set knows where its pictures are, and none of them is in memory before it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgepose.calibration.evidence import Accuracy
    from edgepose.types import ModelSpec

__all__ = ["Image", "Labels", "LiftingClip", "LiftingData", "Picture", "PictureData", "Scorer"]

Image = NDArray[np.uint8]
"""(h, w, 3) uint8 BGR, as OpenCV reads it."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The truth about the N people of a picture, in the data set's own order of K joints.

    Attributes:
        keypoints_xy: (N, K, 2) float64, picture pixels.
        visible: (N, K) bool, whether a joint is labelled.
        reference_px: (N,) float64, the length that the data set's metric divides an error by: torso, head, or
            the square root of the person's area.
    """

    keypoints_xy: NDArray[np.float64]
    visible: NDArray[np.bool_]
    reference_px: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture and the people in it.

    Attributes:
        name: For people: the file's name, with the frame's number in a video.
        file: The file that it is in.
        read: Decodes it; None where that fails.
        boxes_xywh: (N, 4) float64 picture pixels, one person each; None where nobody knows, and one has to be found.
        box_scores: (N,) float64 0-1, or None for 1.
        labels: The truth about the same N people, or None.
        areas_px: (N,) annotated area of each person, square pixels; None where nobody says.
        image_id: The data set's own number of it.
        clip: Pictures of one clip follow each other in time; None for single pictures.
    """

    name: str
    file: str
    read: Callable[[], Image | None] = field(repr=False)
    boxes_xywh: NDArray[np.float64] | None = None
    box_scores: NDArray[np.float64] | None = None
    labels: Labels | None = None
    areas_px: NDArray[np.float64] | None = None
    image_id: int = 0
    clip: int | None = None

    def person_areas(self, regions: NDArray[np.float64], padding: float) -> NDArray[np.float64]:
        """(N,) square pixels to sort people by: annotated, else of the box, else of ``regions`` less padding."""
        if self.areas_px is not None:
            return self.areas_px
        if self.boxes_xywh is not None:
            return np.asarray(self.boxes_xywh[:, 2] * self.boxes_xywh[:, 3])
        return np.asarray(regions[:, 2] * regions[:, 3] / padding**2)


class Scorer(Protocol):
    """Judges one variant's answers against the labels, picture by picture."""

    def add(
        self,
        picture: Picture,
        regions: NDArray[np.float64],
        keypoints_xy: NDArray[np.float32],
        scores: NDArray[np.float32],
    ) -> None:
        """Add the answers for the picture's people: regions (N, 4), keypoints (N, K, 2) in pixels, scores (N, K)."""
        ...

    def result(self) -> Accuracy:
        """The verdict on all that was added."""
        ...

    def people(self) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
        """Points and number of judged joints of each person, where the headline is their mean; None where it is not."""
        ...


class PictureData(Protocol):
    """A data set for 2D models.

    Attributes:
        kind: Registry name, for instance ``coco``.
        path: The file or folder that it was opened from.
        boxes: Where the boxes are from, for people: ``ground truth``, a file name, or ``search``.
        joints: Names of the labelled joints; None without labels.
    """

    kind: str
    path: Path
    boxes: str
    joints: tuple[str, ...] | None

    def __len__(self) -> int:
        """How many pictures."""
        ...

    def pictures(self, limit: int | None = None) -> Iterator[Picture]:
        """The pictures, always in the same order; ``limit`` takes fewer.

        Raises:
            DatasetError: Files that it names are missing, or labels are malformed.
        """
        ...

    def scorer(self, spec: ModelSpec) -> Scorer | None:
        """Judges one variant of a model; None without labels.

        Raises:
            DatasetError: The labels do not fit the model's joints.
        """
        ...

    def sources(self) -> list[Path]:
        """Files whose hashes pin the data set: annotations, archives, a video; empty for a folder of pictures."""
        ...


@dataclass(frozen=True, eq=False)
class LiftingClip:
    """F frames of one person: where the joints are in the picture, and where in space.

    Attributes:
        name: Subject, action and camera.
        keypoints_xy: (F, K, 2) float32 picture pixels.
        keypoints_xyz: (F, K, 3) float32 metres in the camera's frame, relative to the pelvis.
        valid: (F,) bool, frames that the protocol counts.
        image_wh: Width and height of the picture.
        group: What the protocol averages over, for instance the action.
    """

    name: str
    keypoints_xy: NDArray[np.float32]
    keypoints_xyz: NDArray[np.float32]
    valid: NDArray[np.bool_]
    image_wh: tuple[int, int]
    group: str


class LiftingData(Protocol):
    """A data set for lifting models; the joints are those of ``skeleton``, a name in ``edgepose.skeletons``."""

    kind: str
    path: Path
    skeleton: str

    def clips(self, limit: int | None = None) -> Iterator[LiftingClip]:
        """The clips, always in the same order; ``limit`` takes fewer.

        Raises:
            DatasetError: A file is missing or malformed.
        """
        ...

    def sources(self) -> list[Path]:
        """Files whose hashes pin the data set."""
        ...
