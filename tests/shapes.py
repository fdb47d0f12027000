"""Shapes of one's own choice to build engines for."""

from __future__ import annotations

from freeprompt.contract.manifest import Manifest
from freeprompt.engines.shapes import Shapes
from freeprompt.runtime.inputs.arguments import size_to_latents
from freeprompt.runtime.plan.shapes import Batch, batches_to_sizes, joined


def shapes_of(manifest: Manifest, *sizes: tuple[int, int], rows: str, ranged: bool = False) -> Shapes:
    """At each of ``sizes``, (width, height) in pixels; ``rows`` as of ``freeprompt build --rows``."""
    batches = [Batch.parse(text) for text in rows.split(",")]
    latents = [size_to_latents(manifest.latents, size) for size in sizes]
    return Shapes(joined(batches_to_sizes(manifest, batches, size) for size in latents), ranged)
