"""Rows of figures as JSON files, and all of them as Markdown."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Any

from benchmarks.embedded import figures
from benchmarks.embedded.observe import Table

SECTIONS = ("Generation", "Reconstruction", "Edits of colour", "Edits of shape", "Edits of background")
"""In the order of the report; others follow by name."""


def cell(name: str, figure: figures.Figure) -> str:
    """One cell of a Markdown table: value and 95 % interval."""
    if name == "IoU" or "L2" in name:
        return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"
    if name.startswith("PSNR"):
        return f"{figure.value:.1f} dB [{figure.low:.1f}, {figure.high:.1f}]"
    return f"{100 * figure.value:.1f} % [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def markdown(rows: dict[str, Table]) -> str:
    """A Markdown table of named rows that have the same columns; the first column counts scenes."""
    columns = list(next(iter(rows.values())))
    lines = ["| | scenes | " + " | ".join(columns) + " |", "| --- |" + " --- |" * (len(columns) + 1)]
    for name, table in rows.items():
        cells = [str(table[columns[0]].count), *(cell(column, table[column]) for column in columns)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def keep(out: pathlib.Path, section: str, row: str, steps: int, table: Table, scored: dict[str, str]) -> pathlib.Path:
    """Writes one row's figures to a file of its own; the file is the old or the new one.

    Args:
        out: folder; made if it is not there.
        section: heading of the table.
        row: name in the table.
        steps: denoising steps.
        table: the figures.
        scored: what was scored: which weights, through what.
    """
    name = re.sub(r"[^a-z0-9]+", "-", f"{section} {row} {steps}".lower()).strip("-")
    figures_of = {column: dataclasses.asdict(figure) for column, figure in table.items()}
    entry = {"section": section, "row": row, "steps": steps, **scored, "figures": figures_of}
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def gather(out: pathlib.Path) -> str:
    """All rows that were kept in a folder, as Markdown."""
    sections: dict[str, dict[str, Table]] = {}
    for path in sorted(out.glob("*.json")):
        entry: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        table = {name: figures.Figure(**values) for name, values in entry["figures"].items()}
        row = f"{entry['row']}, {entry['steps']} steps"
        sections.setdefault(entry["section"], {})[row] = table
    known = [name for name in SECTIONS if name in sections]
    order = known + sorted(sections.keys() - known)
    return "\n".join(f"### {name}\n\n{markdown(sections[name])}" for name in order)
