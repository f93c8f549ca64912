"""Registered models as rows of data. A row imports its torch file on first build, not before."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgepose.errors import EdgePoseError
from edgepose.skeletons import get_skeleton
from edgepose.types import ModelSpec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "ModelRow", "Published", "get_model"]

_TRANSPOSE_RELEASE = "https://github.com/yangsenius/TransPose/releases/download/Hub/"


@dataclass(frozen=True)
class Published:
    """What the authors report of a checkpoint, and where it is.

    Attributes:
        ap_detected, ap_ground_truth: COCO val2017 AP (points) with detected and with ground-truth boxes.
        gflops: Multiply-adds of one crop, in units of 1e9, as the paper counts them.
        url: Address of the weights.
        sha256: Hex digest of the file, or None where we never had the file to hash.
    """

    ap_detected: float
    ap_ground_truth: float
    gflops: float
    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class ModelRow:
    """One registered model.

    Attributes:
        name: Public name.
        architecture: ``"module:Class"``; the class takes its ``Config`` dataclass.
        skeleton: Name of the joints' order.
        input_hw: Height and width of a crop; None for a model that takes keypoints.
        parameters: Number of torch parameters, as the authors count: with position embedding, without statistics.
        sizes: The remaining fields of ``Config``.
        published: The authors' figures, or None for a model of ours.
        summary: One line for people.
        normalisation: How the keypoints that a lifting model takes are normalised; None for a model of pictures.
        float_modules: Torch modules whose layers no recipe quantizes.
        score_threshold: Joints that score less count as not found.
        widths: Channels in and out of the layers that pruning has made narrower, by torch module.
    """

    name: str
    architecture: str
    skeleton: str
    input_hw: tuple[int, int] | None
    parameters: int
    sizes: Mapping[str, Any] = field(repr=False)
    published: Published | None = None
    summary: str = ""
    normalisation: str | None = None
    float_modules: tuple[str, ...] = ()
    score_threshold: float = 0.2
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)

    @property
    def task(self) -> str:
        """``pose2d`` or ``lift3d``."""
        return self.spec.task

    @property
    def spec(self) -> ModelSpec:
        """The I/O contract of this model's artifacts."""
        if self.input_hw is None:
            return ModelSpec.lift3d(self.name, str(self.normalisation), self.skeleton)
        spec = ModelSpec.pose2d(self.name, self.input_hw, self.skeleton)
        return replace(spec, score_threshold=self.score_threshold)

    def resized(self, input_hw: tuple[int, int]) -> ModelRow:
        """The same model for another crop size (height and width, multiples of 32).

        Raises:
            EdgePoseError: The size does not divide, or the model takes no crops.
        """
        if self.input_hw is None:
            raise EdgePoseError(f"{self.name}: lifts keypoints and has no input size")
        if any(side < 32 or side % 32 for side in input_hw):
            raise EdgePoseError(
                f"input size {input_hw[0]}x{input_hw[1]} does not fit {self.name}: "
                "give height x width in multiples of 32, for instance 256x192"
            )
        return replace(self, input_hw=input_hw)

    def normalised(self, how: str) -> ModelRow:
        """The same lifting model for keypoints that are normalised otherwise.

        Raises:
            EdgePoseError: There is no such normalisation, or the model takes pictures.
        """
        if self.normalisation is None:
            raise EdgePoseError(f"{self.name}: takes pictures and has no normalisation of keypoints")
        ModelSpec.lift3d(self.name, how, self.skeleton)
        return replace(self, normalisation=how)

    @property
    def pruned(self) -> Mapping[str, Any]:
        """What pruning has changed, as JSON values for :meth:`shrunk`; empty for a registered model."""
        sizes = MODELS[self.name].sizes if self.name in MODELS else self.sizes
        changed = {key: value for key, value in self.sizes.items() if sizes.get(key) != value}
        widths = {"widths": {name: list(width) for name, width in self.widths.items()}} if self.widths else {}
        return {**changed, **widths}

    def shrunk(self, config: Mapping[str, Any]) -> ModelRow:
        """The same model with fewer layers, pooled keys and values, or narrower layers.

        Args:
            config: Any of ``layers``, ``kv_pool`` (1, 2 or 4), and ``widths``: [in, out] by torch module. Whether the
                widths fit the layers shows when the model is built, which never takes more memory than this one.

        Raises:
            EdgePoseError: Something else is in it, or it is no smaller model.
        """
        config = dict(config)
        widths = config.pop("widths", {})
        for key, value in config.items():
            allowed = self._allowed(key)
            if type(value) is not int or value not in allowed:
                these = f"one of {', '.join(map(str, allowed))}" if allowed else "not set"
                raise EdgePoseError(f"{self.name}: {key!r} of a pruned model is {these}, not {str(value)[:40]}")
        if not (isinstance(widths, Mapping) and all(map(_is_width, widths.items()))):
            raise EdgePoseError(f"{self.name}: the widths of a pruned model are [in, out] by layer")
        narrower = {name: (int(c_in), int(c_out)) for name, (c_in, c_out) in widths.items()}
        return replace(self, sizes={**self.sizes, **config}, widths=narrower)

    def _allowed(self, key: str) -> tuple[int, ...]:
        """Values of a field of ``Config`` in a model that is pruned."""
        if key == "layers":
            return tuple(range(1, self.sizes["layers"] + 1))
        return (1, 2, 4) if key == "kv_pool" and self.input_hw is not None else ()

    def build(self) -> nn.Module:
        """A torch module with fresh weights, in evaluation mode.

        Raises:
            EdgePoseError: ``widths`` do not fit the model.
        """
        module, _, name = self.architecture.partition(":")
        architecture = getattr(importlib.import_module(module), name)
        model: nn.Module = architecture(architecture.Config(**self._contract(), **self.sizes)).eval()
        if self.widths:
            from edgepose.models.narrow import narrow

            try:
                narrow(model, self.widths)
            except ValueError as error:
                raise EdgePoseError(f"{self.name}: {error}") from None
        return model

    def _contract(self) -> dict[str, Any]:
        """The fields of ``Config`` that follow from what goes in and out."""
        if self.input_hw is None:
            return {"skeleton": self.skeleton}
        return {"joints": len(get_skeleton(self.skeleton).joints), "input_hw": self.input_hw}


