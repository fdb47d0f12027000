"""How large the numbers inside a model get, measured in float32, and what of it half precision cannot hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from freeprompt.export.model.attention import Routing

HALF_MAX = 65504.0
# A quarter of what float16 can hold: the handful of inputs that are measured will not have met the largest values, and
# what a sum holds on the way can be above both its terms. Nothing is gained below: a float16 number has 11 bits
# whatever its size, so that large values lose no more of theirs than small ones; they only end all at once.
LIMIT = HALF_MAX / 4
WHOLE = ""


@dataclass
class Ranges:
    """Largest magnitudes, by the name of a module below the one measured ("" is that one).

    Attributes:
        activations: of all that enters or leaves a module; infinite where something was not a number.
        logits: of q k^T / sqrt(d), for the attention layers that can be watched.
        separable: modules that take and give tensors, or tuples of them, so that they can be cast at their edges.
    """

    activations: dict[str, float] = field(default_factory=dict)
    logits: dict[str, float] = field(default_factory=dict)
    separable: set[str] = field(default_factory=set)

    @property
    def largest(self) -> tuple[str, float]:
        """The module with the largest activations, innermost first, and those."""
        return max(self.activations.items(), key=lambda item: (item[1], item[0].count(".")), default=(WHOLE, 0.0))

    def upcast(self, limit: float = LIMIT) -> dict[str, float]:
        """Attention layers whose logits are above ``limit``."""
        return {name: peak for name, peak in self.logits.items() if peak > limit}

    def float32_parts(self, limit: float = LIMIT) -> dict[str, float]:
        """The smallest modules that hold every activation above ``limit`` inside, with the largest in each.

        What enters and leaves them is below, so that casting there loses no value. A residual stream that is itself
        above the limit has no such module but the whole: {"": ...}.
        """
        found: dict[str, float] = {}
        for name, peak in self.activations.items():
            if peak > limit:
                part = self._around(name, limit)
                found[part] = max(peak, found.get(part, 0.0))
        outer: dict[str, float] = {}
        for name, peak in sorted(found.items()):
            holder = next((other for other in outer if other == WHOLE or name.startswith(f"{other}.")), name)
            outer[holder] = max(peak, outer.get(holder, 0.0))
        return outer

    def _around(self, name: str, limit: float) -> str:
        while name != WHOLE:
            name = name.rpartition(".")[0]
            if name in self.separable and self.activations[name] <= limit:
                return name
        return WHOLE


def module_to_ranges(root: nn.Module, run: Callable[[], object]) -> Ranges:
    """Measure every module of ``root`` while ``run`` runs it."""
    ranges = Ranges()

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            # A mask holds the lowest number of its type, on purpose.
            values = (args, {key: value for key, value in kwargs.items() if "mask" not in key}, output)
            ranges.activations[name] = max(_largest(values), ranges.activations.get(name, 0.0))
            if isinstance(output, (Tensor, tuple)):
                ranges.separable.add(name)

        return hook

    handles = [module.register_forward_hook(watch(name), with_kwargs=True) for name, module in root.named_modules()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return ranges


def unet_to_ranges(unet: UNet2DConditionModel, samples: Tensor, timesteps: Tensor, texts: Tensor) -> Ranges:
    """Measure a U-Net with routed attention, logits included.

    Args:
        samples: [B, C, h, w]; timesteps: [B]; texts: [B, tokens, channels]. One row at a time, to bound memory.
    """
    names = {id(module): name for name, module in unet.named_modules()}
    logits: dict[str, float] = {}

    def watch(attn: Attention, query: Tensor, key: Tensor) -> None:
        name = names[id(attn)]
        logits[name] = max(_largest_logit(query * attn.scale, key, attn.heads), logits.get(name, 0.0))

    def run() -> None:
        for sample, timestep, text in zip(samples, timesteps, texts, strict=True):
            routing = Routing(torch.zeros(1, dtype=torch.int32), None, None, watch=watch)
            unet(sample[None], timestep[None], text[None], cross_attention_kwargs={"routing": routing})

    ranges = module_to_ranges(unet, run)
    ranges.logits = logits
    return ranges


def _largest_logit(query: Tensor, key: Tensor, heads: int) -> float:
    q = query.view(*query.shape[:2], heads, -1).transpose(1, 2)
    k = key.view(*key.shape[:2], heads, -1).permute(0, 2, 3, 1)
    return max(_largest(q[:, head] @ k[:, head]) for head in range(heads))  # a head at a time, to bound memory


def _largest(value: Any) -> float:
    if isinstance(value, Tensor):
        if not value.is_floating_point() or not value.numel():
            return 0.0
        found = float(value.abs().max())
        return found if math.isfinite(found) else math.inf
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return 0.0
    return max(map(_largest, value), default=0.0)
