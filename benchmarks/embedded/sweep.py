"""Quality against cost: FPE colour edits at other numbers of steps and fractions of them.

`python -m benchmarks.embedded.sweep --out FILE` writes one JSON file, anew after each setting.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from typing import Any

from benchmarks.embedded import world
from benchmarks.embedded.score import methods
from benchmarks.embedded.scoring.editing import Method
from benchmarks.embedded.scoring.observe import EDITS, Part, Sections, table
from benchmarks.embedded.scoring.pool import Model, observe_all
from freeprompt import Editor
from freeprompt.runtime.plan.records import AUTO, FROM_INVERSION

GUIDANCE = 3.0
STEPS = (5, 10, 15, 25, 50)
"""At fraction 1."""

FRACTIONS = (0.8, 0.4, 0.0)
"""At 25 steps, besides 1."""

KIND = "colour"

Row = dict[str, int | float | str | dict[str, Any]]


def settings() -> list[Method]:
    """One method for each fraction and mode at 25 steps; the first is the default."""
    exact = methods(1.0, GUIDANCE)
    others = [dataclasses.replace(exact["self"], fraction=fraction) for fraction in FRACTIONS]
    return [exact["self"], *others, exact["reused"]]


def parts() -> list[Part]:
    """What is scored, in this order."""
    first, *others = settings()
    by_steps = [Part(EDITS, first, steps, (KIND,)) for steps in STEPS]
    return [*by_steps, *(Part(EDITS, method, 25, (KIND,)) for method in others)]


def cost(editor: Editor, part: Part) -> float:
    """U-Net rows that inversion and one edit of a new picture run; a row that is only recorded stops early and
    counts as its share."""
    method = part.method
    plans = editor.plan(
        "a prompt",
        steps=part.steps,
        guidance=method.guidance,
        replace_fraction=method.fraction,
        replace_layers=[layer + 1 for layer in method.self_layers],
        record=FROM_INVERSION if method.reuse else AUTO,
    )
    return float(sum(plan.rows for plan in plans))


def row(editor: Editor, part: Part, sections: Sections) -> Row:
    """One setting with its cost and its figures."""
    found = table(sections[f"Edits of {KIND}"])
    return {
        "steps": part.steps,
        "fraction": part.method.fraction,
        "guidance": part.method.guidance,
        "record": FROM_INVERSION if part.method.reuse else AUTO,
        "unet_rows": cost(editor, part),
        **{name: dataclasses.asdict(found[name]) for name in ("right", "reached", "IoU", "PSNR of the rest")},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON file")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--cache", type=pathlib.Path, help="folder for inversions, to be used again")
    options = parser.parse_args()
    scored = Model(options.bundle, None, options.threads, options.cache)
    editor = Editor.load(options.bundle, "cpu", threads=options.threads)
    scenes = world.sample_scenes(options.scenes, world.HELD_OUT)
    rows: list[Row] = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for part, sections in observe_all(scored, parts(), scenes, options.processes):
        rows.append(row(editor, part, sections))
        result = {"kind": KIND, "scenes": len(scenes), **scored.described(), "rows": rows}
        unfinished = options.out.with_suffix(".part")
        unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(options.out)


if __name__ == "__main__":
    main()
