"""What callers of the public API pass, checked and brought to one form."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from freeprompt.contract.defaults import GUIDANCE, REAL_FRACTION, SYNTHETIC_FRACTION
from freeprompt.contract.errors import NegativePromptUnusedWarning, UsageError
from freeprompt.contract.manifest import LatentSpec, Manifest
from freeprompt.runtime.plan.settings import EditSettings, LayerChoice, choice_to_layers

Size = tuple[int, int] | None


class Choices(TypedDict, total=False):
    """The keywords of an edit, as ``Editor.edit`` describes them; those that are missing take its defaults.

    ``replace_cross_layers`` replaces cross-attention maps too, as Prompt-to-Prompt does; for comparison.
    """

    guidance: float
    replace_fraction: float | None
    negative_prompt: str
    replace_layers: LayerChoice
    replace_cross_layers: Sequence[int]


if TYPE_CHECKING:
    from typing_extensions import Unpack


def choices_to_settings(manifest: Manifest, default_fraction: float, **choices: Unpack[Choices]) -> EditSettings:
    """Resolve choices against a bundle.

    Args:
        manifest: of the bundle; it has the layer table.
        default_fraction: the share of steps that replace maps where none is chosen.

    Warns NegativePromptUnusedWarning where guidance is off and a negative prompt was given.

    Raises:
        UsageError: a choice cannot be used.
        TypeError: there is no such choice.
    """
    unknown = choices.keys() - Choices.__annotations__.keys()
    if unknown:
        raise TypeError(f"an edit has no argument {min(unknown)!r}; it has {', '.join(Choices.__annotations__)}")
    cross = choices.get("replace_cross_layers", ())
    missing = set(cross) - set(range(1, manifest.cross_layers + 1))
    if missing:
        raise UsageError(f"unknown cross-attention layer {min(missing)}")
    fraction = choices.get("replace_fraction")
    settings = EditSettings(
        guidance=choices.get("guidance", GUIDANCE),
        replace_fraction=default_fraction if fraction is None else fraction,
        negative_prompt=choices.get("negative_prompt", ""),
        replace_layers=choice_to_layers(choices.get("replace_layers"), manifest.layers),
        replace_cross_layers=tuple(sorted(cross)),
    )
    if settings.negative_prompt and not settings.guided:
        warnings.warn(
            f"negative_prompt says nothing at guidance {settings.guidance:g}: up to 1, guidance is off",
            NegativePromptUnusedWarning,
            stacklevel=4,
        )
    return settings


def default_fraction(source_prompt: str) -> float:
    """The share of steps that replace maps where none is chosen: a source with a prompt was generated."""
    return SYNTHETIC_FRACTION if source_prompt else REAL_FRACTION


def check_size(spec: LatentSpec, size: Size) -> tuple[int, int]:
    """(width, height) in pixels, or the native size for None.

    Raises:
        UsageError: not two positive multiples of the model's block.
    """
    if size is None:
        return spec.width, spec.height
    block = spec.scale * spec.multiple
    try:
        width, height = size
        good = all(isinstance(s, (int, np.integer)) and s > 0 and s % block == 0 for s in size)
    except (TypeError, ValueError):
        good = False
    if not good or width * height > 64 * spec.width * spec.height:
        raise UsageError(
            f"size must be (width, height) in multiples of {block} pixels, at most 64 times the native "
            f"{spec.width}x{spec.height} in area; not {size!r}"
        )
    return int(width), int(height)


def size_to_latents(spec: LatentSpec, size: Size) -> tuple[int, int]:
    """(height, width) of the latents of an image of that size. Raises UsageError as ``check_size``."""
    width, height = check_size(spec, size)
    return height // spec.scale, width // spec.scale


def check_seed(seed: object) -> int:
    """Raises UsageError unless it is a whole number from 0 on."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise UsageError(f"seed must be a whole number from 0 on, not {seed!r}")
    return int(seed)


def to_targets(prompts: str | Sequence[str]) -> tuple[str, ...]:
    """One prompt or several, as a tuple. Raises UsageError for anything else."""
    if isinstance(prompts, str):
        return (prompts,)
    try:
        return tuple(prompts)
    except TypeError:
        raise UsageError(f"prompts must be strings, not {prompts!r}") from None
