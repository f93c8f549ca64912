"""2D poses of a frame become poses in space."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepose.lifting import liftable, map_joints, mirror, normalise
from edgepose.model import LoadedModel
from edgepose.types import Poses

__all__ = ["Lifter"]


class Lifter(LoadedModel):
    """Lifts 2D keypoints into space, with one engine. Made by :func:`edgepose.load_lifter`."""

    def lift(self, poses: Poses, image_wh: tuple[float, float], threshold: float = 0.2, *, flip: bool = True) -> Poses:
        """The same people with ``keypoints_xyz``, all NaN for those of whom too few joints are known.

        Args:
            poses: 2D poses of any skeleton from which there is a map to the model's.
            image_wh: Width and height of the picture that they are of.
            threshold: Joints that score less count as missing.
            flip: Average with the answer for the mirrored pose.

        Raises:
            EdgePoseError: There is no map between the skeletons.
            EngineError: The engine failed, or answered with NaN.
        """
        found = np.where((poses.scores >= threshold)[:, :, None], poses.keypoints_xy, np.nan)
        keypoints = map_joints(found, poses.skeleton, self.spec.skeleton)
        xyz = np.full((len(poses), len(self.spec.joints.joints), 3), np.nan, np.float32)
        fit = liftable(keypoints)
        xyz[fit] = self.keypoints_xyz(keypoints[fit], image_wh, flip=flip)
        return replace(poses, keypoints_xyz=xyz, skeleton_xyz=self.spec.skeleton)

    def keypoints_xyz(
        self, keypoints_xy: ArrayLike, image_wh: tuple[float, float], *, flip: bool = True
    ) -> NDArray[np.float32]:
        """Lift keypoints that are in the model's own order.

        Args:
            keypoints_xy: (N, K, 2) pixels of the whole picture; NaN where a joint is missing.
            image_wh: Width and height of that picture.
            flip: Average with the answer for the mirrored pose.

        Returns:
            (N, K, 3) float32 metres in the camera's frame (x right, y down, z away), relative to the pelvis.

        Raises:
            EdgePoseError: Someone has fewer than ``edgepose.lifting.FEWEST_JOINTS`` joints.
            EngineError: The engine failed, or answered with NaN.
        """
        return self.lifted(normalise(keypoints_xy, image_wh, str(self.spec.normalisation)), flip=flip)

    def lifted(self, keypoints: NDArray[np.float32], *, flip: bool = True) -> NDArray[np.float32]:
        """Lift the model's own input (N, K, 2), from ``edgepose.lifting.normalise``; see :meth:`keypoints_xyz`."""
        if not flip:
            return self.infer(keypoints)
        both = self.infer(np.concatenate([keypoints, mirror(keypoints, self.spec.skeleton)]))
        straight, mirrored = both[: len(keypoints)], both[len(keypoints) :]
        average: NDArray[np.float32] = (straight + mirror(mirrored, self.spec.skeleton)) / np.float32(2)
        return average
