"""When a detector looks for people, and what it saw: in turn with the poses, or aside in a thread of its own."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from edgepose.metrics import Metrics
from edgepose.people import Detector

__all__ = ["Detections", "Lookout"]

Detections = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Boxes (N, 4) float32 x1, y1, x2, y2 in pixels, and scores (N,) float32."""


class Lookout:
    """Lets a detector look every so many frames, and at once when it is needed.

    Args:
        detector: Finds people's boxes.
        every: Frames from one look to the next.
        aside: Whether it looks in a thread of its own, while poses are found in the frames that follow; what it saw
            is then some frames old. Somebody who is searched for is waited for as long as there is nobody else.
        metrics: Times the looks.
    """

    def __init__(self, detector: Detector, every: int, *, aside: bool, metrics: Metrics) -> None:
        self._detector, self._every, self._metrics = detector, every, metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="edgepose-detector") if aside else None
        self._looking: Future[Detections] | None = None
        self._until = 0

    def look(self, frame_bgr: NDArray[np.uint8], *, now: bool, alone: bool) -> Detections | None:
        """What the detector saw since it was last asked, if it has looked; called once for every frame.

        Args:
            frame_bgr: (h, w, 3) uint8, what it would look at.
            now: It should not wait for its turn: somebody was lost.
            alone: Nobody is followed, so there is nothing to do in the meantime.

        Raises:
            EngineError: The detector failed.
        """
        due = now or self._until <= 0
        self._until -= 1
        if self._looking is None and due:
            self._until = self._every - 1
            if self._thread is None:
                return self._detect(frame_bgr)
            self._looking = self._thread.submit(self._detect, frame_bgr.copy())
        if self._looking is None or not (alone or self._looking.done()):
            return None
        seen, self._looking = self._looking.result(), None
        return seen

    def _detect(self, frame_bgr: NDArray[np.uint8]) -> Detections:
        with self._metrics.stage("detect"):
            return self._detector.detect(frame_bgr)

    def close(self) -> None:
        """End the thread, after its last look."""
        if self._thread is not None:
            self._thread.shutdown()
