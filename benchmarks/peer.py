"""The reduced plan executed in PyTorch: the same rows, routes and coefficients, with PyTorch's fused attention.

It differs from freeprompt in the engine only, so that comparing the two isolates what the engine gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from benchmarks.embedded.control import control_attention
from freeprompt.runtime.plan import Plan, step_to_inputs


class TorchPlanRunner:
    """Runs plans of the one-engine mode (``record="none"``) on a diffusers pipeline.

    Args:
        pipe: its U-Net is given attention processors of its own.
    """

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        self.pipe = pipe
        self.control = control_attention(pipe.unet)

    @torch.inference_mode()
    def edit(self, pixels: np.ndarray[Any, Any], plans: Sequence[Plan]) -> Tensor:
        """Image [1, 3, H, W] in [-1, 1] to final latents, by an inversion's plan and edits' plans."""
        inversion, *edits = plans
        mean = self.pipe.vae.encode(torch.from_numpy(pixels)).latent_dist.mean
        levels = [mean * self.pipe.vae.config.scaling_factor]
        levels += self._run(inversion, levels[0], [])
        finished = []
        for plan in edits:
            latents = levels[-1].repeat(len(plan.steps[0].row_weight), 1, 1, 1)
            finished.append(self._run(plan, latents, levels)[-1])
        return torch.cat(finished)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Final latents to an image."""
        image: Tensor = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor).sample
        return image

    def _run(self, plan: Plan, latents: Tensor, levels: Sequence[Tensor]) -> list[Tensor]:
        ids = self.pipe.tokenizer(
            list(plan.texts), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        texts = self.pipe.text_encoder(ids)[0]
        self.control.self_layers = frozenset(number - 1 for number in plan.replace_layers)
        out = []
        for step in plan.steps:
            tables = {name: torch.from_numpy(table) for name, table in step_to_inputs(plan, step).items()}
            # Every replaced layer has the same route; the tables of the others are the identity.
            routes = tables["map_row"][plan.replace_layers[0] - 1].long() if plan.replace_layers else None
            own = routes is None or bool((routes == torch.arange(len(step.rows))).all())
            self.control.source = None if own else routes
            pinned = [levels[step.pinned]] if step.pinned is not None else []
            rows = torch.cat([latents, *pinned])[tables["row_latent"].long()]
            noise = self.pipe.unet(rows, tables["timestep"], texts[tables["row_text"].long()]).sample
            predicted = torch.einsum("lr,rchw->lchw", tables["row_weight"], noise)
            scale, shift = (tables[name][:, None, None, None] for name in ("latent_scale", "noise_scale"))
            latents = scale * latents + shift * predicted
            out.append(latents)
        self.control.source = None
        return out
