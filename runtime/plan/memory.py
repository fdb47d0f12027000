"""How much memory a call needs at the least, and how much there is: what cannot fit is refused before it is begun."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from freeprompt.contract.errors import LimitError
from freeprompt.contract.host_memory import available_bytes
from freeprompt.contract.manifest import Manifest
from freeprompt.runtime.plan.plan import Plan

# Tensors of a layer's tokens x channels that are in memory at once at the widest place of a transformer block: its
# input, and the gated feed-forward's eight times as wide projection beside the four times as wide product.
_WIDEST = 13


def estimate(manifest: Manifest, plans: Sequence[Plan], size: tuple[int, int], on_host: bool) -> int:
    """Bytes of host memory that running plans takes at the least.

    They are the source's latents at every level, the recorded rows, and for each row of the largest evaluation

        itemsize * (13 * max(tokens * channels) + sum(tokens * channels) / 2)

    over the self-attention layers: the widest place of a transformer block, and what half of the layers leave for
    the other half to read (skip connections). Not in it: weights, the autoencoder, what an allocator keeps in reserve.

    Args:
        plans: run one after the other.
        size: (height, width) of the latents.
        on_host: whether evaluations are computed in host memory; else only what waits there counts.
    """
    height, width = size
    steps = max(len(plan.steps) for plan in plans)
    trajectory = (steps + 1) * manifest.latents.channels * height * width * 4
    records = max(plan.total_record_bytes if on_host else plan.host_record_bytes for plan in plans)
    if not on_host:
        return trajectory + records
    layers = [height * width // 4**layer.level * layer.channels for layer in manifest.layers]
    row: int = np.dtype(manifest.precision).itemsize * (_WIDEST * max(layers, default=0) + sum(layers) // 2)
    rows = max(len(step.rows) for plan in plans for step in plan.steps)
    return trajectory + records + rows * row


def check_memory(needed: int, limit: int | None) -> None:
    """Refuse what cannot fit.

    Args:
        needed: bytes, as ``estimate`` gives them.
        limit: bytes; None: what the machine has; where it does not tell, nothing is refused.

    Raises:
        LimitError: with both figures.
    """
    there = available_bytes() if limit is None else limit
    if there is not None and needed > there:
        source = "that this process can have" if limit is None else "allowed (memory_bytes)"
        raise LimitError(
            f"this needs at least {needed / 1e9:.2f} GB of memory, of {there / 1e9:.2f} GB {source}; use a smaller "
            "size, fewer steps or rows, or less for records (record_bytes)"
        )
