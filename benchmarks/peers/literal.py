"""The published method, literally: the oracle of the tests, and what benchmarks are told as multiples of.

Independent of freeprompt's plans and graphs: diffusers' own U-Net, scheduler and text encoder; attention maps are
materialised, N x N, for every row; the batch layout is the reference implementation's (two rows a step to invert, four
to denoise); nothing is left out because it cannot matter. Quirks of the reference that define its result are kept,
those that are bugs are not: several targets are edited one by one, where the reference breaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from freeprompt.export.checkpoint.load import quiet

# Self-attention maps of one row in one evaluation, [heads, N, N] by layer (from 1).
Maps = dict[int, Tensor]


def open_pipeline(checkpoint: Path) -> StableDiffusionPipeline:
    """A diffusers folder in float32."""
    with quiet():
        pipe = StableDiffusionPipeline.from_pretrained(
            str(checkpoint), torch_dtype=torch.float32, safety_checker=None, local_files_only=True
        )
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.eval()
    return pipe


@dataclass
class Control:
    """Which rows take whose maps at the current step; read by every attention layer.

    Attributes:
        pairs: (source row, target row).
        kept: filled with the last row's self-attention maps, if not None.
        given: maps that target rows take in place of the source row's, in self-attention.
    """

    pairs: list[tuple[int, int]] = field(default_factory=list)
    self_layers: frozenset[int] = frozenset()
    cross_layers: frozenset[int] = frozenset()
    kept: Maps | None = None
    given: Maps | None = None


class MaterialisingProcessor:
    """Softmax maps as a tensor [rows, heads, N, M]; in controlled layers some rows' maps are overwritten by others'."""

    def __init__(self, control: Control, number: int, cross: bool) -> None:
        self.control, self.number, self.cross = control, number, cross

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows = hidden_states.shape[0]
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(context))
        value = attn.head_to_batch_dim(attn.to_v(context))
        maps = attn.get_attention_scores(query, key)
        maps = maps.reshape(rows, attn.heads, *maps.shape[1:])
        control = self.control
        if control.kept is not None and not self.cross:
            control.kept[self.number] = maps[-1].clone()
        if self.number in (control.cross_layers if self.cross else control.self_layers):
            maps = maps.clone()
            for source, target in control.pairs:
                given = None if self.cross else control.given
                maps[target] = maps[source] if given is None else given[self.number]
        out = attn.batch_to_head_dim(torch.bmm(maps.flatten(0, 1), value))
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected


class LiteralReference:
    """Free-Prompt-Editing on a diffusers pipeline, with maps; on whatever device that is.

    Args:
        pipe: its scheduler must be a DDIMScheduler with the reference's settings. Its U-Net is given processors.
    """

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        self.pipe, self.control = pipe, Control()
        assert isinstance(pipe.scheduler, DDIMScheduler)
        order: list[str] = []
        handles = [
            module.register_forward_hook(lambda m, i, o, name=name: order.append(name))
            for name, module in pipe.unet.named_modules()
            if name.endswith((".attn1", ".attn2"))
        ]
        size = pipe.unet.config.sample_size
        pipe.unet.set_attn_processor(AttnProcessor())
        with torch.no_grad(), torch.device(pipe.device):
            text = torch.zeros(1, 77, pipe.unet.config.cross_attention_dim)
            pipe.unet(torch.zeros(1, 4, size, size), 1, text)
        for handle in handles:
            handle.remove()
        processors: dict[str, MaterialisingProcessor] = {}
        for cross, suffix in ((False, ".attn1"), (True, ".attn2")):
            names = [name for name in order if name.endswith(suffix)]
            for number, name in enumerate(names, 1):
                processors[f"{name}.processor"] = MaterialisingProcessor(self.control, number, cross)
        pipe.unet.set_attn_processor(processors)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        ids = self.pipe.tokenizer(
            list(prompts), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        embeddings: Tensor = self.pipe.text_encoder(ids.to(self.pipe.device))[0]
        return embeddings

    @torch.no_grad()
    def encode(self, image: np.ndarray[Any, Any]) -> Tensor:
        """Image [1, 3, H, W] in [-1, 1] to the posterior's mean times the scaling factor."""
        # Contiguous: PyTorch's channels-last kernels, which a transposed array would get all the way through, differ
        # from double precision by 7.6e-6 where the standard ones differ by 6e-7.
        pixels = torch.from_numpy(np.ascontiguousarray(image))
        mean = self.pipe.vae.encode(pixels).latent_dist.mean
        latents: Tensor = mean * self.pipe.vae.config.scaling_factor
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Final latents [N, 4, h, w] to images [N, 3, H, W], about [-1, 1]; one by one."""
        scaled = latents / self.pipe.vae.config.scaling_factor
        return torch.cat([self.pipe.vae.decode(one).sample for one in scaled.split(1)])

    @torch.no_grad()
    def invert(self, latents: Tensor, steps: int, maps: list[Maps] | None = None) -> list[Tensor]:
        """All latents, cleanest first. Two rows at guidance 1, as the reference evaluates them.

        Args:
            maps: is given the self-attention maps of every evaluation, in order.
        """
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(steps)
        stride = scheduler.config.num_train_timesteps // steps
        text = self.embed(["", ""])
        levels = [latents]
        for timestep in reversed(scheduler.timesteps.tolist()):
            lower = min(timestep - stride, 999)
            alpha = scheduler.alphas_cumprod[lower] if lower >= 0 else scheduler.final_alpha_cumprod
            above = scheduler.alphas_cumprod[timestep]
            if maps is not None:
                maps.append({})
                self.control.kept = maps[-1]
            uncond, cond = self.pipe.unet(torch.cat([latents] * 2), timestep, text).sample.chunk(2)
            noise = uncond + 1.0 * (cond - uncond)
            clean = (latents - (1 - alpha) ** 0.5 * noise) / alpha**0.5
            latents = above**0.5 * clean + (1 - above) ** 0.5 * noise
            levels.append(latents)
        self.control.kept = None
        return levels

    @torch.no_grad()
    def edit(
        self,
        levels: list[Tensor],
        targets: Sequence[str],
        *,
        guidance: float = 7.5,
        fraction: float = 0.8,
        negative: str = "",
        layers: Sequence[int] = (),
        cross_layers: Sequence[int] = (),
        source: str = "",
        maps: Sequence[Maps] | None = None,
    ) -> Tensor:
        """Final latents of each target, each computed in a run of its own (the reference breaks with more than one).

        Args:
            source: prompt of the source row.
            maps: of the inversion: the approximate mode, in which the target takes these in place of the source row's.
        """
        steps = len(levels) - 1
        return torch.cat(
            [
                self._denoise(
                    levels[-1], source, target, steps, guidance, fraction, negative, layers, cross_layers, levels, maps
                )[1:]
                for target in targets
            ]
        )

    @torch.no_grad()
    def synthesize(
        self,
        noise: Tensor,
        source: str,
        target: str,
        steps: int,
        *,
        guidance: float = 7.5,
        fraction: float = 0.4,
        negative: str = "",
        layers: Sequence[int] = (),
    ) -> Tensor:
        """Final latents of source and target."""
        return self._denoise(noise, source, target, steps, guidance, fraction, negative, layers, (), None)

    def _denoise(
        self,
        start: Tensor,
        source: str,
        target: str,
        steps: int,
        guidance: float,
        fraction: float,
        negative: str,
        layers: Sequence[int],
        cross_layers: Sequence[int],
        levels: list[Tensor] | None,
        maps: Sequence[Maps] | None = None,
    ) -> Tensor:
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(steps)
        # [uncond_src, uncond_tgt, cond_src, cond_tgt]; the negative prompt is the target's.
        uncond_src = "" if levels is not None else negative
        text = self.embed([uncond_src, negative, source, target])
        latents = torch.cat([start, start])
        for number, timestep in enumerate(scheduler.timesteps):
            if levels is not None:
                latents[:1] = levels[steps - number]
            replaced = number < int(steps * fraction)
            self.control.pairs = [(2, 3)] if replaced else []
            self.control.self_layers = frozenset(layers)
            self.control.cross_layers = frozenset(cross_layers)
            self.control.given = None if maps is None else maps[steps - number - 1]
            uncond, cond = self.pipe.unet(torch.cat([latents] * 2), timestep, text).sample.chunk(2)
            noise = uncond + guidance * (cond - uncond)
            latents = scheduler.step(noise, timestep, latents).prev_sample
        self.control.pairs, self.control.given = [], None
        return latents
