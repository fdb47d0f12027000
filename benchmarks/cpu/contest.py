"""freeprompt against peers that do the same work to the same output, alternating in one process on the same threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.peers.literal import LiteralReference, open_pipeline
from benchmarks.peers.torch_editor import torch_editor
from freeprompt import Editor
from freeprompt.bench.measure import picture
from freeprompt.bench.statistics import summarise
from freeprompt.runtime.inputs.image import image_to_tensor, open_image

PROMPTS = (
    "a red circle on a gray background",
    "a blue star on a white background",
    "a green square on a black background",
    "a yellow heart on a gray background",
)
GUIDANCE, FRACTION = 7.5, 0.8
# Rounds in which four prompts take part: the literal reference takes 900 rows for them.
FOUR = 2
Numbers = np.ndarray[Any, Any]


@dataclass
class Contender:
    """One way of doing some work: latents for comparison, and its times.

    Attributes:
        rows: of the U-Net that it evaluates.
        like: contender whose final latents it must equal, if any.
        rounds: takes part in so many rounds at most.
    """

    name: str
    rows: float
    run: Callable[[], Numbers]
    like: str = ""
    rounds: int = 1000
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    latents: Numbers | None = None


# What the report compares: (title, slow, fast).
RATIOS = (
    ("first edit / literal reference", "literal: whole edit", "freeprompt: first edit, recorded"),
    ("first edit (one engine) / literal reference", "literal: whole edit", "freeprompt: first edit, one engine"),
    ("further edit / literal reference, whole edit", "literal: whole edit", "freeprompt: further edit"),
    ("further edit / literal reference that keeps its inversion", "literal: further edit", "freeprompt: further edit"),
    ("four prompts / literal reference", "literal: four prompts", "freeprompt: four prompts"),
    ("same plan: ONNX Runtime / torch, fused attention", "torch: same plan", "freeprompt: first edit, one engine"),
    ("further edit / diffusers' generation (the floor)", "diffusers: generation", "freeprompt: further edit"),
)


def contenders(checkpoint: Path, editor: Editor, steps: int) -> list[Contender]:
    """All of them, on one picture."""
    latents = editor.manifest.latents
    image = picture(latents.width, latents.height)
    pixels = image_to_tensor(open_image(image))
    layers = editor.manifest.replaced_layers
    literal = LiteralReference(open_pipeline(checkpoint))
    in_torch = torch_editor(editor.bundle, checkpoint)
    floor = open_pipeline(checkpoint)
    settings: dict[str, Any] = {"guidance": GUIDANCE, "replace_fraction": FRACTION}
    theirs: dict[str, Any] = {"guidance": GUIDANCE, "fraction": FRACTION, "layers": layers}
    kept = editor.invert(image, steps)
    editor.edit(kept, PROMPTS[0], record="exact", **settings)
    levels = literal.invert(literal.encode(pixels), steps)

    def literal_edit(prompts: Sequence[str], again: bool) -> Numbers:
        source = literal.invert(literal.encode(pixels), steps) if again else levels
        out = literal.edit(source, prompts, **theirs)
        literal.decode(out)
        return out.numpy()

    def ours(prompts: Sequence[str], record: str, again: bool, by: Editor = editor) -> Numbers:
        source = by.invert(image, steps) if again else kept
        # What is known of these prompts is forgotten: the peers encode them each time.
        by.pipeline._embeddings.clear()
        out = by.edit_latents(source, prompts, record=record, **settings)
        by.decode(out)
        return out

    def generation() -> Numbers:
        with torch.inference_mode():
            made = floor(PROMPTS[0], num_inference_steps=steps, guidance_scale=GUIDANCE, output_type="np",
                         height=latents.height, width=latents.width).images  # fmt: skip
        return np.asarray(made)

    def rows(prompts: Sequence[str], record: str, inversion: Any = None) -> float:
        made = editor.plan(prompts, steps=steps, record=record, inversion=inversion, **settings)
        return sum(plan.rows for plan in made)

    one, four = PROMPTS[:1], PROMPTS
    whole = "literal: whole edit"
    return [
        Contender(whole, 6 * steps, lambda: literal_edit(one, True)),
        Contender("freeprompt: first edit, recorded", rows(one, "exact"), lambda: ours(one, "exact", True), whole),
        Contender("torch: same plan", rows(one, "none"), lambda: ours(one, "none", True, in_torch), whole),
        Contender("freeprompt: first edit, one engine", rows(one, "none"), lambda: ours(one, "none", True), whole),
        Contender("diffusers: generation", 2 * steps, generation),
        Contender("freeprompt: further edit", rows(one, "exact", kept), lambda: ours(one, "exact", False), whole),
        Contender("literal: further edit", 4 * steps, lambda: literal_edit(one, False), whole),
        Contender("freeprompt: four prompts", rows(four, "exact"), lambda: ours(four, "exact", True), rounds=FOUR),
        Contender(
            "literal: four prompts", 18 * steps, lambda: literal_edit(four, True), "freeprompt: four prompts", FOUR
        ),
    ]


def contest(entered: list[Contender], rounds: int, note: Callable[[str], None]) -> dict[str, Any]:
    """Run all in turn, every other round in reverse.

    Raises:
        AssertionError: a contender's output is not what it must be like.
    """
    by_name = {each.name: each for each in entered}
    for number in range(rounds):
        for each in entered if number % 2 == 0 else reversed(entered):
            if number < each.rounds:
                wall, cpu = time.perf_counter(), time.process_time()
                each.latents = each.run()
                each.wall.append(time.perf_counter() - wall)
                each.cpu.append(time.process_time() - cpu)
        note(f"round {number + 1} of {rounds}: " + ", ".join(f"{e.name} {e.wall[-1]:.2f}" for e in entered if e.wall))
    errors = {}
    for each in entered:
        if each.like:
            errors[each.name] = relative_l2(each.latents, by_name[each.like].latents)
            assert errors[each.name] < 1e-3, f"{each.name} is not the same work: {errors[each.name]:.1e}"
    return {
        "seconds": {e.name: {"wall": e.wall, "cpu": e.cpu, "rows": e.rows, "like": e.like} for e in entered},
        "errors": errors,
        "ratios": [ratio_of(title, by_name[slow], by_name[fast]) for title, slow, fast in RATIOS],
    }


def ratio_of(title: str, slow: Contender, fast: Contender) -> dict[str, Any]:
    """Ratios of the same round: what slows the machine down for a while slows both."""
    each = [a / b for a, b in zip(slow.wall, fast.wall)]
    cpu = [a / b for a, b in zip(slow.cpu, fast.cpu)]
    summary = summarise(each)
    return {
        "title": title,
        "slow": slow.name,
        "fast": fast.name,
        "each": each,
        "median": summary.p50,
        "least": summary.least,
        "most": summary.most,
        "mad": summary.mad,
        "cpu_median": median(cpu),
        "rows": slow.rows / fast.rows,
    }


def relative_l2(a: Numbers | None, b: Numbers | None) -> float:
    """||a - b|| / ||b||."""
    assert a is not None
    assert b is not None
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
