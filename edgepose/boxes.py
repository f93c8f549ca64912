"""People's boxes for each frame, from a JSON file: another detector's answers."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import SourceError
from edgepose.geometry import xywh_to_xyxy
from edgepose.sources import Frame

__all__ = ["BoxFile"]


class BoxFile:
    """A JSON list of rows ``{"frame": 0 or "name.jpg", "bbox": [x, y, w, h]}``.

    ``frame`` is the frame's number (from 0) or its file name; COCO detection files work too, with ``image_id`` in its
    place (images are then matched by the number that their file name is). A row whose ``score`` is below ``min_score``
    is dropped.
    """

    def __init__(self, path: Path, min_score: float = 0.5) -> None:
        """Read the file.

        Raises:
            SourceError: It is missing or malformed.
        """
        boxes: dict[int | str, list[list[float]]] = defaultdict(list)
        try:
            for row in json.loads(path.read_text(encoding="utf-8")):
                key = row["frame"] if "frame" in row else row["image_id"]
                x, y, w, h = (float(v) for v in row["bbox"])
                if float(row.get("score", 1)) >= min_score and w > 0 and h > 0:
                    boxes[key if isinstance(key, str) else int(key)].append([x, y, w, h])
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror})") from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SourceError(
                f"{path}: not a box file ({type(error).__name__}: {error}): it needs a JSON list of "
                '{"frame": number or file name, "bbox": [x, y, w, h]}'
            ) from None
        self._boxes = dict(boxes)

    def of(self, frame: Frame) -> NDArray[np.float64]:
        """Boxes (N, 4) x1, y1, x2, y2 of a frame."""
        stem = Path(frame.name).stem
        keys: list[int | str] = [frame.name, int(stem) if stem.isdecimal() else frame.index]
        rows = [box for key in keys for box in self._boxes.get(key, [])]
        return xywh_to_xyxy(np.array(rows).reshape(-1, 4))
