"""How much memory of the machine this process can come to have, as the system and its containers allow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def free_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that this process can have beside what it holds, without swapping; None where the system does not tell.

    Args:
        root: of the file system with proc/self/cgroup and sys/fs/cgroup.
    """
    import psutil  # here: `freeprompt --help` must not pay for it

    try:
        return max(0, min([psutil.virtual_memory().available, *_free_in_groups(root)]))
    except (psutil.Error, OSError, ValueError, RuntimeError):
        return None


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that this process could come to hold in all: what is free, what can be swapped out, and what it holds.

    What it holds is counted since allocators keep what earlier calls used, for the next: a call that fits is never
    refused, one that does not may be tried. None where the system does not tell.

    Args:
        root: of the file system with proc/self/cgroup and sys/fs/cgroup.
    """
    import psutil

    free = free_bytes(root)
    try:
        return None if free is None else free + psutil.swap_memory().free + psutil.Process().memory_info().rss
    except (psutil.Error, OSError, ValueError, RuntimeError):
        return None


def _free_in_groups(root: Path) -> Iterator[int]:
    """What control groups (containers of Linux) leave, of this process's group and those around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # another system
        lines = []
    for line in lines:
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