def _is_width(row: tuple[Any, Any]) -> bool:
    name, width = row
    return isinstance(name, str) and isinstance(width, (list, tuple)) and [type(side) for side in width] == [int, int]


def _transpose_r(name: str, layers: int, parameters: int, published: Published) -> ModelRow:
    return ModelRow(
        name=name,
        architecture="edgepose.models.transpose:TransPoseR",
        skeleton="coco17",
        input_hw=(256, 192),
        parameters=parameters,
        sizes={"d_model": 256, "feedforward": 1024, "heads": 8, "layers": layers},
        published=published,
        summary=f"ResNet-S stem, {layers} encoder layers",
    )


def _transpose_h(name: str, width: int, layers: int, parameters: int, published: Published) -> ModelRow:
    return ModelRow(
        name=name,
        architecture="edgepose.models.transpose:TransPoseH",
        skeleton="coco17",
        input_hw=(256, 192),
        parameters=parameters,
        sizes={"d_model": 2 * width, "feedforward": 4 * width, "heads": 1, "layers": layers, "width": width},
        published=published,
        summary=f"HRNet-S-W{width} stem, {layers} encoder layers",
    )


def _ampose(name: str, d_model: int, parameters: int) -> ModelRow:
    return ModelRow(
        name=name,
        architecture="edgepose.models.ampose:AMPose",
        skeleton="h36m17",
        input_hw=None,
        parameters=parameters,
        sizes={"d_model": d_model, "layers": 5, "heads": 8},
        summary=f"lifts 17 joints into space: 5 Transformer layers and 5 graph blocks, {d_model} wide",
        normalisation="bbox",
        # Keypoints lie between -1 and 1, a missing one at -10: eight bits would round to 2 % of the box.
        float_modules=("embed", "head"),
    )


def _released(file: str, ap_detected: float, ap_ground_truth: float, gflops: float) -> Published:
    return Published(ap_detected, ap_ground_truth, gflops, _TRANSPOSE_RELEASE + file)


_ROWS = (
    _transpose_r("transpose-r-a3", 3, 5_195_345, _released("tp_r_256x192_enc3_d256_h1024_mh8.pth", 71.7, 73.8, 8.0)),
    _transpose_r("transpose-r-a4", 4, 5_985_105, _released("tp_r_256x192_enc4_d256_h1024_mh8.pth", 72.6, 75.1, 8.9)),
    _transpose_h(
        "transpose-h-s", 32, 4, 8_019_281, _released("tp_h_32_256x192_enc4_d64_h128_mh1.pth", 74.2, 76.1, 10.2)
    ),
    _transpose_h(
        "transpose-h-a4", 48, 4, 17_306_129, _released("tp_h_48_256x192_enc4_d96_h192_mh1.pth", 75.3, 77.5, 17.5)
    ),
    _transpose_h(
        "transpose-h-a6", 48, 6, 17_455_697, _released("tp_h_48_256x192_enc6_d96_h192_mh1.pth", 75.8, 78.1, 21.8)
    ),
    ModelRow(
        name="transpose-r-t",
        architecture="edgepose.models.transpose:TransPoseR",
        skeleton="lsp14",
        input_hw=(128, 96),
        parameters=1_085_102,
        sizes={
            "d_model": 128,
            "feedforward": 256,
            "heads": 4,
            "layers": 3,
            "stem": 32,
            "planes": (32, 64),
            "deconv": 128,
        },
        # Of LSPET's held-out joints 82 % reach it, and 61 % of those are right; 0.2 leaves a third of the joints out.
        score_threshold=0.15,
        summary="starter: half-width stem, 3 encoder layers",
    ),
    _ampose("ampose-s", 128, 1_488_771),
    _ampose("ampose-b", 256, 5_926_659),
)

MODELS: Mapping[str, ModelRow] = MappingProxyType({row.name: row for row in _ROWS})


def get_model(name: str) -> ModelRow:
    """Look a model up by name.

    Raises:
        EdgePoseError: No model has that name.
    """
    try:
        return MODELS[name]
    except KeyError:
        raise EdgePoseError(f"unknown model {name!r}; registered: {', '.join(MODELS)}") from None
