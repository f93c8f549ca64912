"""The values that pass between parts: poses, model specifications, and what an engine must offer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import BundleError, EdgePoseError
from edgepose.skeletons import Skeleton, get_skeleton

__all__ = ["Engine", "NORMALISATIONS", "ModelSpec", "Poses", "QueuingEngine", "TensorSpec"]

SPEC_KEY = "edgepose"
"""Metadata key under which every exported file carries its ModelSpec."""

ORIGIN_KEY = "edgepose.origin"
"""Metadata key under which a file says where it comes from: checkpoint, recipe, versions."""

NORMALISATIONS = ("screen", "bbox")
"""How a lifting model's keypoints are normalised: see ``edgepose.lifting``."""

_SPEC_VERSION = 1


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one input or output; None marks the free batch dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class ModelSpec:
    """What host code must know of an artifact: its I/O contract and how to make its input.

    Attributes:
        name: Model name, for people.
        task: ``pose2d`` (crops -> heatmaps) or ``lift3d`` (keypoints -> the same in space).
        input: ``image``, uint8 (N, H, W, 3), RGB crops 0-255; or ``keypoints``, float32 (N, K, 2), normalised.
        output: ``heatmaps``, float32 (N, K, H / 4, W / 4); or ``keypoints_xyz``, float32 (N, K, 3), metres in the
            camera's frame, relative to the pelvis.
        skeleton: Name of the order of the K joints.
        crop_padding: Factor by which a person's box is grown before cropping (``pose2d``).
        score_threshold: Joints that score less count as not found.
        normalisation: One of ``NORMALISATIONS`` (``lift3d``).
    """

    name: str
    task: str
    input: TensorSpec
    output: TensorSpec
    skeleton: str
    crop_padding: float = 1.25
    score_threshold: float = 0.2
    normalisation: str | None = None

    @classmethod
    def pose2d(cls, name: str, input_hw: tuple[int, int], skeleton: str) -> ModelSpec:
        """The contract of a top-down heatmap model."""
        h, w = input_hw
        joints = len(get_skeleton(skeleton).joints)
        return cls(
            name=name,
            task="pose2d",
            input=TensorSpec("image", "uint8", (None, h, w, 3)),
            output=TensorSpec("heatmaps", "float32", (None, joints, h // 4, w // 4)),
            skeleton=skeleton,
        )

    @classmethod
    def lift3d(cls, name: str, normalisation: str, skeleton: str = "h36m17") -> ModelSpec:
        """The contract of a single-frame lifting model.

        Raises:
            EdgePoseError: There is no such normalisation or skeleton.
        """
        if normalisation not in NORMALISATIONS:
            raise EdgePoseError(f"unknown normalisation {normalisation!r}; known: {', '.join(NORMALISATIONS)}")
        joints = len(get_skeleton(skeleton).joints)
        return cls(
            name=name,
            task="lift3d",
            input=TensorSpec("keypoints", "float32", (None, joints, 2)),
            output=TensorSpec("keypoints_xyz", "float32", (None, joints, 3)),
            skeleton=skeleton,
            normalisation=normalisation,
        )

    @property
    def input_wh(self) -> tuple[int, int]:
        """Width and height of a crop.

        Raises:
            EdgePoseError: The model takes keypoints.
        """
        if self.task != "pose2d":
            raise EdgePoseError(f"{self.name}: lifts keypoints into space, and a model that takes pictures is needed")
        _, h, w, _ = self.input.shape
        assert h is not None
        assert w is not None
        return w, h

    @property
    def aspect(self) -> float:
        """Crop width / height."""
        return self.input_wh[0] / self.input_wh[1]

    @property
    def joints(self) -> Skeleton:
        """The skeleton itself."""
        return get_skeleton(self.skeleton)

    def to_json(self) -> str:
        """Compact JSON with sorted keys: the same specification is always the same bytes."""
        data = {key: value for key, value in asdict(self).items() if value is not None}
        return json.dumps({"version": _SPEC_VERSION, **data}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, where: str) -> ModelSpec:
        """Read :meth:`to_json`.

        Args:
            text: The JSON.
            where: Named in the error.

        Raises:
            BundleError: The text is no specification that this version understands.
        """
        try:
            data = json.loads(text)
            version = data.pop("version")
            if version != _SPEC_VERSION:
                raise BundleError(
                    f"{where}: model specification version {version}, this edgepose reads {_SPEC_VERSION}: "
                    "use the edgepose that made it, or convert again"
                )
            known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
            spec = cls(**{**known, "input": _tensor(data["input"]), "output": _tensor(data["output"])})
            spec._check()
        except (
            AttributeError,
            AssertionError,
            EdgePoseError,
            KeyError,
            OverflowError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(
                f"{where}: the embedded model specification is damaged ({error}): convert again"
            ) from None
        return spec

    def _check(self) -> None:
        expected = self._lifting() if self.task == "lift3d" else self._picture()
        if (self.input, self.output, self.normalisation) != (expected.input, expected.output, expected.normalisation):
            raise ValueError(f"tensors {self.input}, {self.output} for {len(self.joints.joints)} joints ({self.task})")
        if not (1 <= float(self.crop_padding) <= 4 and 0 <= float(self.score_threshold) < 1):
            raise ValueError("crop_padding or score_threshold out of range")

    def _picture(self) -> ModelSpec:
        """What a 2D model of these sizes has."""
        if self.task != "pose2d" or not all(isinstance(v, int) and 32 <= v <= 4096 for v in self.input.shape[1:3]):
            raise ValueError(f"task {self.task!r} with input {self.input.shape}")
        w, h = self.input_wh
        return ModelSpec.pose2d(self.name, (h, w), self.skeleton)

    def _lifting(self) -> ModelSpec:
        """What a lifting model of this skeleton has."""
        return ModelSpec.lift3d(self.name, str(self.normalisation), self.skeleton)


def _tensor(data: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(str(data["name"]), str(data["dtype"]), tuple(data["shape"]))


@dataclass(frozen=True, eq=False)
class Poses:
    """N people with K joints each, as arrays.

    Attributes:
        keypoints_xy: (N, K, 2) float32, image pixels (pixel centres).
        scores: (N, K) float32, heatmap maxima, about 0-1 in a trained model.
        boxes_xyxy: (N, 4) float32, the boxes that the crops were made from, image pixels.
        skeleton: Name of the joints' order.
        track_ids: (N,) int64, or None where nothing tracks.
        keypoints_xyz: (N, J, 3) float32 metres in the camera's frame (x right, y down, z away), relative to the
            pelvis; NaN for a person of whom too few joints are known; None where nothing lifts.
        skeleton_xyz: Name of the order of those J joints, or None where nothing lifts.
    """

    keypoints_xy: NDArray[np.float32]
    scores: NDArray[np.float32]
    boxes_xyxy: NDArray[np.float32]
    skeleton: str
    track_ids: NDArray[np.int64] | None = None
    keypoints_xyz: NDArray[np.float32] | None = None
    skeleton_xyz: str | None = None

    def __post_init__(self) -> None:
        joints = len(get_skeleton(self.skeleton).joints)
        n = len(self.keypoints_xy)
        shapes = {"keypoints_xy": (n, joints, 2), "scores": (n, joints), "boxes_xyxy": (n, 4), "track_ids": (n,)}
        if (self.keypoints_xyz is None) != (self.skeleton_xyz is None):
            raise EdgePoseError("Poses: keypoints_xyz and skeleton_xyz go together")
        if self.skeleton_xyz is not None:
            shapes["keypoints_xyz"] = (n, len(get_skeleton(self.skeleton_xyz).joints), 3)
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array is None:
                continue
            dtype = np.int64 if name == "track_ids" else np.float32
            array = np.asarray(array, dtype=dtype)
            if array.shape != shape:
                raise EdgePoseError(f"Poses.{name}: expected shape {shape}, got {array.shape}")
            object.__setattr__(self, name, array)

    @classmethod
    def empty(cls, skeleton: str) -> Poses:
        """Nobody."""
        joints = len(get_skeleton(skeleton).joints)
        keypoints, scores, boxes = (np.zeros((0, *shape), np.float32) for shape in ((joints, 2), (joints,), (4,)))
        return cls(keypoints, scores, boxes, skeleton)

    def __len__(self) -> int:
        return len(self.keypoints_xy)

    def __getitem__(self, index: int | slice | NDArray[Any] | list[int]) -> Poses:
        """Some of the people; an integer keeps the axis, so the result is always a Poses."""
        if isinstance(index, (int, np.integer)):
            index = [range(len(self))[index]]
        names = ("keypoints_xy", "scores", "boxes_xyxy", "track_ids", "keypoints_xyz")
        arrays: dict[str, Any] = {name: getattr(self, name) for name in names}
        picked: dict[str, Any] = {name: None if a is None else a[index] for name, a in arrays.items()}
        return replace(self, **picked)

    @property
    def skeleton_row(self) -> Skeleton:
        """The skeleton itself."""
        return get_skeleton(self.skeleton)

    @property
    def instance_scores(self) -> NDArray[np.float32]:
        """(N,) mean over each person's joints that score above 0.2, 0 if none (COCO top-down protocol)."""
        found = self.scores > 0.2
        total = np.where(found, self.scores, 0).sum(axis=1)
        return np.asarray(total / np.maximum(found.sum(axis=1), 1), dtype=np.float32)

    def to_coco(self, image_id: int, category_id: int = 1) -> list[dict[str, Any]]:
        """COCO keypoint results, one row per person; the third value of a joint is its score."""
        rows = []
        for keypoints, scores, total in zip(self.keypoints_xy, self.scores, self.instance_scores, strict=True):
            joints = np.concatenate([keypoints, scores[:, None]], axis=1)
            rows.append(
                {
                    "image_id": int(image_id),
                    "category_id": category_id,
                    "keypoints": [round(float(v), 3) for v in joints.ravel()],
                    "score": float(total),
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain lists for JSON: skeleton and people with box, keypoints [x, y, score] and what else is known.

        A person who cannot be lifted has ``keypoints_xyz`` null.
        """
        people = []
        for i in range(len(self)):
            joints = np.concatenate([self.keypoints_xy[i], self.scores[i, :, None]], axis=1)
            person: dict[str, Any] = {
                "box_xyxy": [round(float(v), 2) for v in self.boxes_xyxy[i]],
                "score": round(float(self.instance_scores[i]), 4),
                "keypoints": [[round(float(x), 2), round(float(y), 2), round(float(s), 4)] for x, y, s in joints],
            }
            if self.track_ids is not None:
                person["track_id"] = int(self.track_ids[i])
            if self.keypoints_xyz is not None:
                person["keypoints_xyz"] = _rounded_or_none(self.keypoints_xyz[i])
            people.append(person)
        lifted = {} if self.skeleton_xyz is None else {"skeleton_xyz": self.skeleton_xyz}
        return {"skeleton": self.skeleton, **lifted, "people": people}


def _rounded_or_none(xyz: NDArray[np.float32]) -> list[list[float]] | None:
    """To a tenth of a millimetre; JSON has no NaN."""
    return [[round(float(v), 4) for v in joint] for joint in xyz] if np.isfinite(xyz).all() else None


class Engine(Protocol):
    """A loaded model on one device. Implementations live in ``runtimes``, one file each.

    Attributes:
        name: Registry name, for instance ``onnxruntime``.
        device: Where it runs: ``cpu``, ``cuda``.
        inputs, outputs: The model's own tensors.
        metadata: Text that the model file carries, the specification among it.
    """

    name: str
    device: str
    metadata: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch.

        Raises:
            EngineError: The engine failed.
        """
        ...

    def placement(self) -> dict[str, int]:
        """How many graph nodes run where, for instance ``{"CPUExecutionProvider": 203}``."""
        ...

    def close(self) -> None:
        """Free the device."""
        ...


@runtime_checkable
class QueuingEngine(Protocol):
    """An engine that has a queue of its own, so that the next batch is there when one ends."""

    def run_async(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        """Start one batch and return what :meth:`result` takes; the feeds may be written to afterwards."""
        ...

    def result(self, pending: Any) -> dict[str, NDArray[Any]]:
        """Wait for a batch and return its answers."""
        ...
