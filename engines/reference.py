"""Whether a built engine computes what its graph says: ONNX Runtime on the CPU as reference.

Wrong fused kernels have shipped (NVIDIA/TensorRT#4837), so the engine itself is checked, at every profile. The CPU
provider of ONNX Runtime computes half-precision nodes in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.parity import Parity
from freeprompt.contract.session import NumpyArray, Session
from freeprompt.engines.comparison import compare, seeded_inputs


def reference_outputs(
    bundle: Bundle, graph: str, sizes: Mapping[str, int], threads: int | None = None
) -> dict[str, NumpyArray]:
    """Outputs for ``seeded_inputs`` by ONNX Runtime on the CPU.

    Raises:
        BackendError: ONNX Runtime is not installed.
    """
    try:
        from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
    except ImportError as error:  # a Python that has TensorRT and little else
        raise BackendError(
            f"parity of graph {graph} cannot be checked: ONNX Runtime is not installed here. Install onnxruntime"
        ) from error
    session = OnnxRuntimeBackend("cpu", threads).open(bundle, graph)
    outputs = session.run(seeded_inputs(bundle.manifest, graph, sizes))
    return {name: array.numpy() for name, array in outputs.items()}


def session_to_parity(bundle: Bundle, graph: str, session: Session, sizes: Mapping[str, int], runs: int = 3) -> Parity:
    """Compare a session with the reference.

    Args:
        runs: the last one counts; a captured CUDA graph takes over from the second.
    """
    expected = reference_outputs(bundle, graph, sizes)
    inputs = seeded_inputs(bundle.manifest, graph, sizes)
    for _ in range(max(1, runs)):
        got = {name: array.numpy() for name, array in session.run(inputs).items()}
    return compare(", ".join(f"{n} {s}" for n, s in sizes.items()), expected, got)
