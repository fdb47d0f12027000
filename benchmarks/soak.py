"""Many edits over a few inversions: resident memory must not grow once everything has been used.

    python -m benchmarks.soak --bundle B [--edits 500] [--json FILE] [--plot FILE]

The inversions are recorded, edited in turn, and each made anew after every so many edits, since what is dropped must be
given back too.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from freeprompt import Editor
from freeprompt.benchplot import import_pyplot
from freeprompt.clibench import picture
from freeprompt.clibenchmachine import machine, resident_bytes, versions

INVERSIONS = 5
WARM_UP = 100


def soak(bundle: str, edits: int, steps: int, threads: int) -> dict[str, Any]:
    """Resident memory after each edit, and its trend after the warm-up."""
    editor = Editor.load(bundle, "cpu", threads=threads)
    spec = editor.manifest.latents
    image = picture(spec.width, spec.height)
    inversions = [editor.invert(np.roll(image, n, axis=1), steps) for n in range(INVERSIONS)]
    resident = []
    start = time.perf_counter()
    for number in range(edits):
        which = number % INVERSIONS
        if number % 50 == 49:
            inversions[which] = editor.invert(np.roll(image, number, axis=1), steps)
        editor.edit(inversions[which], f"a picture of number {number}", record="exact")
        resident.append(resident_bytes() or 0)
    after = np.asarray(resident[WARM_UP:], float) if edits > WARM_UP else np.asarray(resident, float)
    slope = float(np.polyfit(np.arange(len(after)), after, 1)[0])
    return {
        "edits": edits,
        "inversions": INVERSIONS,
        "steps": steps,
        "seconds": time.perf_counter() - start,
        "warm_up": WARM_UP,
        "after_warm_up_bytes": float(after[0]),
        "last_bytes": float(after[-1]),
        "highest_bytes": float(after.max()),
        "growth_bytes_per_edit": slope,
        "resident_bytes": resident,
    }


def plot(result: dict[str, Any], path: Path) -> None:
    """Resident memory over edits."""
    plt = import_pyplot()
    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    axes.plot([value / 1e6 for value in result["resident_bytes"]], color="#4477aa")
    axes.axvline(result["warm_up"], color="grey", linestyle=":")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"edits, over {result['inversions']} inversions of {result['steps']} steps")
    axes.set_ylabel("resident memory, MB")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--edits", type=int, default=500)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    result = soak(arguments.bundle, arguments.edits, arguments.steps, arguments.threads)
    result |= {"machine": machine(), "versions": versions()}
    print({name: value for name, value in result.items() if name != "resident_bytes"})
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=None) + "\n")
    if arguments.plot:
        plot(result, arguments.plot)


if __name__ == "__main__":
    main()
