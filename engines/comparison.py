"""Seeded inputs of every graph, and how far results may differ that another library or device computes from them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from freeprompt.contract import parity
from freeprompt.contract.errors import BackendError
from freeprompt.contract.manifest import Manifest, TensorSpec
from freeprompt.contract.parity import Parity
from freeprompt.contract.session import NumpyArray
from freeprompt.engines.shapes import Profile

# Bounds on the relative L2 difference. float32: other orders of summation and Winograd convolutions, TF32 switched off.
# float16: the export allows 2e-2 against float32 PyTorch, and the engine rounds elsewhere than the reference. A wrong
# kernel gives 0.1 and more.
THRESHOLDS = {"float32": 1e-3, "float16": 2e-2}
SEED = 20240304


def seeded_inputs(manifest: Manifest, graph: str, sizes: Mapping[str, int]) -> dict[str, NumpyArray]:
    """Inputs of a graph at given sizes, the same everywhere: routes among all rows, guidance as in use, unit noise."""
    rng = np.random.default_rng(SEED)
    spec = manifest.graph(graph)
    return {tensor.name: _values(tensor, manifest, graph, sizes, rng) for tensor in spec.inputs}


def small_sizes(manifest: Manifest, graph: str) -> dict[str, int]:
    """The least sizes at which a graph mixes rows, and height is not width."""
    latents = manifest.latents
    height, width = latents.multiple, 2 * latents.multiple
    known = {
        **{"rows": 2, "latents": 1, "pinned": 1, "texts": 2, "record_rows": 1, "images": 1},
        **{"height": height, "width": width},
        **{"image_height": height * latents.scale, "image_width": width * latents.scale},
        **{f"tokens_{layer.level}": height * width // 4**layer.level for layer in manifest.layers},
    }
    names = {d for tensor in manifest.graph(graph).inputs for d in tensor.shape if isinstance(d, str)}
    unknown = names - known.keys()
    if unknown:
        raise BackendError(f"graph {graph} has a dimension {min(unknown)!r} that this freeprompt does not know")
    return {name: known[name] for name in sorted(names)}


def profile_to_sizes(profile: Profile) -> dict[str, int]:
    """The sizes a profile is checked at: its usual ones."""
    return {name: best for name, (_, best, _) in profile.dims.items()}


def compare(shapes: str, expected: Mapping[str, NumpyArray], got: Mapping[str, NumpyArray]) -> Parity:
    """As ``freeprompt.contract.parity.compare``. Raises BackendError: other outputs or shapes."""
    try:
        return parity.compare(shapes, expected, got)
    except ValueError as error:
        raise BackendError(f"the engine differs from the graph: {error}") from error


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
