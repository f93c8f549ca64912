"""Skeletons as data: joint names, edges, mirror pairs and OKS sigmas.

Sources of the sigmas: COCO-17 are those of the COCO keypoint evaluation. The other skeletons reuse them for
the joints they share with COCO; neck and head follow CrowdPose (0.079). Pelvis, spine and thorax have no
published value: they take the hip's (0.107) and the shoulder's (0.079), the nearest joints on the body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepose.errors import EdgePoseError

__all__ = ["SKELETONS", "Skeleton", "SkeletonMap", "counterparts", "get_skeleton", "skeleton_map"]


@dataclass(frozen=True)
class Skeleton:
    """K named joints and how they connect.

    Attributes:
        name: Registry name, for instance ``coco17``.
        joints: K joint names, in the order of a model's heatmaps.
        edges: Pairs of joint indices, one for each limb that is drawn.
        flip_pairs: (right, left) or (left, right) joint indices that trade places in a mirrored image.
        sigmas: K per-joint constants of the object keypoint similarity (OKS), unitless.
    """

    name: str
    joints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    flip_pairs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]

    @property
    def flip_order(self) -> tuple[int, ...]:
        """K indices: ``mirrored[flip_order]`` puts left and right joints back."""
        order = list(range(len(self.joints)))
        for a, b in self.flip_pairs:
            order[a], order[b] = b, a
        return tuple(order)


_SIGMA = {
    "nose": 0.026,
    "eye": 0.025,
    "ear": 0.035,
    "shoulder": 0.079,
    "elbow": 0.072,
    "wrist": 0.062,
    "hip": 0.107,
    "knee": 0.087,
    "ankle": 0.089,
    "neck": 0.079,
    "upper_neck": 0.079,
    "head": 0.079,
    "head_top": 0.079,
    "thorax": 0.079,
    "pelvis": 0.107,
    "spine": 0.107,
}


_SAME = {"upper_neck": "neck"}
"""Joints that are one place on the body under two names (MPII's and LSP's)."""


def _skeleton(name: str, joints: str, edges: str) -> Skeleton:
    """Build a row from joint names and ``a-b`` edges; mirror pairs and sigmas follow from the names."""
    names = tuple(joints.split())
    index = {joint: i for i, joint in enumerate(names)}
    pairs = tuple(
        (index[joint], index["right_" + joint.removeprefix("left_")]) for joint in names if joint.startswith("left_")
    )
    limbs = [edge.split("-") for edge in edges.split()]
    return Skeleton(
        name=name,
        joints=names,
        edges=tuple((index[a], index[b]) for a, b in limbs),
        flip_pairs=pairs,
        sigmas=tuple(_SIGMA[joint.removeprefix("left_").removeprefix("right_")] for joint in names),
    )


SKELETONS: dict[str, Skeleton] = {
    row.name: row
    for row in (
        _skeleton(
            "coco17",
            "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow "
            "left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle",
            "left_ankle-left_knee left_knee-left_hip right_ankle-right_knee right_knee-right_hip "
            "left_hip-right_hip left_shoulder-left_hip right_shoulder-right_hip left_shoulder-right_shoulder "
            "left_shoulder-left_elbow right_shoulder-right_elbow left_elbow-left_wrist "
            "right_elbow-right_wrist left_eye-right_eye nose-left_eye nose-right_eye left_eye-left_ear "
            "right_eye-right_ear left_ear-left_shoulder right_ear-right_shoulder",
        ),
        _skeleton(
            "h36m17",
            "pelvis right_hip right_knee right_ankle left_hip left_knee left_ankle spine thorax neck head "
            "left_shoulder left_elbow left_wrist right_shoulder right_elbow right_wrist",
            "pelvis-right_hip right_hip-right_knee right_knee-right_ankle pelvis-left_hip left_hip-left_knee "
            "left_knee-left_ankle pelvis-spine spine-thorax thorax-neck neck-head thorax-left_shoulder "
            "left_shoulder-left_elbow left_elbow-left_wrist thorax-right_shoulder "
            "right_shoulder-right_elbow right_elbow-right_wrist",
        ),
        _skeleton(
            "lsp14",
            "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow "
            "right_shoulder left_shoulder left_elbow left_wrist neck head_top",
            "right_ankle-right_knee right_knee-right_hip right_hip-left_hip left_hip-left_knee "
            "left_knee-left_ankle right_wrist-right_elbow right_elbow-right_shoulder right_shoulder-neck "
            "neck-left_shoulder left_shoulder-left_elbow left_elbow-left_wrist right_shoulder-right_hip "
            "left_shoulder-left_hip neck-head_top",
        ),
        _skeleton(
            "mpii16",
            "right_ankle right_knee right_hip left_hip left_knee left_ankle pelvis thorax upper_neck head_top "
            "right_wrist right_elbow right_shoulder left_shoulder left_elbow left_wrist",
            "right_ankle-right_knee right_knee-right_hip right_hip-pelvis left_hip-pelvis left_hip-left_knee "
            "left_knee-left_ankle pelvis-thorax thorax-upper_neck upper_neck-head_top right_wrist-right_elbow "
            "right_elbow-right_shoulder right_shoulder-thorax thorax-left_shoulder "
            "left_shoulder-left_elbow left_elbow-left_wrist",
        ),
    )
}


def get_skeleton(name: str) -> Skeleton:
    """Look a skeleton up by name.

    Raises:
        EdgePoseError: No skeleton has that name.
    """
    try:
        return SKELETONS[name]
    except KeyError:
        known = ", ".join(SKELETONS)
        raise EdgePoseError(f"unknown skeleton {name!r}; known: {known}") from None


def counterparts(source: Sequence[str], target: Sequence[str]) -> tuple[int | None, ...]:
    """For each target joint the index of the source joint that is the same place on the body, or None.

    Only joints that annotators place alike count: midpoints are no labels.
    """
    index = {_SAME.get(name, name): i for i, name in enumerate(source)}
    return tuple(index.get(_SAME.get(name, name)) for name in target)


@dataclass(frozen=True)
class SkeletonMap:
    """How the joints of one skeleton are made from another's: weighted means of points in the picture.

    Attributes:
        source, target: Names of the skeletons.
        rows: For each target joint the source joints and their weights, which sum to one; empty where the source
            has nothing to make it from.
    """

    source: str
    target: str
    rows: tuple[tuple[tuple[int, float], ...], ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Target joints that the source cannot supply."""
        joints = get_skeleton(self.target).joints
        return tuple(name for name, row in zip(joints, self.rows, strict=True) if not row)

    @property
    def needed(self) -> tuple[str, ...]:
        """Source joints that any target joint is made from."""
        used = {index for row in self.rows for index, _ in row}
        return tuple(name for i, name in enumerate(get_skeleton(self.source).joints) if i in used)


