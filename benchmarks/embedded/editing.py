"""Free-Prompt-Editing in plain PyTorch, batched over scenes: what training is scored with.

It follows the method's literal description, rows and all, so that it is also an independent
check of the package's own runtime, which does the same with fewer rows.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Optional, Protocol, Union

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.embedded import model, world
from benchmarks.embedded.control import Records, control_attention

LAYERS = 16
"""Self-attention layers of the U-Net, and as many cross-attention layers."""

ALL_LAYERS = tuple(range(LAYERS))


@dataclasses.dataclass(frozen=True)
class Method:
    """An editing method: what the target row takes from the source row, when, and guidance.

    Attributes:
        name: as in tables.
        self_layers: self-attention layers (from 0, forward order) whose map is replaced.
        cross_layers: the same for cross-attention; the source row then reads the source prompt.
        fraction: first part of the steps in which they are replaced, 0..1.
        guidance: classifier-free guidance scale; 1 is none.
        reuse: approximate mode: the source's maps are those seen during inversion (same
            timestep, latent one level cleaner), so that no source row is needed.
    """

    name: str
    self_layers: tuple[int, ...] = ()
    cross_layers: tuple[int, ...] = ()
    fraction: float = 0.0
    guidance: float = 3.0
    reuse: bool = False


class Editing(Protocol):
    """Whatever edits: the PyTorch code here, or the package's runtime behind an adapter."""

    def generate(self, prompts: Sequence[str], steps: int, guidance: float, first: int = 0) -> world.ByteArray:
        """Pictures of prompts, [N, 64, 64, 3] uint8; picture number i has the seed `first` + i."""

    def reconstruct(self, images: world.ByteArray, steps: int) -> world.ByteArray:
        """Inversion with the empty prompt and back without guidance."""

    def edit_latents(
        self,
        images: world.ByteArray,
        sources: Sequence[str],
        targets: Sequence[Sequence[str]],
        steps: int,
        method: Method,
    ) -> list[world.FloatArray]:
        """Edits every image towards each of the target prompts of each kind.

        Args:
            images: [N, 64, 64, 3] uint8.
            sources: N prompts of the images; only cross-attention replacement reads them.
            targets: one list of N prompts for each kind of edit.
            steps: denoising steps.
            method: what to replace.

        Returns:
            For each kind [N, 4, 16, 16] float32.
        """

    def decode_latents(self, latents: world.FloatArray) -> world.ByteArray:
        """Pictures [N, 64, 64, 3] uint8 of what `edit_latents` gives."""


def edit(
    editing: Editing,
    images: world.ByteArray,
    sources: Sequence[str],
    targets: Sequence[Sequence[str]],
    steps: int,
    method: Method,
) -> list[world.ByteArray]:
    """`Editing.edit_latents`, decoded: for each kind [N, 64, 64, 3] uint8."""
    found = editing.edit_latents(images, sources, targets, steps, method)
    return [editing.decode_latents(latents) for latents in found]


