"""Launching the same work again and again: captured into a CUDA graph where that works, enqueued where not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from freeprompt.engines.cuda.runtime import CudaRuntime


class Launcher:
    """Runs ``enqueue``: plainly the first time (libraries allocate and load kernels then), captured from the second on.

    Args:
        cuda: the runtime on whose stream ``enqueue`` works.
        enqueue: enqueues the work, always with the same addresses.
        capture: False always enqueues.
    """

    def __init__(self, cuda: CudaRuntime, enqueue: Callable[[], None], capture: bool = True) -> None:
        self._cuda = cuda
        self._enqueue = enqueue
        self._capturing = capture
        self._warm = False
        self._graph: Any | None = None
        self.fallback: str | None = None  # why nothing is captured, once that was tried

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def run(self) -> None:
        """Raises whatever ``enqueue`` raises; a failure to capture is not an error."""
        if self._graph is None and self._warm and self._capturing:
            self._capture()
        if self._graph is not None:
            self._cuda.launch(self._graph)
        else:
            self._enqueue()
            self._warm = True

    def reset(self) -> None:
        """Forget what was captured: an address in it has changed."""
        graph, self._graph, self._warm = self._graph, None, False
        if graph is not None:
            # A launch of it may still be on its way.
            self._cuda.synchronize()
            self._cuda.destroy_graph(graph)

    def _capture(self) -> None:
        try:
            self._cuda.begin_capture()
            self._enqueue()
            self._graph = self._cuda.end_capture()
        except Exception as error:  # whatever an engine does that cannot be captured
            self._cuda.abort_capture()
            self._capturing = False
            self.fallback = str(error)
