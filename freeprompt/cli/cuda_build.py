"""``freeprompt build --backend cuda``: graphs rewritten for ONNX Runtime's CUDA provider."""

from __future__ import annotations

from typing import TYPE_CHECKING

from freeprompt.cli.stages import Stages
from freeprompt.contract.text import escaped

if TYPE_CHECKING:
    from freeprompt.contract.bundle import Bundle
    from freeprompt.engines.onnxruntime.prepare import Preparation
    from freeprompt.engines.shapes import Shapes


def prepare(bundle: Bundle, shapes: Shapes, graphs: tuple[str, ...], stages: Stages, quiet: bool) -> None:
    """Prepare, check and time; a line for each graph."""
    import onnxruntime

    from freeprompt.contract.errors import BackendError
    from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
    from freeprompt.engines.onnxruntime.library import cuda_problem
    from freeprompt.engines.onnxruntime.prepare import prepare_bundle
    from freeprompt.engines.onnxruntime.prepared_store import CudaStore

    backend = OnnxRuntimeBackend("cuda")
    problem = cuda_problem()
    if problem is not None:  # before a minute of rewriting
        raise BackendError(problem)
    store = CudaStore(bundle, onnxruntime.__version__)
    with stages.stage("build"):
        for preparation in prepare_bundle(bundle, shapes, backend, store, graphs, stages.line):
            if not quiet:
                print(escaped(preparation_to_line(preparation)), flush=True)
    if not quiet:
        print(stages.summary())


def preparation_to_line(preparation: Preparation) -> str:
    """What became of a graph: its operators, how right and how fast it is, or why it runs as exported."""
    metadata = preparation.metadata
    if preparation.refused is not None:
        return f"{metadata.graph} stays as exported: {preparation.refused}"
    worst = max(parity.relative_l2 for parity in metadata.parity)
    exported = sum(timing.exported_ms for timing in metadata.timings)
    prepared = sum(timing.prepared_ms for timing in metadata.timings)
    operators = ", ".join(f"{count} {name}" for name, count in metadata.operators.items()) or "nothing to fuse"
    return (
        f"{preparation.how} {metadata.graph}: {operators}; differs from ONNX Runtime on the CPU by {worst:.1e}; "
        f"{prepared:.3g} ms where it takes {exported:.3g} as exported"
    )
