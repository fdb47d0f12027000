"""Rows of figures as a JSON file, and all of them as Markdown."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from benchmarks.embedded.scoring import figures
from benchmarks.embedded.scoring.observe import Table

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


def keep(path: pathlib.Path, section: str, row: str, steps: int, table: Table, scored: dict[str, str]) -> None:
    """Adds one row's figures to a file, in place of those it had; the file is the old or the new one.

    Args:
        path: JSON file; made if it is not there, with its folder.
        section: heading of the table.
        row: name in the table.
        steps: denoising steps.
        table: the figures.
        scored: what was scored: which weights, through what.
    """
    figures_of = {column: dataclasses.asdict(figure) for column, figure in table.items()}
    entries = {_key(entry): entry for entry in _read(path)}
    entry = {"section": section, "row": row, "steps": steps, **scored, "figures": figures_of}
    entries[_key(entry)] = entry
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps([entries[key] for key in sorted(entries)], indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _key(entry: dict[str, Any]) -> tuple[str, str, int]:
    return entry["section"], entry["row"], entry["steps"]


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return entries


def gather(path: pathlib.Path) -> str:
    """All rows that were kept in a file, as Markdown."""
    sections: dict[str, dict[str, Table]] = {}
    for entry in _read(path):
        table = {name: figures.Figure(**values) for name, values in entry["figures"].items()}
        row = f"{entry['row']}, {entry['steps']} steps"
        sections.setdefault(entry["section"], {})[row] = table
    known = [name for name in SECTIONS if name in sections]
    order = known + sorted(sections.keys() - known)
    return "\n".join(f"### {name}\n\n{markdown(sections[name])}" for name in order)
