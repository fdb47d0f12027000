"""Whether a built engine computes what its graph says: seeded inputs, ONNX Runtime on the CPU as reference.

Wrong fused kernels have shipped (NVIDIA/TensorRT#4837), so the engine itself is checked, at every profile. The CPU
provider of ONNX Runtime computes half-precision nodes in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.manifest import Manifest, TensorSpec
from freeprompt.contract.parity import Parity, compare
from freeprompt.contract.session import NumpyArray, Session
from freeprompt.engines.shapes import Profile

SEED = 20240304


def seeded_inputs(manifest: Manifest, graph: str, sizes: Mapping[str, int]) -> dict[str, NumpyArray]:
    """Inputs of a graph at given sizes, the same everywhere: routes among all rows, guidance as in use, unit noise."""
    rng = np.random.default_rng(SEED)
    spec = manifest.graph(graph)
    return {tensor.name: _values(tensor, manifest, graph, sizes, rng) for tensor in spec.inputs}


def profile_to_sizes(profile: Profile) -> dict[str, int]:
    """The sizes a profile is checked at: its usual ones."""
    return {name: best for name, (_, best, _) in profile.dims.items()}


def reference_outputs(
    bundle: Bundle, graph: str, sizes: Mapping[str, int], threads: int | None = None
) -> dict[str, NumpyArray]:
    """Outputs for ``seeded_inputs`` by ONNX Runtime on the CPU.

    Raises:
        BackendError: ONNX Runtime is not installed.
    """
    try:
        from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
    except ImportError as error:
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


def _values(
    tensor: TensorSpec,
    manifest: Manifest,
    graph: str,
    sizes: Mapping[str, int],
    rng: np.random.Generator,
) -> NumpyArray:
    shape = tuple(d if isinstance(d, int) else sizes[d] for d in tensor.shape)
    name = tensor.name
    if tensor.dtype in ("int32", "int64"):
        limits = {
            "row_latent": sizes.get("latents", 1) + sizes.get("pinned", 0),
            "row_text": sizes.get("texts", 1),
            "map_row": sizes.get("rows", 1) + sizes.get("record_rows", 0),
            "cross_map_row": sizes.get("rows", 1),
            "input_ids": max(manifest.text.bos_token_id, manifest.text.eos_token_id) + 1,
        }
        if name not in limits:
            raise BackendError(f"graph {graph} has an input {name!r} that this freeprompt does not know")
        values = rng.integers(limits[name], size=shape)
        if name == "map_row":
            # Recorded rows exist for the layers that were exported for it; the others know their own rows only.
            own = [not layer.recordable for layer in manifest.layers]
            values[own] %= sizes.get("rows", 1)
        return values.astype(tensor.dtype)
    if name == "timestep":
        return rng.integers(1000, size=shape).astype(tensor.dtype)
    if name in ("latent_scale", "noise_scale"):
        return rng.uniform(0.5, 1.0, shape).astype(tensor.dtype)
    return rng.standard_normal(shape).astype(tensor.dtype)
