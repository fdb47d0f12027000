"""What memory the weights of a bundle take, and how much there is."""

from __future__ import annotations

from dataclasses import dataclass

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.graphs import NEEDED_GRAPHS, RECORD, STEP_RECORDED
from freeprompt.contract.host_memory import free_bytes
from freeprompt.engines.cuda.runtime import CudaRuntime

# What an edit of several prompts opens besides, if the bundle has it: the source is recorded once.
_OF_SEVERAL_PROMPTS = (RECORD, STEP_RECORDED)
# On the CPU ONNX Runtime computes float16 in float32, and keeps weights of convolutions in a second layout. Resident
# memory of a session over its weights as float32, measured with 1.32 on the embedded U-Net: 1.6 in float32, 1.9 to 2.7
# in float16. Of Stable Diffusion 1.5's in float32 it is 1.1, with activations at 256x256.
_MOST = {"float32": 1.6, "float16": 2.7}


@dataclass(frozen=True)
class Footprint:
    """Bytes of weights on disk and in memory, each session having its own; activations come on top.

    Attributes:
        weights: of every graph, each file once.
        least: in memory for an edit by one prompt, as little as it can be.
        most: for one by several prompts, as much as has been seen.
        available: in the place where they go; None: the system does not say.
    """

    weights: int
    least: int
    most: int
    available: int | None

    @property
    def verdict(self) -> str:
        """Whether it fits, as far as weights tell."""
        if self.available is None:
            return "how much is free cannot be told here"
        free = f"{gigabytes(self.available)} are free"
        if self.least > self.available:
            return f"{free}: it does not fit"
        if self.most > self.available:
            return f"{free}: it may not fit by several prompts; --record none keeps to one copy of the U-Net"
        return f"{free}: it fits, as far as weights tell"


def bundle_to_footprint(bundle: Bundle, on_gpu: bool) -> Footprint:
    """The footprint on the CPU, or on the GPU.

    Raises:
        BundleError: a graph that every edit needs is missing.
    """
    sizes = {graph: _weights(bundle, graph) for graph in bundle.manifest.graphs}
    needed = [graph for graph in NEEDED_GRAPHS if bundle.manifest.graph(graph)]
    recording = [graph for graph in _OF_SEVERAL_PROMPTS if graph in sizes]
    precision = bundle.manifest.precision
    wide = 2 if precision == "float16" and not on_gpu else 1
    most = 1.0 if on_gpu else _MOST[precision]
    every = {path: size for files in sizes.values() for path, size in files.items()}
    once = {path: size for graph in needed for path, size in sizes[graph].items()}
    copies = sum(sum(sizes[graph].values()) for graph in (*needed, *recording))
    return Footprint(
        sum(every.values()),
        wide * sum(once.values()),
        round(wide * most * copies),
        _device_memory() if on_gpu else free_bytes(),
    )


def gigabytes(size: int) -> str:
    """ "4.27 GB", "21 MB"."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _weights(bundle: Bundle, graph: str) -> dict[str, int]:
    """Files that a graph keeps its weights in, with their sizes: ONNX names them as plain bytes."""
    own = set(bundle.manifest.graph(graph).files)
    content = bundle.read(bundle.graph_name(graph, fused=True))
    return {
        spec.path: spec.bytes
        for spec in bundle.manifest.files
        if spec.path not in own and spec.path.encode() in content
    }


def _device_memory() -> int | None:
    try:
        return CudaRuntime().memory()[0]
    except BackendError:
        return None
