"""Launching the same work again and again: captured into a CUDA graph where that works, enqueued where not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from freeprompt.engines.cuda.runtime import CudaRuntime

if TYPE_CHECKING:
    from freeprompt.engines.cuda.api import Graph


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
        self._graph: Graph | None = None
        self.fallback: str | None = None  # why nothing is captured, once that was tried

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def run(self) -> None:
        """Raises whatever ``enqueue`` raises; a failure to capture is not an error."""
        if self._graph is None and self._warm and self._capturing:
            self._capture()
        if self._graph is not None:
            with self._cuda.calls("launch a graph"):
                self._graph.launch(self._cuda.stream)
        else:
            self._enqueue()
            self._warm = True

    def reset(self) -> None:
        """Forget what was captured: an address in it has changed."""
        graph, self._graph, self._warm = self._graph, None, False
        if graph is not None:
            # A launch of it may still be on its way.
            self._cuda.synchronize()
            with self._cuda.calls("destroy a graph"):
                graph.close()

    def _capture(self) -> None:
        with self._cuda.calls("begin a capture"):
            builder = self._cuda.stream.create_graph_builder()
        try:
            # Calls from other threads do not disturb it.
            builder.begin_building("thread_local")
            self._enqueue()
            self._graph = builder.end_building().complete()
        except Exception as error:  # whatever an engine does that cannot be captured
            self._capturing = False
            self.fallback = str(error)
        finally:
            # Ends a capture that is still going on, so that the stream can be used as before; what was wrong with it is
            # known by then.
            with contextlib.suppress(Exception):
                builder.close()
