"""What a user chooses about an edit, checked."""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterable
from dataclasses import dataclass

from freeprompt.contract.errors import UsageError
from freeprompt.contract.manifest import LayerSpec

# "4,5-7,level:2" or numbers; None means the bundle's default.
LayerChoice = str | Iterable[int] | None

# Guidance is applied in single precision, where anything larger is infinite.
MAX_GUIDANCE = 1e38
# No layer's number has more digits, and Python refuses to convert some thousands of them.
_NUMBERS = re.compile(r"(?P<level>level:)?(?P<first>\d{1,9})(-(?P<last>\d{1,9}))?")


@dataclass(frozen=True)
class EditSettings:
    """How an edit is made.

    Attributes:
        guidance: classifier-free guidance, from 0 on. Up to 1 it is off, as in diffusers: the prompt's own prediction
            is used, and the negative prompt says nothing.
        replace_fraction: the first ``int(steps * replace_fraction)`` steps replace maps.
        negative_prompt: text of the unconditional rows of the target.
        replace_layers: numbers (from 1) of the self-attention layers whose maps are replaced.
        replace_cross_layers: the same for cross-attention: Prompt-to-Prompt's replacement, for comparison.
    """

    guidance: float
    replace_fraction: float
    negative_prompt: str
    replace_layers: tuple[int, ...]
    replace_cross_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # The comparison is False for nan too.
        if not _is_number(self.guidance) or not abs(self.guidance) <= MAX_GUIDANCE:
            raise UsageError(f"guidance must be a finite number, not {self.guidance!r}")
        if self.guidance < 0.0:
            raise UsageError(
                f"guidance must be 0 or more, not {self.guidance!r}: a negative one would lead away from the prompt; "
                "up to 1 guidance is off, and what to avoid goes into negative_prompt"
            )
        if not _is_number(self.replace_fraction) or not 0.0 <= self.replace_fraction <= 1.0:
            raise UsageError(f"replace_fraction must be from 0 to 1, not {self.replace_fraction!r}")
        if not isinstance(self.negative_prompt, str):
            raise UsageError(f"negative_prompt must be a string, not {self.negative_prompt!r}")

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional row beside the prompt's."""
        # Not "!= 1": checkpoints that were distilled for no guidance are used with 0 as often as with 1.
        return self.guidance > 1.0

    def replaced_steps(self, steps: int) -> int:
        """How many of ``steps`` replace maps, rounded down as in the reference."""
        return int(steps * self.replace_fraction)


def choice_to_layers(choice: LayerChoice, layers: tuple[LayerSpec, ...]) -> tuple[int, ...]:
    """Resolve a choice of self-attention layers to sorted numbers.

    Args:
        choice: None (the bundle's default), an iterable of numbers, or a comma-separated string of numbers ("7"),
            ranges ("3-13"), levels ("level:2"), "all", "none" and "default".
        layers: the bundle's layer table.

    Raises:
        UsageError: something in the choice is unknown.
    """
    if choice is None:
        choice = "default"
    chosen: set[int] = set()
    if isinstance(choice, str):
        for part in choice.split(","):
            chosen.update(_part_to_layers(part.strip().lower(), layers))
    else:
        try:
            chosen.update(choice)
        except TypeError:
            raise UsageError(f"replace_layers must be numbers or a string, not {choice!r}") from None
    known = {layer.number for layer in layers}
    unknown = [n for n in chosen if isinstance(n, bool) or n not in known]
    if unknown:
        raise UsageError(f"unknown layer {unknown[0]!r}; the model has layers 1 to {len(layers)}")
    return tuple(sorted(int(n) for n in chosen))


def _part_to_layers(part: str, layers: tuple[LayerSpec, ...]) -> set[int]:
    named = {
        "all": {layer.number for layer in layers},
        "default": {layer.number for layer in layers if layer.replaced},
        "none": set[int](),
    }
    if part in named:
        return named[part]
    match = _NUMBERS.fullmatch(part)
    if match is None:
        raise UsageError(
            f"unknown layers {part[:60]!r}; use numbers (7), ranges (3-13), levels (level:1-3), all, none or default"
        )
    low, high = int(match["first"]), int(match["last"] or match["first"])
    if match["level"]:
        found = {layer.number for layer in layers if low <= layer.level <= high}
        if not found:
            levels = sorted({layer.level for layer in layers})
            raise UsageError(f"no layer has a level of {part!r}; the levels are {levels}")
        return found
    if not low <= high <= len(layers):
        raise UsageError(f"unknown layer {part!r}; the model has layers 1 to {len(layers)}")
    return set(range(low, high + 1))


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
