"""Many edits over a few inversions: resident memory must not grow once everything has been used.

The inversions are recorded, edited in turn, and each made anew after every so many edits, since what is dropped must be
given back too.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from freeprompt import Editor
from freeprompt.bench.machine import resident_bytes
from freeprompt.bench.measure import picture

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
        resident.append(resident_bytes())
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
