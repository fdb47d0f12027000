"""The public API: open a bundle, invert an image, edit it, generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from freeprompt.contract.defaults import FIT, GUIDANCE, STEPS, SYNTHETIC_FRACTION
from freeprompt.contract.errors import UsageError
from freeprompt.contract.session import NumpyArray
from freeprompt.model import DEMO, Model, demo_bundle
from freeprompt.runtime import stages
from freeprompt.runtime.inputs import arguments
from freeprompt.runtime.inputs.arguments import Choices, Size, check_size, choices_to_settings, to_targets
from freeprompt.runtime.inputs.image import ImageSource, read_image
from freeprompt.runtime.plan import records
from freeprompt.runtime.plan.limits import Deadline, Limits
from freeprompt.runtime.plan.plan import Plan
from freeprompt.runtime.plan.planner import check_targets
from freeprompt.runtime.plan.settings import LayerChoice
from freeprompt.runtime.progress import Callback, Progress
from freeprompt.runtime.source.inversion import Inversion

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Editor(Model):
    """Edits images with one bundle on one backend.

    Any thread may call it: calls wait for each other. For calls that run beside each other give each thread an editor
    with a backend of its own; inversions may be shared by all of them.

    A ``callback`` is called after each step, in the thread of the call. What it raises passes through, so raising
    ``freeprompt.contract.errors.Cancelled`` cancels; the editor and every inversion stay usable. It may decode
    (``preview``) and plan, but not start another call of this editor: UsageError.
    """

    def invert(
        self,
        image: ImageSource,
        steps: int = STEPS,
        *,
        size: Size = None,
        fit: str = FIT,
        record: str = records.AUTO,
        callback: Callback | None = None,
    ) -> Inversion:
        """Invert an image with DDIM and the empty prompt.

        Warns ImageCroppedWarning where ``fit`` "crop" leaves a large part of the image out.

        Args:
            image: a path, PIL image, or array (``freeprompt.runtime.inputs.image.open_image`` says which).
            steps: 1 to the length of the training schedule (1000 for Stable Diffusion).
            size: (width, height) in pixels; None: the model's native size.
            fit: how the image is brought to that size: "crop", "pad" or "stretch".
            record: "inversion" records the source's hidden states on the way, for edits with record="inversion".

        Raises:
            ImageError: the image cannot be read.
            UsageError: steps, size, fit or record cannot be used.
        """
        latent_size = arguments.size_to_latents(self.manifest.latents, size)
        # Before the image is read: a wrong argument is told first.
        self.pipeline.planner(steps, latent_size, self.limits).inversion(record)
        width, height = check_size(self.manifest.latents, size)
        pixels = read_image(image, width, height, fit)
        with self._call(callback) as observer:
            deadline = Deadline(self.limits.seconds)
            latents = stages.image_to_latents(self.pipeline.graphs, pixels)
            return self.pipeline.invert(latents, steps, record, self.limits, observer, deadline)

    def edit(
        self,
        inversion: Inversion,
        prompts: str | Sequence[str],
        *,
        guidance: float = GUIDANCE,
        replace_fraction: float | None = None,
        negative_prompt: str = "",
        replace_layers: LayerChoice = None,
        record: str = records.AUTO,
        callback: Callback | None = None,
    ) -> list[Image.Image]:
        """Edit an inverted (or generated) image: one image for each prompt.

        Args:
            inversion: what ``invert`` or ``generate`` gave.
            prompts: the target prompts.
            guidance: classifier-free guidance, from 0 on; up to 1 it is off, as in diffusers.
            replace_fraction: share of the steps, from the first, that replace self-attention maps; None: 0.8, or
                0.4 for a generated source.
            negative_prompt: text of the unconditional rows; says nothing where guidance is off.
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
        choices = Choices(
            guidance=guidance,
            replace_fraction=replace_fraction,
            negative_prompt=negative_prompt,
            replace_layers=replace_layers,
        )
        return self.decode(self.edit_latents(inversion, prompts, record=record, callback=callback, **choices))

    def edit_latents(
        self,
        inversion: Inversion,
        prompts: str | Sequence[str],
        *,
        record: str = records.AUTO,
        callback: Callback | None = None,
        **choices: Unpack[Choices],
    ) -> NumpyArray:
        """As ``edit``, before decoding: [prompts, C, h, w] float32."""
        if not isinstance(inversion, Inversion):
            raise UsageError(f"expected an Inversion, got {type(inversion).__name__}: call invert first")
        settings = choices_to_settings(self.manifest, arguments.default_fraction(inversion.prompt), **choices)
        with self._call(callback) as observer:
            return self.pipeline.edit(inversion, to_targets(prompts), settings, record, self.limits, observer)

    def record_mode(self, record: str = records.AUTO, further_edits: bool = True, **choices: Unpack[Choices]) -> str:
        """The mode that an edit's ``record`` stands for with this bundle: "auto" resolved.

        Args:
            further_edits: whether the source is edited again, or its record kept or there already; if not, "auto" is
                "none". ``edit`` cannot know and takes it that it is.
            choices: the keywords of ``edit``.

        Raises:
            UsageError: unknown mode, or one that the bundle or the chosen layers do not allow.
        """
        settings = choices_to_settings(self.manifest, arguments.default_fraction(""), **choices)
        return records.choose_mode(record, self.manifest, settings, further_edits)

    def plan(
        self,
        prompts: str | Sequence[str],
        *,
        steps: int = STEPS,
        record: str = records.NONE,
        size: Size = None,
        inversion: Inversion | None = None,
        **choices: Unpack[Choices],
    ) -> tuple[Plan, ...]:
        """What ``invert`` and ``edit`` would compute, without running anything. Prompts are checked, as ``edit`` does.

        Args:
            inversion: of an image inverted before; then only the edit is planned, with what is recorded already.
            choices: the keywords of ``edit``.
        """
        latents = arguments.size_to_latents(self.manifest.latents, size)
        settings = choices_to_settings(
            self.manifest, arguments.default_fraction(inversion.prompt if inversion else ""), **choices
        )
        plans = self.pipeline.plan(inversion or (steps, latents), to_targets(prompts), settings, record, self.limits)
        with self._turns.graphs():
            self.pipeline.check_prompts(plans)
        return plans

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
        size: Size = None,
        callback: Callback | None = None,
    ) -> list[Image.Image]:
        """Generate a source image and its edits from one noise: [source, *targets].

        For further edits of the same source use ``generate`` and ``edit``: they give the same images.

        Raises:
            UsageError: an argument cannot be used.
        """
        choices = Choices(
            guidance=guidance,
            replace_fraction=replace_fraction,
            negative_prompt=negative_prompt,
            replace_layers=replace_layers,
        )
        noise = self.noise(seed, size)
        return self.decode(self.synthesize_latents(source, target, noise, steps=steps, callback=callback, **choices))

    def synthesize_latents(
        self,
        source: str,
        target: str | Sequence[str],
        noise: NumpyArray,
        *,
        steps: int = STEPS,
        callback: Callback | None = None,
        **choices: Unpack[Choices],
    ) -> NumpyArray:
        """As ``synthesize``, from given noise [1, C, h, w] and before decoding: [1 + targets, C, h, w] float32."""
        check_targets((source,))
        check_targets(targets := to_targets(target))
        settings = choices_to_settings(self.manifest, SYNTHETIC_FRACTION, **choices)
        start = noise.astype(np.float32)
        with self._call(callback) as observer:
            return self.pipeline.synthesize(source, targets, start, steps, settings, self.limits, observer)

    def generate(
        self,
        prompt: str,
        *,
        seed: int = 0,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        negative_prompt: str = "",
        size: Size = None,
        callback: Callback | None = None,
    ) -> Inversion:
        """Generate an image and keep its latents at every level, to be edited like an inverted one.

        ``decode(result.trajectory[0])`` is the image.
        """
        check_targets((prompt,))
        settings = choices_to_settings(self.manifest, 0.0, guidance=guidance, negative_prompt=negative_prompt)
        with self._call(callback) as observer:
            return self.pipeline.generate(prompt, self.noise(seed, size), steps, settings, observer, self.limits)


__all__ = ["DEMO", "Callback", "Editor", "Inversion", "Limits", "Progress", "check_size", "demo_bundle"]
