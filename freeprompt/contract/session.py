"""The seam between the runtime and whatever executes a graph.

A ``Backend`` opens the graphs of a bundle as ``Session`` objects and owns the device's memory; a ``Session`` maps
named arrays to named arrays. An ``Array`` stays where the backend keeps it: the runtime passes a step's output to
the next step without looking at it, so that on a GPU latents never cross the bus. Small tables that change at each
step are given as NumPy arrays; the backend moves them as it likes.

An array is immutable: a session never writes again into what it has returned, however its buffers are organised, and
the memory is free to be used again when the last reference is gone. Arrays may be passed between the sessions of one
backend, not between backends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.manifest import TensorSpec

NumpyArray = npt.NDArray[Any]


@runtime_checkable
class Array(Protocol):
    """A tensor in the backend's memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def nbytes(self) -> int: ...

    def numpy(self) -> NumpyArray:
        """The values in host memory; treat them as read-only. On a GPU this waits for the device and copies."""
        ...


Feed = Array | NumpyArray


class Session(Protocol):
    """One graph, ready to run. Not for use from two threads at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        """Execute. All inputs must be given, with the names, dtypes and ranks of ``inputs``.

        On a device that works asynchronously this only enqueues; ``Array.numpy`` waits.

        Raises:
            BackendError: a feed does not fit, a shape is outside what the engine takes, or the device failed.
        """
        ...


class Backend(Protocol):
    """Opens sessions of one bundle on one device."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str: ...

    def open(self, bundle: Bundle, graph: str) -> Session:
        """Raises BundleError (no such graph) or BackendError (it cannot be loaded here)."""
        ...

    def upload(self, array: NumpyArray) -> Array:
        """A copy of ``array`` in the backend's memory."""
        ...


@runtime_checkable
class SpillingBackend(Protocol):
    """What a backend offers whose device memory is scarcer than the host's. Optional: see ``spill`` and ``fetch``."""

    def spill(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The same arrays in host memory, from where the device copies. Only enqueues; the caller drops the others."""
        ...

    def fetch(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The same arrays in device memory, to be used at once: the copy runs beside what is enqueued already."""
        ...


@dataclass(frozen=True)
class HostArray:
    """An array in host memory."""

    values: NumpyArray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def numpy(self) -> NumpyArray:
        return self.values


def spill(backend: Backend, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays in host memory, by whatever means the backend has."""
    if isinstance(backend, SpillingBackend):
        return backend.spill(arrays)
    return {name: HostArray(array.numpy()) for name, array in arrays.items()}


def fetch(backend: Backend, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays that ``spill`` gave, or another backend's, in the memory of this one."""
    if isinstance(backend, SpillingBackend):
        return backend.fetch(arrays)
    return {name: backend.upload(array.numpy()) for name, array in arrays.items()}


def check_feeds(graph: str, specs: tuple[TensorSpec, ...], feeds: Mapping[str, Feed]) -> dict[str, int]:
    """Check feeds against a graph's inputs and bind its named dimensions.

    Returns:
        the size of each named dimension.

    Raises:
        BackendError: a name is missing or unknown, or a dtype, rank or dimension does not fit.
    """
    names = {spec.name for spec in specs}
    if feeds.keys() != names:
        missing, unknown = sorted(names - feeds.keys()), sorted(feeds.keys() - names)
        raise BackendError(f"graph {graph}: inputs missing {missing}, unknown {unknown}")
    sizes: dict[str, int] = {}
    for spec in specs:
        feed = feeds[spec.name]
        if feed.dtype != np.dtype(spec.dtype):
            raise BackendError(f"graph {graph}: {spec.name} is {feed.dtype}, expected {spec.dtype}")
        fits = len(feed.shape) == len(spec.shape)
        for size, dim in zip(feed.shape, spec.shape):
            expected = dim if isinstance(dim, int) else sizes.setdefault(dim, size)
            fits = fits and size == expected and size > 0
        if not fits:
            raise BackendError(
                f"graph {graph}: {spec.name} has shape {feed.shape}, expected {spec} "
                f"with {', '.join(f'{k}={v}' for k, v in sizes.items())}"
            )
    return sizes


def check_results(
    graph: str, specs: tuple[TensorSpec, ...], results: Mapping[str, Array], sizes: Mapping[str, int]
) -> None:
    """Check what a graph gave against its outputs in the manifest; looks at shapes, and waits for no device.

    Args:
        sizes: of the dimensions that the inputs bind, from ``check_feeds``; the others have to agree with each other.

    Raises:
        BackendError: a name is missing or unknown, or a dtype, rank or dimension is another.
    """
    names = {spec.name for spec in specs}
    if results.keys() != names:
        missing, unknown = sorted(names - results.keys()), sorted(results.keys() - names)
        raise BackendError(f"graph {graph} gave other outputs than the manifest says: missing {missing}, new {unknown}")
    known = dict(sizes)
    for spec in specs:
        shape, dtype = results[spec.name].shape, results[spec.name].dtype
        fits = dtype == np.dtype(spec.dtype) and len(shape) == len(spec.shape)
        for size, dim in zip(shape, spec.shape):
            expected = dim if isinstance(dim, int) else known.setdefault(dim, size)
            fits = fits and size == expected
        if not fits:
            dims = ",".join(str(known.get(str(dim), dim)) for dim in spec.shape)
            raise BackendError(
                f"graph {graph} gave {spec.name} as {dtype} of shape {tuple(shape)}, the manifest says {spec.dtype} "
                f"[{dims}]; export the checkpoint again"
            )


def check_signature(graph: str, side: str, found: tuple[TensorSpec, ...], expected: tuple[TensorSpec, ...]) -> None:
    """Compare the tensors of an opened graph with the manifest's: names, dtypes and ranks.

    Args:
        side: "inputs" or "outputs", for the message.

    Raises:
        BackendError: they differ.
    """
    kinds = [{s.name: (s.dtype, len(s.shape)) for s in specs} for specs in (found, expected)]
    if kinds[0] != kinds[1] or len(found) != len(expected):
        raise BackendError(
            f"graph {graph} has {side} {[str(s) for s in found]}, the manifest says {[str(s) for s in expected]}"
        )
