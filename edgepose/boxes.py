"""People's boxes for each frame, from a JSON file: another detector's answers."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepose.errors import SourceError
from edgepose.geometry import xywh_to_xyxy
from edgepose.sources import IMAGE_SUFFIXES, Frame

__all__ = ["BoxFile"]


class BoxFile:
    """A JSON list of rows ``{"frame": 0 or "name.jpg", "bbox": [x, y, w, h]}``.

    ``frame`` is the frame's number (from 0) or its file name. COCO detection files have ``image_id`` in its place: the
    number that an image's file name is. A row whose ``score`` is below ``min_score`` is dropped.

    Attributes:
        dropped: How many rows had too low a score.
        used: How many boxes have been handed out.
    """

    def __init__(self, path: Path, min_score: float = 0.5) -> None:
        """Read the file.

        Raises:
            SourceError: It is missing or malformed.
        """
        self.dropped = self.used = 0
        self._by_frame: dict[int | str, list[list[float]]] = defaultdict(list)
        self._by_image_id: dict[int, list[list[float]]] = defaultdict(list)
        try:
            for row in json.loads(path.read_text(encoding="utf-8")):
                x, y, w, h = (float(v) for v in row["bbox"])
                if not all(map(math.isfinite, (x, y, w, h))):
                    raise ValueError(f"bbox {row['bbox']}")
                if float(row.get("score", 1)) < min_score or w <= 0 or h <= 0:
                    self.dropped += 1
                elif "frame" in row:
                    self._by_frame[row["frame"] if isinstance(row["frame"], str) else int(row["frame"])].append(
                        [x, y, w, h]
                    )
                else:
                    self._by_image_id[int(row["image_id"])].append([x, y, w, h])
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror})") from None
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise SourceError(
                f"{path}: not a box file ({type(error).__name__}: {error}): it needs a JSON list of "
                '{"frame": number or file name, "bbox": [x, y, w, h]}'
            ) from None

    def of(self, frame: Frame) -> NDArray[np.float64]:
        """Boxes (N, 4) x1, y1, x2, y2 of a frame."""
        rows = self._by_frame.get(frame.index, []) + self._by_frame.get(frame.name, [])
        stem = Path(frame.name).stem
        if Path(frame.name).suffix.lower() in IMAGE_SUFFIXES and stem.isdecimal():
            rows = rows + self._by_image_id.get(int(stem), [])
        self.used += len(rows)
        return xywh_to_xyxy(np.array(rows).reshape(-1, 4))
