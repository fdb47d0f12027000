"""What a kernel, operator or layer is for, by its name: so that profiles of different libraries can be compared."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# In this order: the first that fits. Attention before products (its fused kernels are called gemm too), convolutions
# before products (they are implicit gemms), copies before pointwise (a copying kernel is one of these as well).
KINDS = (
    ("attention", r"mha|fmha|flash|attention(?!s\.|s_|/)|attn_fwd|softmax|sdpa"),
    ("convolution", r"conv(?!ert)|fprop|winograd|wgrad|dgrad|im2col|scudnn"),
    ("normalisation", r"norm|welford|rowwise_?moments"),
    ("copy", r"reformat|copy|memcpy|memset|transpose|permut|nchw|nhwc|concat|(^|[^a-z])cat([^a-z]|$)|slice|gather"
     r"|index_?select|reshape|shuffle|expand|convert|(^|[^a-z])cast|split(?!_?gelu)|unsqueeze|resize|upsample|shape"),
    ("matrix product", r"gemm|matmul|(^|[^a-z])(mm|bmm|addmm|linear|fc)([^a-z]|$)|cutlass|nvjet|xmma|cublas|_dot"),
    ("pointwise", r"pwn|pointwise|elementwise|eltwise|triton_poi|kgen|silu|sigmoid|gelu|swish|bias_?add"
     r"|(^|[^a-z])(add|mul|sub|div|erf|pow|sqrt|exp|sin|cos|relu|tanh|neg|where|clamp)([^a-z]|_|$)"),
)  # fmt: skip
OTHER = "other"
NAMES = (*(name for name, _ in KINDS), OTHER)
_KINDS = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in KINDS)


@dataclass(frozen=True)
class Timed:
    """A layer, operator or kernel: milliseconds of one step, and how often it ran in it.

    ``about`` is what else is known of it (type, kernel); the kind is told from that and the name.
    """

    name: str
    ms: float
    calls: float = 1.0
    about: str = ""


def kind_of(text: str) -> str:
    """The kind that a name speaks of."""
    return next((name for name, pattern in _KINDS if pattern.search(text)), OTHER)


def summarise(timed: Iterable[Timed], top: int = 25) -> dict[str, Any]:
    """Sums by kind, and the longest."""
    found = sorted(timed, key=lambda one: -one.ms)
    kinds = dict.fromkeys(NAMES, 0.0)
    layers = []
    for one in found:
        # What a layer is known to run says more than a name that was made from those of several nodes.
        kind = kind_of(one.about) if one.about else OTHER
        if kind == OTHER:
            kind = kind_of(one.name)
        kinds[kind] += one.ms
        about = {"about": one.about[:200]} if one.about else {}
        layers.append({"name": one.name[:200], **about, "kind": kind, "ms": one.ms, "calls": one.calls})
    return {"total_ms": sum(kinds.values()), "kinds": kinds, "layers": layers[:top], "of": len(layers)}
