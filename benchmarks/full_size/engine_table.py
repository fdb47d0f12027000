"""What the builds of engines took, as a table."""

from __future__ import annotations

from typing import Any


def engine_table(engines: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown.

    Args:
        engines: as ``benchmarks.full_size.sd15_rtx`` writes them.
    """
    columns = ("graph", "shapes", "seconds", "peak memory, GB", "engine, MB", "warnings")
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for one in engines:
        if "error" in one:
            lines.append(f"| {one['graph']} | {one['kind']} | not built: {one['error']} | | | |")
            continue
        lines.append(
            f"| {one['graph']} | {one['shapes']} | {one['seconds']:.1f} | {one['peak_memory_bytes'] / 1e9:.2f} "
            f"| {one['engine_bytes'] / 1e6:.1f} | {'; '.join(one['warnings']) or 'none'} |"
        )
    return lines
