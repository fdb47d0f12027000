"""Judging one edit by the parameters of its source and target scene."""

from __future__ import annotations

import dataclasses

import numpy as np

from benchmarks.embedded import oracle, world
from benchmarks.embedded.world import KINDS

GOOD_IOU = 0.8
"""Overlap from which on an object counts as being in its place."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the oracle says about one edit.

    Attributes:
        reached: the target attribute is there.
        kept: the two other attributes are the source's.
        iou: overlap of the edited object with the target scene's object (which for colour and
            background edits is the source's).
        unchanged: PSNR in dB over the pixels that the edit should not touch.
    """

    reached: bool
    kept: bool
    iou: float
    unchanged: float

    @property
    def right(self) -> bool:
        """Target reached, the rest kept, object in its place."""
        return self.reached and self.kept and self.iou >= GOOD_IOU


def judge(
    kind: str,
    source: world.Scene,
    target: world.Scene,
    before: world.ByteArray,
    after: world.ByteArray,
) -> Verdict:
    """Judges one edit of a picture by the parameters of source and target scene.

    For colour edits the colour is measured inside the source's mask; for shape edits the overlap
    is with the target's shape at the source's place and size.
    """
    found = oracle.measure(after)
    old, new = oracle.true_mask(source), oracle.true_mask(target)
    colour = oracle.colour_inside(after, new) if kind != "shape" else found.colour
    checks = {
        "colour": colour == target.colour,
        "shape": found.shape == target.shape,
        "background": found.background == target.background,
    }
    others = [checks[other] for other in KINDS if other != kind]
    # Edges are blurred by the autoencoder: keep two pixels away from them.
    inside = old & _eroded(old)
    outside = ~(_grown(old) | _grown(new))
    untouched = inside if kind == "background" else outside
    return Verdict(
        reached=checks[kind],
        kept=all(others),
        iou=oracle.iou(found.mask, new),
        unchanged=oracle.psnr(before, after, untouched),
    )


def _grown(mask: oracle.Mask, by: int = 2) -> oracle.Mask:
    out = mask.copy()
    for _ in range(by):
        padded = np.pad(out, 1)
        out = out | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return out


def _eroded(mask: oracle.Mask, by: int = 2) -> oracle.Mask:
    return ~_grown(~mask, by)