class TorchEditing:
    """`Editing` on diffusers and transformers modules.

    Args:
        unet, text_encoder, tokenizer: of the embedded model.
        vae: its autoencoder; None scores before one is trained: latents are then the analytic
            ones, and pictures their colour channels, enlarged.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        vae: Optional[AutoencoderKL],
    ) -> None:
        self.unet = unet
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.vae = vae
        self.control = control_attention(unet)
        self.alphas = model.make_scheduler().alphas_cumprod.double()
        self._inversions: dict[tuple[bytes, int], list[torch.Tensor]] = {}

    @classmethod
    def open(cls, folder: Union[str, pathlib.Path]) -> TorchEditing:
        """Opens a saved pipeline folder in float32."""
        pipe = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None, local_files_only=True)
        parts = (pipe.unet, pipe.text_encoder, pipe.vae)
        unet, text_encoder, vae = (part.float().eval() for part in parts)
        return cls(unet, text_encoder, pipe.tokenizer, vae)

    def encode(self, images: world.ByteArray) -> torch.Tensor:
        """Scaled latents [N, 4, 16, 16] of [N, 64, 64, 3] uint8: the posterior's mean."""
        pixels = model.to_tensor(images)
        if self.vae is None:
            return model.linear_latents(pixels) * model.SCALING_FACTOR
        scale = float(self.vae.config.scaling_factor)
        latents: torch.Tensor = self.vae.encode(pixels).latent_dist.mean * scale
        return latents

    def decode(self, latents: torch.Tensor) -> world.ByteArray:
        """Pictures [N, 64, 64, 3] uint8 of scaled latents."""
        if self.vae is None:
            colours = latents[:, :3] / model.SCALING_FACTOR
            size = (world.SIZE, world.SIZE)
            return model.to_bytes(functional.interpolate(colours, size, mode="bicubic"))
        parts = latents / float(self.vae.config.scaling_factor)
        return model.to_bytes(torch.cat([self.vae.decode(p).sample for p in torch.split(parts, 25)]))

    def text(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text embeddings [N, 77, width]."""
        out: torch.Tensor = self.text_encoder(model.tokenize(self.tokenizer, list(prompts)))[0]
        return out

    def levels(self, steps: int) -> list[tuple[int, float, float]]:
        """(timestep, alpha of its level, alpha of the level below), noisiest first."""
        ratio = 1000 // steps
        out = []
        for index in reversed(range(steps)):
            timestep = index * ratio + 1
            below = max(timestep - ratio, 0)
            out.append((timestep, float(self.alphas[timestep]), float(self.alphas[below])))
        return out

    def noise(self, latents: torch.Tensor, timestep: int, text: torch.Tensor) -> torch.Tensor:
        """One U-Net evaluation."""
        out: torch.Tensor = self.unet(latents, timestep, text).sample
        return out

    @torch.inference_mode()
    def invert(
        self,
        latents: torch.Tensor,
        steps: int,
        records: Optional[list[Records]] = None,
    ) -> list[torch.Tensor]:
        """Latents of all noise levels, cleanest first: steps + 1 of them."""
        empty = self.text([""]).expand(len(latents), -1, -1)
        out = [latents]
        for timestep, alpha, below in reversed(self.levels(steps)):
            if records is not None:
                self.control.record = {}
            noise = self.noise(out[-1], timestep, empty)
            if records is not None and self.control.record is not None:
                records.append(self.control.record)
                self.control.record = None
            out.append(move(out[-1], noise, below, alpha))
        return out

    @torch.inference_mode()
    def _inverted(self, images: world.ByteArray, steps: int) -> list[torch.Tensor]:
        """Inversion that is kept: several methods edit the same pictures."""
        key = (images.tobytes(), steps)
        if key not in self._inversions:
            self._inversions[key] = self.invert(self.encode(images), steps)
        return self._inversions[key]

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], steps: int, guidance: float, first: int = 0) -> world.ByteArray:
        """See `Editing`."""
        shape = (1, model.LATENT_CHANNELS, world.SIZE // model.FACTOR, world.SIZE // model.FACTOR)
        seeds = [torch.Generator().manual_seed(first + number) for number in range(len(prompts))]
        latents = torch.cat([torch.randn(shape, generator=seed) for seed in seeds])
        text = self.text([""] * len(prompts) + list(prompts))
        for timestep, alpha, below in self.levels(steps):
            plain, told = self.noise(torch.cat([latents] * 2), timestep, text).chunk(2)
            latents = move(latents, plain + guidance * (told - plain), alpha, below)
        return self.decode(latents)

    @torch.inference_mode()
    def reconstruct(self, images: world.ByteArray, steps: int) -> world.ByteArray:
        """See `Editing`."""
        latents = self._inverted(images, steps)[-1]
        empty = self.text([""]).expand(len(latents), -1, -1)
        for timestep, alpha, below in self.levels(steps):
            latents = move(latents, self.noise(latents, timestep, empty), alpha, below)
        return self.decode(latents)

    @torch.inference_mode()
    def edit_latents(
        self,
        images: world.ByteArray,
        sources: Sequence[str],
        targets: Sequence[Sequence[str]],
        steps: int,
        method: Method,
    ) -> list[world.FloatArray]:
        """See `Editing`; all kinds share one source row for each image."""
        count, kinds = len(images), len(targets)
        self.control.self_layers = frozenset(method.self_layers)
        self.control.cross_layers = frozenset(method.cross_layers)
        records: Optional[list[Records]] = None
        if method.reuse:
            records = []
            pinned = self.invert(self.encode(images), steps, records)
        else:
            pinned = self._inverted(images, steps)
        empty = self.text([""]).expand(count, -1, -1)
        source_text = self.text(sources) if method.cross_layers else empty
        target_text = self.text([prompt for prompts in targets for prompt in prompts])
        latents = pinned[-1].repeat(kinds, 1, 1, 1)
        guided = method.guidance != 1
        told = torch.arange(count * kinds) + count
        replaced = int(steps * method.fraction) if method.self_layers or method.cross_layers else 0
        for step, (timestep, alpha, below) in enumerate(self.levels(steps)):
            rows, texts = [latents], [target_text]
            active = step < replaced
            with_source = active and records is None
            if with_source:
                rows.insert(0, pinned[steps - step])
                texts.insert(0, source_text)
            if guided:
                rows.append(latents)
                texts.append(empty.repeat(kinds, 1, 1))
            total = sum(len(part) for part in rows)
            if with_source:
                order = torch.arange(total)
                order[told] = torch.arange(count).repeat(kinds)
                self.control.source = order
            elif active and records is not None:
                self.control.given = records[steps - step - 1]
                self.control.given_rows = told - count
            noise = self.noise(torch.cat(rows), timestep, torch.cat(texts))
            self.control.source = self.control.given = None
            parts = list(torch.split(noise, [len(part) for part in rows]))
            if with_source:
                parts.pop(0)
            mixed = parts[0]
            if guided:
                mixed = parts[1] + method.guidance * (parts[0] - parts[1])
            latents = move(latents, mixed, alpha, below)
        return [part.numpy() for part in torch.split(latents, count)]

    @torch.inference_mode()
    def decode_latents(self, latents: world.FloatArray) -> world.ByteArray:
        """See `Editing`."""
        return self.decode(torch.from_numpy(latents))


def move(latents: torch.Tensor, noise: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """DDIM between two noise levels, either way: alphas are cumulative products."""
    clean = (latents - (1 - start) ** 0.5 * noise) / start**0.5
    moved: torch.Tensor = end**0.5 * clean + (1 - end) ** 0.5 * noise
    return moved
