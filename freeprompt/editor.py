"""The public API: open a bundle, invert an image, edit it, generate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from freeprompt.bundle import Bundle
from freeprompt.engines.select import create_backend
from freeprompt.engines.session import Array, Backend, NumpyArray
from freeprompt.errors import BundleError, InversionError, UsageError
from freeprompt.manifest import LatentSpec, Manifest
from freeprompt.runtime import execute, stages
from freeprompt.runtime.graphs import Graphs
from freeprompt.runtime.image import (
    ImageSource,
    fit_image,
    image_to_tensor,
    open_image,
    tensor_to_images,
)
from freeprompt.runtime.inversion import Inversion
from freeprompt.runtime.plan import Plan
from freeprompt.runtime.planner import (
    check_targets,
    plan_edit,
    plan_generation,
    plan_inversion,
    plan_synthesis,
)
from freeprompt.runtime.prompt import load_tokenizer
from freeprompt.runtime.schedule import Schedule
from freeprompt.runtime.settings import EditSettings, LayerChoice, choice_to_layers

DEMO = "demo"
# The reference's defaults: 50 steps, guidance 7.5; maps replaced in 80 % of the steps of a real image, 40 % of a generated one.
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
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.graphs = Graphs(bundle, backend)
        self._tokenizer: Tokenizer | None = None
        self._embeddings: dict[tuple[str, ...], Array] = {}

    @classmethod
    def load(
        cls,
        bundle: str | Path = DEMO,
        backend: str | Backend = "auto",
        *,
        threads: int | None = None,
        verify: bool = True,
    ) -> Editor:
        """Open a bundle.

        Args:
            bundle: its folder, or "demo" for the one that freeprompt brings.
            backend: "auto", "cpu", "cuda", or an object of the ``Backend`` protocol.
            threads: CPU threads within an operator; None: every core.
            verify: compare the SHA-256 of every file.

        Raises:
            BundleError: missing or damaged.
            BackendError: not installed.
            UsageError: unknown backend.
        """
        opened = Bundle.open(demo_bundle() if str(bundle) == DEMO else bundle, verify)
        made = create_backend(backend, threads) if isinstance(backend, str) else backend
        return cls(opened, made)

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
        callback: Callback | None = None,
    ) -> Inversion:
        """Invert an image with DDIM and the empty prompt.

        Args:
            image: a path, PIL image, or array (``freeprompt.runtime.image.open_image`` says which).
            steps: 1 to the length of the training schedule (1000 for Stable Diffusion).
            size: (width, height) in pixels; None: the model's native size.
            fit: how the image is brought to that size: "crop", "pad" or "stretch".

        Raises:
            ImageError: the image cannot be read.
            UsageError: steps, size or fit cannot be used.
        """
        schedule = Schedule.create(self.manifest.scheduler, steps)
        width, height = check_size(self.manifest.latents, size)
        pixels = image_to_tensor(fit_image(open_image(image), width, height, fit))
        latents = stages.image_to_latents(self.graphs, pixels)
        plan = plan_inversion(self.manifest, schedule)
        levels = [latents]
        for result in self._run(plan, schedule, latents, callback=callback):
            levels.append(result.after)
        return Inversion.from_levels(schedule.steps, "", self.bundle.sha256, levels)

    def edit(
        self,
        inversion: Inversion,
        prompts: str | Sequence[str],
        *,
        guidance: float = GUIDANCE,
        replace_fraction: float | None = None,
        negative_prompt: str = "",
        replace_layers: LayerChoice = None,
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
        callback: Callback | None = None,
    ) -> NumpyArray:
        """As ``edit``, before decoding: [prompts, C, h, w] float32.

        ``replace_cross_layers`` replaces cross-attention maps too, as Prompt-to-Prompt does; for comparison.
        """
        self._check_inversion(inversion)
        settings = self._settings(
            inversion.prompt,
            guidance,
            replace_fraction,
            negative_prompt,
            replace_layers,
            replace_cross_layers,
        )
        targets = _targets(prompts)
        schedule = Schedule.create(self.manifest.scheduler, inversion.steps)
        plan = plan_edit(self.manifest, schedule, inversion.prompt, targets, settings)
        start = inversion.levels[-1]
        if len(targets) > 1:
            start = self.graphs.backend.upload(np.repeat(start.numpy(), len(targets), axis=0))
        return self._last(self._run(plan, schedule, start, inversion.levels, callback), start)

    def plan(
        self,
        prompts: str | Sequence[str],
        *,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        replace_fraction: float | None = None,
        negative_prompt: str = "",
        replace_layers: LayerChoice = None,
    ) -> tuple[Plan, Plan]:
        """What ``invert`` and ``edit`` would compute: the two plans, without running anything."""
        settings = self._settings(
            "", guidance, replace_fraction, negative_prompt, replace_layers, ()
        )
        schedule = Schedule.create(self.manifest.scheduler, steps)
        return (
            plan_inversion(self.manifest, schedule),
            plan_edit(self.manifest, schedule, "", _targets(prompts), settings),
        )

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

        Raises:
            UsageError: an argument cannot be used.
        """
        start = self.noise(seed, size)
        latents = self.synthesize_latents(
            source,
            target,
            start,
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
        replace_cross_layers: Sequence[int] = (),
        callback: Callback | None = None,
    ) -> NumpyArray:
        """As ``synthesize``, from given noise [1, C, h, w] and before decoding: [1 + targets, C, h, w] float32."""
        targets = _targets(target)
        check_targets((source,))
        settings = self._settings(
            source,
            guidance,
            replace_fraction,
            negative_prompt,
            replace_layers,
            replace_cross_layers,
        )
        schedule = Schedule.create(self.manifest.scheduler, steps)
        plan = plan_synthesis(self.manifest, schedule, source, targets, settings)
        repeated = np.repeat(noise.astype(np.float32), 1 + len(targets), axis=0)
        start = self.graphs.backend.upload(repeated)
        return self._last(self._run(plan, schedule, start, callback=callback), start)

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
        settings = self._settings(prompt, guidance, 0.0, negative_prompt, None, ())
        schedule = Schedule.create(self.manifest.scheduler, steps)
        plan = plan_generation(self.manifest, schedule, prompt, settings)
        start = self.graphs.backend.upload(self.noise(seed, size))
        levels = [start]
        for result in self._run(plan, schedule, start, callback=callback):
            levels.append(result.after)
        return Inversion.from_levels(
            schedule.steps, prompt, self.bundle.sha256, tuple(reversed(levels))
        )

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
            image = stages.latents_to_image(self.graphs, np.ascontiguousarray(one[None]))
            images += tensor_to_images(image.numpy())
        return images

    def _run(
        self,
        plan: Plan,
        schedule: Schedule,
        latents: Array,
        trajectory: Sequence[Array] = (),
        callback: Callback | None = None,
    ) -> Iterator[execute.StepResult]:
        embeddings = self._embed(plan.texts)
        results = execute.run_steps(self.graphs, plan, latents, embeddings, trajectory)
        for number, result in enumerate(results, 1):
            if callback is not None:
                callback(Progress(plan.name, number, len(plan.steps), self._preview(result, schedule)))
            yield result

    def _preview(
        self, result: execute.StepResult, schedule: Schedule
    ) -> Callable[[], list[Image.Image]]:
        return lambda: self.decode(result.clean_estimate(schedule))

    def _last(self, results: Iterable[execute.StepResult], start: Array) -> NumpyArray:
        last = start
        for result in results:
            last = result.after
        return last.numpy()

    def _embed(self, texts: tuple[str, ...]) -> Array:
        if texts not in self._embeddings:
            if self._tokenizer is None:
                self._tokenizer = load_tokenizer(self.bundle.file(self.manifest.tokenizer))
            embeddings = stages.prompts_to_embeddings(self.graphs, self._tokenizer, texts)
            # A few, so that a server's memory does not grow with every prompt it has seen.
            while len(self._embeddings) >= 8:
                del self._embeddings[next(iter(self._embeddings))]
            self._embeddings[texts] = embeddings
        return self._embeddings[texts]

    def _settings(
        self,
        source_prompt: str,
        guidance: float,
        fraction: float | None,
        negative_prompt: str,
        layers: LayerChoice,
        cross_layers: Sequence[int],
    ) -> EditSettings:
        if fraction is None:
            fraction = SYNTHETIC_FRACTION if source_prompt else REAL_FRACTION
        chosen = choice_to_layers(layers, self.manifest.layers)
        unknown = set(cross_layers) - set(range(1, self.manifest.cross_layers + 1))
        if unknown:
            raise UsageError(f"unknown cross-attention layer {min(unknown)}")
        return EditSettings(
            guidance, fraction, negative_prompt, chosen, tuple(sorted(cross_layers))
        )

    def _check_inversion(self, inversion: Inversion) -> None:
        if not isinstance(inversion, Inversion):
            raise UsageError(f"expected an Inversion, got {type(inversion).__name__}: call invert first")
        if inversion.bundle_sha256 != self.bundle.sha256:
            raise InversionError(
                "this inversion was made with another bundle; its latents mean nothing to this model. "
                "Invert the image again"
            )


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


def _targets(prompts: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(prompts, str):
        return (prompts,)
    try:
        return tuple(prompts)
    except TypeError:
        raise UsageError(f"prompts must be strings, not {prompts!r}") from None


__all__ = ["BundleError", "Callback", "Editor", "Inversion", "Progress"]
