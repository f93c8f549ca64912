"""Memory and CPU of a long COCO validation: `validate_scale.py BUNDLE COCO.json [--images 5000]`.

The annotated images are listed again and again under new numbers until there are enough. Prints the process's memory
as the run goes on, and how much of its CPU time the engines get. OpenCV keeps to one thread, so that all host work is
on threads whose CPU time is measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2

from edgepose.calibration.datasets.coco import CocoKeypoints
from edgepose.calibration.validate import validate
from edgepose.machine import machine
from edgepose.runtimes.load import load, model_files


def repeated(source: CocoKeypoints, images: int, folder: Path) -> Path:
    """A COCO file with so many images, which are those of ``source`` again and again."""
    content: dict[str, Any] = source.content
    (folder / "images").symlink_to(source.image_root.resolve())
    rows, people = [], []
    for number in range(images):
        image = content["images"][number % len(content["images"])]
        rows.append({**image, "id": number})
        for person in content["annotations"]:
            if person["image_id"] == image["id"]:
                people.append({**person, "id": len(people) + 1, "image_id": number})
    path = folder / "person_keypoints_repeated.json"
    path.write_text(json.dumps({**content, "images": rows, "annotations": people}))
    return path


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    folder = Path(tempfile.mkdtemp())
    try:
        data = CocoKeypoints(repeated(CocoKeypoints(arguments.annotations), arguments.images, folder))
        estimators = {name: load(path) for name, path in model_files(arguments.bundle).items()}
        print(machine())
        print(f"{'images':>8} {'RSS MiB':>8} {'minutes':>8}")
        started = time.perf_counter()

        def progress(done: int, total: int) -> None:
            if done in (1, 50) or done % max(total // 10, 1) == 0:
                print(f"{done:8} {rss_mib():8.0f} {(time.perf_counter() - started) / 60:8.2f}", flush=True)

        baseline = next(name for name in estimators if name.endswith("-fp32"))
        result = validate(estimators, data, baseline=baseline, workers=arguments.workers, progress=progress)
    finally:
        shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    share = 1 - result.host_cpu_seconds / result.cpu_seconds
    print(f"{result.crops} crops of {result.images} images by {', '.join(estimators)}; peak RSS {peak:.0f} MiB")
    print(f"CPU {result.cpu_seconds:.1f} s, of which outside the engines {result.host_cpu_seconds:.1f} s")
    print(f"engines' share of CPU time: {share:.1%}")
    for row in result.rows:
        accuracy = row.accuracy
        assert accuracy is not None
        print(f"{row.variant}: {accuracy.metric} {accuracy.value:.2f}, mean OKS {row.agreement.mean_oks:.4f}")


if __name__ == "__main__":
    main()
