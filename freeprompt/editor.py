"""The public API: open a bundle, invert an image, edit it, generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
from PIL import Image

from freeprompt.bundle import Bundle
from freeprompt.engines.select import create_backend
from freeprompt.engines.session import Array, Backend, NumpyArray
from freeprompt.errors import UsageError
from freeprompt.manifest import LatentSpec, Manifest
from freeprompt.runtime import recording, stages
from freeprompt.runtime.execute import StepResult
from freeprompt.runtime.graphs import Graphs
from freeprompt.runtime.image import (
    ImageSource,
    fit_image,
    image_to_tensor,
    open_image,
    tensor_to_images,
)
from freeprompt.runtime.inversion import Inversion
from freeprompt.runtime.pipeline import Limits, Observer, Pipeline, ignore
from freeprompt.runtime.plan import Plan
from freeprompt.runtime.planner import check_targets
from freeprompt.runtime.schedule import Schedule
from freeprompt.runtime.settings import EditSettings, LayerChoice, choice_to_layers

DEMO = "demo"
# The reference's defaults: 50 steps, guidance 7.5; maps replaced in 80 % of the steps of a real image, 40 % of a
# generated one.
STEPS = 50
GUIDANCE = 7.5
REAL_FRACTION = 0.8
SYNTHETIC_FRACTION = 0.4


@dataclass(frozen=True)
class Progress:
    """Where a computation stands; given to callbacks after each step.

    Attributes:
        stage: "inversion", "edit", "generation" or "synthesis".
        step: steps done, from 1.
        steps: of how many.
    """

    stage: str
    step: int
    steps: int
    _preview: Callable[[], list[Image.Image]]

    def preview(self) -> list[Image.Image]:
        """The current estimate of the finished images, decoded. Costs a transfer and a run of the decoder."""
        return self._preview()


Callback = Callable[[Progress], None]


class Editor:
    """Edits images with one bundle on one backend. Not for use from two threads at once.

    A ``callback`` is called after each step. What it raises passes through, so raising ``freeprompt.errors.Cancelled``
    cancels; the editor and every inversion stay usable.

    Args:
        bundle: an open bundle.
        backend: where its graphs run.
        limits: rows of one evaluation, and bytes of recorded rows that one inversion holds.
    """

    def __init__(self, bundle: Bundle, backend: Backend, limits: Limits | None = None) -> None:
        self.bundle = bundle
        self.pipeline = Pipeline(Graphs(bundle, backend))
        self.limits = limits or Limits()

    @classmethod
    def load(
        cls,
        bundle: str | Path = DEMO,
        backend: str | Backend = "auto",
        *,
        threads: int | None = None,
        verify: bool = True,
        limits: Limits | None = None,
    ) -> Editor:
        """Open a bundle.

        Args:
            bundle: its folder, or "demo" for the one that freeprompt brings.
            backend: "auto", "cpu", "cuda", ... (``freeprompt.engines.select.BACKENDS``) or a ``Backend`` object.
            threads: CPU threads within an operator; None: every core.
            verify: compare the SHA-256 of every file.
            limits: see ``freeprompt.runtime.pipeline.Limits``.

        Raises:
            BundleError: missing or damaged.
            BackendError: not installed.
            UsageError: unknown backend.
        """
        opened = Bundle.open(demo_bundle() if str(bundle) == DEMO else bundle, verify)
        made = create_backend(backend, threads, opened) if isinstance(backend, str) else backend
        return cls(opened, made, limits)

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def invert(
        self,
        image: ImageSource,
        steps: int = STEPS,
        *,
        size: tuple[int, int] | None = None,
        fit: str = "crop",
        record: str = recording.AUTO,
        callback: Callback | None = None,
    ) -> Inversion:
        """Invert an image with DDIM and the empty prompt.

        Args:
            image: a path, PIL image, or array (``freeprompt.runtime.image.open_image`` says which).
            steps: 1 to the length of the training schedule (1000 for Stable Diffusion).
            size: (width, height) in pixels; None: the model's native size.
            fit: how the image is brought to that size: "crop", "pad" or "stretch".
            record: "inversion" records the source's hidden states on the way, for edits with record="inversion".

        Raises:
            ImageError: the image cannot be read.
            UsageError: steps, size, fit or record cannot be used.
        """
        self.pipeline.schedule(steps)
        width, height = check_size(self.manifest.latents, size)
        pixels = image_to_tensor(fit_image(open_image(image), width, height, fit))
        latents = stages.image_to_latents(self.pipeline.graphs, pixels)
        return self.pipeline.invert(latents, steps, record, self.limits, self._observer(callback))

    def edit(
        self,
        inversion: Inversion,
        prompts: str | Sequence[str],
        *,
        guidance: float = GUIDANCE,
        replace_fraction: float | None = None,
        negative_prompt: str = "",
        replace_layers: LayerChoice = None,
        record: str = recording.AUTO,
        callback: Callback | None = None,
    ) -> list[Image.Image]:
        """Edit an inverted (or generated) image: one image for each prompt.

        Args:
            inversion: what ``invert`` or ``generate`` gave.
            prompts: the target prompts.
            guidance: classifier-free guidance.
            replace_fraction: share of the steps, from the first, that replace self-attention maps; None: 0.8, or
                0.4 for a generated source.
            negative_prompt: text of the unconditional rows.
            replace_layers: which self-attention layers; None: the bundle's default. Numbers or a string such as
                "3-13", "level:1-3", "all", "none".
            record: "exact" records the source once, so that further edits of it cost their own rows only; "none"
                runs a source row in every step that replaces; both give the same result. "auto" is "exact" where
                the bundle and the chosen layers allow it. "inversion" uses what ``invert(record="inversion")``
                recorded: fewer rows, an *approximate* result.

        Raises:
            UsageError: an argument cannot be used.
            InversionError: the inversion belongs to another bundle.
        """
        latents = self.edit_latents(
            inversion,
            prompts,
            guidance=guidance,
            replace_fraction=replace_fraction,
            negative_prompt=negative_prompt,
            replace_layers=replace_layers,
            record=record,
            callback=callback,
        )
        return self.decode(latents)

    def edit_latents(
        self,
        inversion: Inversion,
        prompts: str | Sequence[str],
        *,
        guidance: float = GUIDANCE,
        replace_fraction: float | None = None,
        negative_prompt: str = "",
        replace_layers: LayerChoice = None,
        replace_cross_layers: Sequence[int] = (),
        record: str = recording.AUTO,
        callback: Callback | None = None,
    ) -> NumpyArray:
        """As ``edit``, before decoding: [prompts, C, h, w] float32.

        ``replace_cross_layers`` replaces cross-attention maps too, as Prompt-to-Prompt does; for comparison.
        """
        if not isinstance(inversion, Inversion):
            raise UsageError(f"expected an Inversion, got {type(inversion).__name__}: call invert first")
        if replace_fraction is None:
            replace_fraction = SYNTHETIC_FRACTION if inversion.prompt else REAL_FRACTION
        settings = self._settings(guidance, replace_fraction, negative_prompt, replace_layers, replace_cross_layers)
        targets = to_targets(prompts)
        observer = self._observer(callback)
        return self.pipeline.edit(inversion, targets, settings, record, self.limits, observer)

    def plan(
        self,
        prompts: str | Sequence[str],
        *,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        replace_fraction: float = REAL_FRACTION,
        negative_prompt: str = "",
        replace_layers: LayerChoice = None,
        record: str = recording.NONE,
        size: tuple[int, int] | None = None,
        inversion: Inversion | None = None,
    ) -> tuple[Plan, ...]:
        """What ``invert`` and ``edit`` would compute, without running anything.

        Args:
            inversion: of an image inverted before; then only the edit is planned, with what is recorded already.
        """
        settings = self._settings(guidance, replace_fraction, negative_prompt, replace_layers, ())
        targets = to_targets(prompts)
        spec = self.manifest.latents
        width, height = check_size(spec, size)
        latents = (height // spec.scale, width // spec.scale)
        plans: tuple[Plan, ...] = ()
        source_prompt = ""
        if inversion is not None:
            steps, latents, source_prompt = inversion.steps, inversion.size, inversion.prompt
        schedule = self.pipeline.schedule(steps)
        mode = recording.choose_mode(record, self.manifest, settings)
        if inversion is not None:
            held = tuple(inversion.records[mode].passes) if mode in inversion.records else ()
        else:
            plans = (self.pipeline.plan_inversion(schedule, mode, *latents, self.limits),)
            held = recording.passes_of(plans[0])
        edits = self.pipeline.plan_edits(schedule, source_prompt, targets, settings, latents, mode, self.limits, held)
        return (*plans, *edits)

    def synthesize(
        self,
        source: str,
        target: str | Sequence[str],
        *,
        seed: int = 0,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        replace_fraction: float = SYNTHETIC_FRACTION,
        negative_prompt: str = "",
        replace_layers: LayerChoice = None,
        size: tuple[int, int] | None = None,
        callback: Callback | None = None,
    ) -> list[Image.Image]:
        """Generate a source image and its edits from one noise: [source, *targets].

        For further edits of the same source use ``generate`` and ``edit``: they give the same images.

        Raises:
            UsageError: an argument cannot be used.
        """
        latents = self.synthesize_latents(
            source,
            target,
            self.noise(seed, size),
            steps=steps,
            guidance=guidance,
            replace_fraction=replace_fraction,
            negative_prompt=negative_prompt,
            replace_layers=replace_layers,
            callback=callback,
        )
        return self.decode(latents)

    def synthesize_latents(
        self,
        source: str,
        target: str | Sequence[str],
        noise: NumpyArray,
        *,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        replace_fraction: float = SYNTHETIC_FRACTION,
        negative_prompt: str = "",
        replace_layers: LayerChoice = None,
        callback: Callback | None = None,
    ) -> NumpyArray:
        """As ``synthesize``, from given noise [1, C, h, w] and before decoding: [1 + targets, C, h, w] float32."""
        targets = to_targets(target)
        check_targets((source,))
        check_targets(targets)
        settings = self._settings(guidance, replace_fraction, negative_prompt, replace_layers, ())
        start = noise.astype(np.float32)
        observer = self._observer(callback)
        return self.pipeline.synthesize(source, targets, start, steps, settings, self.limits, observer)

    def generate(
        self,
        prompt: str,
        *,
        seed: int = 0,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        negative_prompt: str = "",
        size: tuple[int, int] | None = None,
        callback: Callback | None = None,
    ) -> Inversion:
        """Generate an image and keep its latents at every level, to be edited like an inverted one.

        ``decode(result.trajectory[0])`` is the image.
        """
        check_targets((prompt,))
        settings = self._settings(guidance, 0.0, negative_prompt, None, ())
        noise = self.noise(seed, size)
        return self.pipeline.generate(prompt, noise, steps, settings, self._observer(callback))

    def noise(self, seed: int = 0, size: tuple[int, int] | None = None) -> NumpyArray:
        """Starting noise [1, C, h, w] float32 from NumPy's PCG64 generator; not PyTorch's noise of that seed.

        Raises:
            UsageError: seed is negative or not a whole number, or the size does not suit the model.
        """
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise UsageError(f"seed must be a whole number from 0 on, not {seed!r}")
        spec = self.manifest.latents
        width, height = check_size(spec, size)
        shape = (1, spec.channels, height // spec.scale, width // spec.scale)
        return np.random.default_rng(int(seed)).standard_normal(shape).astype(np.float32)

    def decode(self, latents: NumpyArray | Array) -> list[Image.Image]:
        """Latents [B, C, h, w] float32 to images, one at a time to bound memory."""
        values = latents if isinstance(latents, np.ndarray) else latents.numpy()
        images = []
        for one in values:
            image = stages.latents_to_image(self.pipeline.graphs, np.ascontiguousarray(one[None]))
            images += tensor_to_images(image.numpy())
        return images

    def _observer(self, callback: Callback | None) -> Observer:
        if callback is None:
            return ignore

        def observer(plan: Plan, number: int, result: StepResult, schedule: Schedule) -> None:
            def preview() -> list[Image.Image]:
                return self.decode(result.clean_estimate(schedule))

            callback(Progress(plan.name, number, len(plan.steps), preview))

        return observer

    def _settings(
        self,
        guidance: float,
        fraction: float,
        negative_prompt: str,
        layers: LayerChoice,
        cross_layers: Sequence[int],
    ) -> EditSettings:
        chosen = choice_to_layers(layers, self.manifest.layers)
        unknown = set(cross_layers) - set(range(1, self.manifest.cross_layers + 1))
        if unknown:
            raise UsageError(f"unknown cross-attention layer {min(unknown)}")
        return EditSettings(guidance, fraction, negative_prompt, chosen, tuple(sorted(cross_layers)))


def demo_bundle() -> Path:
    """Folder of the bundle that freeprompt brings."""
    return Path(__file__).parent / DEMO


def check_size(spec: LatentSpec, size: tuple[int, int] | None) -> tuple[int, int]:
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


def to_targets(prompts: str | Sequence[str]) -> tuple[str, ...]:
    """One prompt or several, as a tuple. Raises UsageError for anything else."""
    if isinstance(prompts, str):
        return (prompts,)
    try:
        return tuple(prompts)
    except TypeError:
        raise UsageError(f"prompts must be strings, not {prompts!r}") from None


__all__ = ["Callback", "Editor", "Inversion", "Limits", "Progress"]
