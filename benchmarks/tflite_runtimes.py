"""The same TFLite files on several runtimes: `tflite_runtimes.py --make-environments BUNDLE_OR_FILE ...`.

Each runtime gets an environment of its own in a temporary folder, made with your pip (nothing is installed without
--make-environments): tflite-runtime 2.14.0 with numpy 1, and two ai-edge-litert versions. tflite-runtime has wheels up
to Python 3.11: give such an interpreter with --python. All run the same crops of the sample clip; answers are compared
with those of the first runtime that runs the file. Times are medians of single crops, one runtime after the other, not
interleaved: they tell orders of magnitude.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepose.assets import SAMPLE_CLIP
from edgepose.calibration.agreement import Comparison
from edgepose.cli._console import print_table
from edgepose.machine import machine
from edgepose.preprocess import crop
from edgepose.runtimes.load import load_file
from edgepose.runtimes.tflite_file import read_tflite
from edgepose.sources import open_source
from edgepose.types import SPEC_KEY, ModelSpec

ROOT = Path(__file__).parent.parent
RUNTIMES = {
    "ai-edge-litert 2.3.0": ["ai-edge-litert==2.3.0"],
    "ai-edge-litert 1.4.0": ["ai-edge-litert==1.4.0"],
    "tflite-runtime 2.14.0": ["tflite-runtime==2.14.0", "numpy<2"],
}
COMMON = ["click", "opencv-python-headless", "rich"]
CROPS = 24

WORKER = """
import json, sys, time
import numpy as np
from pathlib import Path
from edgepose.errors import EdgePoseError
from edgepose.runtimes.load import load_file
model, crops, answers = map(Path, sys.argv[1:])
image = np.load(crops)
try:
    estimator = load_file(model, threads=1)
    heatmaps = estimator.heatmaps(image)
    np.save(answers, heatmaps)
    times = []
    for i in range(len(image)):
        start = time.perf_counter()
        estimator.heatmaps(image[i : i + 1])
        times.append(1e3 * (time.perf_counter() - start))
    print(json.dumps({"ms": float(np.median(times)), "placement": estimator.engine.placement()}))
except EdgePoseError as error:
    print(json.dumps({"error": " ".join(str(error).split())}))
"""


def make_environment(folder: Path, packages: list[str], python: str) -> Path:
    """A fresh environment's interpreter."""
    if Path(python).resolve() == Path(sys.executable).resolve():
        venv.create(folder, with_pip=True)
    else:
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
    interpreter = folder / "bin" / "python"
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *packages, *COMMON], check=True)
    return interpreter


def files_of(paths: list[Path]) -> list[Path]:
    """The .tflite files among the arguments, and in the bundles among them."""
    return [file for path in paths for file in (sorted(path.glob("*.tflite")) if path.is_dir() else [path])]


def sample_crops(file: Path) -> NDArray[np.uint8]:
    """Crops of the sample clip's person, found with the model itself."""
    estimator = load_file(file)
    frames = [frame.image_bgr for frame in open_source(str(SAMPLE_CLIP))]
    chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, CROPS).astype(int)]
    parts = [crop(frame, estimator.best_region(frame)[0], estimator.spec.input_wh) for frame in chosen]
    return np.concatenate(parts)


def spec_of(file: Path) -> ModelSpec:
    return ModelSpec.from_json(read_tflite(file).text()[SPEC_KEY], str(file))


def compare(file: Path, interpreters: dict[str, Path], folder: Path) -> list[list[object]]:
    """One row per runtime."""
    crops = sample_crops(file)
    np.save(folder / "crops.npy", crops)
    told, answers = {}, {}
    for name, interpreter in interpreters.items():
        out = folder / "answers.npy"
        out.unlink(missing_ok=True)
        command = [str(interpreter), "-c", WORKER, str(file), str(folder / "crops.npy"), str(out)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        told[name] = json.loads(lines[-1]) if lines else {"error": (done.stderr.splitlines() or ["crashed"])[-1]}
        if out.exists():
            answers[name] = np.load(out)
    agreements = {}
    if answers:
        comparison = Comparison(spec_of(file), tuple(answers), next(iter(answers)))
        comparison.add(answers, crops, tuple(map(str, range(len(crops)))))
        agreements = comparison.result()
    rows: list[list[object]] = []
    for name, facts in told.items():
        if name not in agreements:
            rows.append([file.name, name, *[None] * 5, facts.get("error")])
            continue
        reference, mine = (
            next(iter(answers.values())).ravel().astype(np.float64),
            answers[name].ravel().astype(np.float64),
        )
        cosine = float(reference @ mine / (np.linalg.norm(reference) * np.linalg.norm(mine)))
        agreement = agreements[name]
        places = ", ".join(f"{count} {place}" for place, count in facts["placement"].items())
        figures = (f"{cosine:.6f}", f"{agreement.mean_oks:.4f}", f"{agreement.p95_shift_px:.2f}")
        rows.append([file.name, name, *figures, f"{agreement.max_abs_error:.1e}", f"{facts['ms']:.1f}", places])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+", help="bundles, or .tflite files with a specification")
    parser.add_argument("--make-environments", action="store_true", help="make environments with pip; needed")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environments")
    arguments = parser.parse_args()
    files = files_of(arguments.paths)
    if not files:
        parser.error("no .tflite file there")
    if not arguments.make_environments:
        parser.error(
            f"this makes {len(RUNTIMES)} environments with pip in a temporary folder: give --make-environments"
        )
    with tempfile.TemporaryDirectory(prefix="edgepose-") as folder:
        interpreters = {
            name: make_environment(Path(folder) / str(i), packages, arguments.python)
            for i, (name, packages) in enumerate(RUNTIMES.items())
        }
        rows = [row for file in files for row in compare(file, interpreters, Path(folder))]
    columns = ("<file", "<runtime", "cosine", "OKS", "p95 px", "max error", "ms", "<where, or why not")
    caption = f"{CROPS} crops of the sample clip, against the first runtime; 1 thread; {machine()['cpu']}"
    print_table("the same files on several runtimes", columns, rows, caption)


if __name__ == "__main__":
    main()
