"""AMPose against baselines and its own ablations, on equal budget: MPJPE and P-MPJPE on held-out whole sequences.

    python benchmarks/ampose.py poses_open.npz --epochs 4 --json ampose.json
    python benchmarks/ampose.py poses_open.npz --only alternating,transformer-only,gcn-only

Every row sees the same poses, cameras and noise in the same order, as often, with about the same number of parameters.
The score is that of the averaged weights after the last epoch. ``alternating`` is the registered model's configuration.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgepose.converters.training.lifting import LiftingTask
from edgepose.converters.training.loop import Settings, train
from edgepose.lifting import MISSING
from edgepose.machine import machine
from edgepose.models.ampose import AMPose, AMPoseConfig
from edgepose.types import ModelSpec

FULL = 128
CONFIG = AMPoseConfig("h36m17", d_model=FULL, layers=5, heads=8)


class MeanPose(nn.Module):
    """The mean of all training poses as the camera sees them: what is known without looking."""

    def __init__(self, task: LiftingTask) -> None:
        super().__init__()
        truth = torch.cat([answer for _, answer in task.batches(1, 64)])
        self.mean = nn.Parameter(truth.mean(dim=0))

    def forward(self, keypoints: Tensor) -> Tensor:
        """(N, 17, 2) -> (N, 17, 3)."""
        return self.mean.expand(len(keypoints), -1, -1)


class ResidualMLP(nn.Module):
    """Martinez et al., ICCV 2017: two residual blocks of two layers. Missing joints come as zero, and marked."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.first = self._layer(17 * 3, width, dropout)
        self.blocks = nn.ModuleList(
            nn.Sequential(self._layer(width, width, dropout), self._layer(width, width, dropout)) for _ in range(2)
        )
        self.last = nn.Linear(width, 17 * 3)

    @staticmethod
    def _layer(c_in: int, c_out: int, dropout: float) -> nn.Sequential:
        return nn.Sequential(nn.Linear(c_in, c_out), nn.BatchNorm1d(c_out), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, keypoints: Tensor) -> Tensor:
        """(N, 17, 2) -> (N, 17, 3)."""
        known = (keypoints[..., :1] != MISSING).float()
        x = self.first(torch.cat([keypoints * known, known], dim=-1).flatten(1))
        for block in self.blocks:
            x = x + block(x)
        xyz: Tensor = self.last(x).unflatten(1, (17, 3))
        return xyz - xyz[:, :1]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    what: str
    model: AMPoseConfig | float | None  # a configuration, the dropout of an MLP, or the mean pose
    normalisation: str = "bbox"


ROWS = (
    Row("mean-pose", "no input", None),
    Row("mlp", "residual MLP (Martinez et al. 2017), without dropout", 0.0),
    Row("mlp-dropout", "the same with the paper's dropout of 0.5", 0.5),
    Row("alternating", "AMPose: attention, then plain + residual GCN, 3 groups", CONFIG),
    Row("gcn-first", "other order: GCN, then attention", replace(CONFIG, blocks=("gcn", "attention"))),
    Row("transformer-only", "attention alone", replace(CONFIG, blocks=("attention",))),
    Row("gcn-only", "graph convolutions alone", replace(CONFIG, blocks=("gcn",))),
    Row("groups-4", "with the mirrored joint as a fourth group", replace(CONFIG, groups=4)),
    Row("plain+plain", "GCN block without a residual", replace(CONFIG, gcn="plain+plain")),
    Row("residual+residual", "GCN block with two residuals", replace(CONFIG, gcn="residual+residual")),
    Row("residual", "one graph convolution with a residual", replace(CONFIG, gcn="residual")),
    Row("alternating-screen", "AMPose with keypoints as parts of the picture", CONFIG, "screen"),
)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def build(row: Row, task: LiftingTask, width: int, seed: int) -> nn.Module:
    """The row's model, as near to the alternating one's parameters as its depth, or an MLP's width, allows."""
    torch.manual_seed(seed)
    goal = parameters(AMPose(replace(CONFIG, d_model=width)))
    if row.model is None:
        return MeanPose(task)
    if isinstance(row.model, float):
        return min((ResidualMLP(w, row.model) for w in range(64, 1025, 16)), key=lambda m: abs(parameters(m) - goal))
    given = row.model
    sizes = (replace(given, d_model=width, layers=layers) for layers in range(2, 20))
    return min(map(AMPose, sizes), key=lambda model: abs(parameters(model) - goal))


def measure(row: Row, poses: Path, settings: Settings, width: int) -> Mapping[str, object]:
    task = LiftingTask(poses, ModelSpec.lift3d(row.name, row.normalisation), settings.seed)
    model = build(row, task, width, settings.seed)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "w.pth"
        if row.model is not None:
            train(model, task, out, settings)
            model.load_state_dict(torch.load(out, weights_only=True))
    with torch.inference_mode():
        scores = task.score(model.eval(), most=len(task.held))
    depth = len(model.blocks) if isinstance(model, AMPose) else None
    return {
        "row": row.name,
        "what": row.what,
        "parameters": parameters(model),
        "blocks": depth,
        "train_poses": len(task.train),
        "held_out_poses": len(task.held),
        "scores_mm": scores,
        "seconds": round(time.perf_counter() - start, 1),
    }


def show(result: Mapping[str, object]) -> None:
    scores = result["scores_mm"]
    assert isinstance(scores, dict)
    values = " ".join(f"{scores[name]:10.1f}" for name in ("MPJPE", "P-MPJPE", "MPJPE 1% off", "MPJPE any camera"))
    print(
        f"{result['row']:18} {result['parameters']:10,} {values} {result['seconds']:8} s  {result['what']}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("poses", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=FULL, help="of AMPose; half of it takes a quarter of the time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="rows, by commas")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = Settings(given.epochs, given.batch, given.lr, seed=given.seed)
    rows = [row for row in ROWS if not given.only or row.name in given.only.split(",")]
    print(json.dumps({"machine": machine(), "numpy": np.__version__, "torch": torch.__version__}))
    print(
        f"{given.epochs} epochs, batch {given.batch}, lr {given.lr:g}, seed {given.seed}; millimetres on held-out data"
    )
    print(f"{'row':18} {'parameters':>10} {'MPJPE':>10} {'P-MPJPE':>10} {'1% off':>10} {'any camera':>10}")
    results = []
    for row in rows:
        results.append(measure(row, given.poses, settings, given.width))
        show(results[-1])
        if given.json:
            given.json.write_text(json.dumps({"machine": machine(), "rows": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