_HIPS = "left_hip right_hip"
_SHOULDERS = "left_shoulder right_shoulder"
_FACE = "left_eye right_eye left_ear right_ear"
_TRUNK = {"pelvis": _HIPS, "spine": f"{_HIPS} {_SHOULDERS}", "thorax": _SHOULDERS}
_MAPS: dict[tuple[str, str], dict[str, str]] = {
    # The nose is Human3.6M's neck/nose. Eyes and ears are halfway down the head: its top is as far above them again as
    # a fifth of their distance from the shoulders.
    ("coco17", "h36m17"): {**_TRUNK, "neck": "nose", "head": f"{_FACE} *1.2 {_SHOULDERS} *-0.2"},
    ("lsp14", "h36m17"): {**_TRUNK, "neck": "neck", "head": "head_top"},
    ("mpii16", "h36m17"): {"spine": "pelvis thorax", "neck": "upper_neck", "head": "head_top"},
}
"""Joints that are not in the source under their own name: the means that stand for them. ``*w`` weighs the mean of the
names before it."""


def skeleton_map(source: str, target: str) -> SkeletonMap:
    """The map from one skeleton to another; a skeleton maps to itself joint by joint.

    Raises:
        EdgePoseError: One of them is unknown, or there is no map between them.
    """
    have, wanted = get_skeleton(source).joints, get_skeleton(target).joints
    if source != target and (source, target) not in _MAPS:
        known = ", ".join(f"{a} to {b}" for a, b in _MAPS)
        raise EdgePoseError(f"no map from {source} joints to {target}; there are: {known}")
    means = _MAPS.get((source, target), {})
    return SkeletonMap(source, target, tuple(_weights(means.get(name, name), have) for name in wanted))


def _weights(text: str, joints: Sequence[str]) -> tuple[tuple[int, float], ...]:
    """``a b *1.2 c *-0.2`` -> indices and weights; nothing where a name is not among the joints."""
    weights: list[tuple[int, float]] = []
    pending: list[str] = []
    for word in [*text.split(), *([] if text.rpartition(" ")[2].startswith("*") else ["*1"])]:
        if not word.startswith("*"):
            pending.append(word)
            continue
        weights += [(joints.index(name), float(word[1:]) / len(pending)) for name in pending if name in joints]
        pending = []
    return tuple(weights)
