"""What the manifest says of half precision: what was measured, and what stays float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec


@dataclass(frozen=True)
class Float32Part:
    """What stays float32 in a float16 bundle.

    Attributes:
        graph: "unet" (all graphs cut from it) or the name of a graph.
        part: name of the module in the checkpoint; "" is the whole graph.
        reason: why, with what was measured.
    """

    graph: str
    part: str
    reason: str


@dataclass(frozen=True)
class HalfPrecision:
    """How the export made sure that half precision holds the numbers of a model.

    Attributes:
        limit: above it a number stays float32.
        activations: graph -> the largest magnitude between its modules, in float32 on seeded inputs.
        logits: attention layer -> the largest magnitude of q k^T / sqrt(d).
        float32_parts: what stays float32.
        unneeded: what the checkpoint's configuration asks to keep in float32 and the measurement does not.
    """

    limit: Annotated[float, msgspec.Meta(ge=0.0)]
    activations: dict[str, Annotated[float, msgspec.Meta(ge=0.0)]]
    logits: dict[str, Annotated[float, msgspec.Meta(ge=0.0)]]
    float32_parts: tuple[Float32Part, ...]
    unneeded: tuple[Float32Part, ...] = ()
