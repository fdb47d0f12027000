"""How much memory a call needs at the least, and how much there is: what cannot fit is refused before it is begun."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from freeprompt.contract.errors import LimitError
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


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that this process could come to hold in all: what is free, what the system gives up, and what it holds.

    What it holds is counted since allocators keep what earlier calls used, for the next: a call that fits is never
    refused, one that does not may be tried. None where the system does not tell (it is not Linux).

    Args:
        root: of the file system with proc/ and sys/.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        system = _table(root / "proc/meminfo")
        held = _table(root / "proc/self/status")["VmRSS:"] * 1024
        swap = system["SwapFree:"] * 1024
        free = [system["MemAvailable:"] * 1024, *_free_in_groups(root)]
        return max(0, min(free)) + swap + held
    return None


def _free_in_groups(root: Path) -> Iterator[int]:
    """What control groups (containers) leave, of this process's group and those around it."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "file")
        elif "memory" in controllers.split(","):
            folder = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
        else:
            continue
        group = folder / path.lstrip("/")
        # In a container the path may be the host's, whose files are not seen: then the nearest that is.
        for place in (group, *group.parents):
            if place != folder and folder not in place.parents:
                break
            with contextlib.suppress(OSError, ValueError, KeyError):
                most, used = (int((place / name).read_text()) for name in names[:2])  # "max" is no number
                # The cache of files is used memory there, and given up when it is wanted.
                yield most - used + _table(place / "memory.stat")[names[2]]


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
