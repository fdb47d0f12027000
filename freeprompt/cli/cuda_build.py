"""``freeprompt build --backend cuda``: whether the graphs' forms for ONNX Runtime's CUDA provider may be used here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from freeprompt.cli.stages import Stages
from freeprompt.contract.text import escaped

if TYPE_CHECKING:
    from freeprompt.contract.bundle import Bundle
    from freeprompt.engines.onnxruntime.cuda_check import CudaCheck
    from freeprompt.engines.shapes import Shapes


def check_forms(bundle: Bundle, shapes: Shapes, graphs: tuple[str, ...], stages: Stages, quiet: bool) -> None:
    """Check, time and note; a line for each graph."""
    import onnxruntime

    from freeprompt.contract.errors import BackendError
    from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
    from freeprompt.engines.onnxruntime.cuda_check import check_bundle
    from freeprompt.engines.onnxruntime.cuda_notes import CudaNotes
    from freeprompt.engines.onnxruntime.library import cuda_problem

    for graph in graphs or tuple(shapes.sizes):  # what no GPU could help
        bundle.cuda_name(graph)
    backend = OnnxRuntimeBackend("cuda")
    problem = cuda_problem()
    if problem is not None:
        raise BackendError(problem)
    notes = CudaNotes(bundle, onnxruntime.__version__)
    with stages.stage("build"):
        for check in check_bundle(bundle, shapes, backend, notes, graphs, stages.line):
            if not quiet:
                form = bundle.manifest.graph(check.note.graph).cuda
                print(escaped(check_to_line(check, form.operators if form else {})), flush=True)
    if not quiet:
        print(stages.summary())


def check_to_line(check: CudaCheck, operators: dict[str, int]) -> str:
    """What became of a graph: its operators, how right and how fast it is, or why it runs in its fused form."""
    note = check.note
    if check.refused is not None:
        return f"{note.graph} runs in its fused form: {check.refused}"
    worst = max(parity.relative_l2 for parity in note.parity)
    fused = sum(timing.fused_ms for timing in note.timings)
    cuda = sum(timing.cuda_ms for timing in note.timings)
    counted = ", ".join(f"{count} {name}" for name, count in operators.items()) or "nothing to fuse"
    return (
        f"{check.how} {note.graph}: {counted}; differs from ONNX Runtime on the CPU by {worst:.1e}; "
        f"{cuda:.3g} ms where its fused form takes {fused:.3g}"
    )
