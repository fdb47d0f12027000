"""Halving the weights of a model, but for the parts that half precision cannot hold."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from freeprompt.contract.manifest import Float32Part, HalfPrecision
from freeprompt.export.model.ranges import LIMIT, Ranges

# Why something stays float32 that the export would have halved.
ASKED = "asked for"
# What the manifest says of a number that was none: JSON has no infinity.
_INFINITE = 1e38


@dataclass
class HalfLog:
    """What was measured and decided while a bundle was exported."""

    ranges: dict[str, Ranges] = field(default_factory=dict)
    parts: list[Float32Part] = field(default_factory=list)
    unneeded: list[Float32Part] = field(default_factory=list)

    def keep(self, graph: str, part: str, reason: str) -> None:
        """Note a part that stays float32."""
        self.parts.append(Float32Part(graph, part, reason))

    def keep_parts(self, graph: str, peaks: dict[str, float], quantity: str) -> None:
        """Note parts that stay float32 for what they reached."""
        for part, peak in peaks.items():
            reached = "are not finite" if math.isinf(peak) else f"reach {peak:.4g}"
            self.keep(graph, part, f"{quantity} {reached}, more than {LIMIT:.4g}")

    def believe_not(self, graph: str, part: str, reason: str) -> None:
        """Note what the checkpoint's configuration asks to keep in float32, and is not kept."""
        self.unneeded.append(Float32Part(graph, part, reason))

    def to_spec(self) -> HalfPrecision:
        """As the manifest holds it."""
        logits = {
            f"{graph}.{name}": min(peak, _INFINITE)
            for graph, ranges in self.ranges.items()
            for name, peak in ranges.logits.items()
        }
        activations = {graph: min(ranges.largest[1], _INFINITE) for graph, ranges in self.ranges.items()}
        return HalfPrecision(LIMIT, activations, logits, tuple(self.parts), tuple(self.unneeded))


def halve(module: nn.Module, parts: Collection[str] = ()) -> None:
    """Turn the weights of ``module`` to float16, in place and one after another, to hold no copy of all of them.

    Args:
        parts: names of the modules that stay float32; they cast what they take and give.
    """
    kept = [module.get_submodule(name) for name in parts]
    kept_weights = {id(tensor) for part in kept for tensor in (*part.parameters(), *part.buffers())}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and id(tensor) not in kept_weights:
            tensor.data = tensor.data.half()
    for part in kept:
        part.register_forward_pre_hook(_before, with_kwargs=True)
        part.register_forward_hook(_after)


def _before(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return _cast(args, torch.float32), {name: _cast(value, torch.float32) for name, value in kwargs.items()}


def _after(module: nn.Module, args: Any, output: Any) -> Any:
    return _cast(output, torch.float16)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() and value.dtype != dtype else value
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(item, dtype) for item in value)
    return value
