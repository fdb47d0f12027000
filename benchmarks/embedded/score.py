"""Scores a model of the world with the oracle: generation, reconstruction and edits.

`python -m benchmarks.embedded.score --out FOLDER` scores the shipped bundle by the runtime, or with
`--checkpoint FOLDER` a pipeline folder by the literal reference: each row goes to
`FOLDER/held-out.json` as soon as it is done, all rows as Markdown to `FOLDER/scores.md`, and a
contact sheet. With `--validation` the rows go to `FOLDER/validation.json`, and `scores.md` stays as
it is.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from benchmarks.embedded import world
from benchmarks.embedded.scoring import sheet
from benchmarks.embedded.scoring.editing import ALL_LAYERS, Method
from benchmarks.embedded.scoring.observe import DIFFERENCE, EDITS, GENERATION, RECONSTRUCTION, Part, table
from benchmarks.embedded.scoring.pool import Model, observe_all
from benchmarks.embedded.scoring.tables import gather, keep
from benchmarks.embedded.world import KINDS


def methods(fraction: float = 1.0, guidance: float = 3.0) -> dict[str, Method]:
    """The methods of the published table by short name, all at the same guidance."""
    none: tuple[int, ...] = ()
    return {
        "none": Method("no replacement", guidance=guidance),
        "cross": Method("cross-attention", none, ALL_LAYERS, fraction, guidance),
        "both": Method("self- and cross-attention", ALL_LAYERS, ALL_LAYERS, fraction, guidance),
        "self": Method("self-attention (FPE)", ALL_LAYERS, none, fraction, guidance),
        "reused": Method("self-attention, record=inversion", ALL_LAYERS, none, fraction, guidance, reuse=True),
    }


PARTS = ("reconstruction", "self", "none", "cross", "generation", "reused", "difference", "both", "sheet")
"""All that is scored."""


def parts_of(names: Sequence[str], kinds: tuple[str, ...], steps: int, fraction: float, guidance: float) -> list[Part]:
    """The named parts; ValueError for an unknown name. "sheet" is none: see `main`."""
    known = methods(fraction, guidance)
    out = []
    for name in names:
        if name not in PARTS:
            raise ValueError(f"unknown part {name!r}; known are {', '.join(PARTS)}")
        if name == "generation":
            out.append(Part(GENERATION, known["self"], steps))
        elif name == "reconstruction":
            out.append(Part(RECONSTRUCTION, known["none"], steps))
        elif name == "difference":
            out.append(Part(DIFFERENCE, known["reused"], steps, ("colour",)))
        elif name != "sheet":
            out.append(Part(EDITS, known[name], steps, kinds))
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=pathlib.Path, help="score it by the literal reference")
    parser.add_argument("--bundle", default="demo", help='score this bundle ("demo": the shipped) by the runtime')
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS), help="in this order, some of: %(default)s")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of edits: %(default)s")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--cache", type=pathlib.Path, help="folder for inversions, to be used again")
    parser.add_argument("--validation", action="store_true", help="not the held-out scenes")
    options = parser.parse_args()
    kinds = tuple(options.kinds.split(","))
    names = options.parts.split(",")
    try:
        parts = parts_of(names, kinds, options.steps, options.fraction, options.guidance)
    except ValueError as error:
        parser.error(str(error))
    scored = Model(options.bundle, options.checkpoint, options.threads, options.cache)
    described = scored.described()
    path = options.out / ("validation.json" if options.validation else "held-out.json")
    scenes = world.sample_scenes(options.scenes, world.VALIDATION if options.validation else world.HELD_OUT)
    for part, sections in observe_all(scored, parts, scenes, options.processes):
        for section, outcomes in sections.items():
            keep(path, section, part.row, part.steps, table(outcomes), described)
        if not options.validation:
            (options.out / "scores.md").write_text(gather(path), encoding="utf-8")
    if "sheet" in names:
        shown = list(methods(options.fraction, options.guidance).values())
        options.out.mkdir(parents=True, exist_ok=True)
        sheet.edits(scored.open(), scenes[:8], options.steps, shown).save(options.out / "sheet.png")


if __name__ == "__main__":
    main()
