"""The moving average of weights, which is what is scored and shipped."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Average:
    """Exponential moving average of a list of parameters."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self.parameters: list[torch.Tensor] = [*parameters]
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves towards the parameters, faster in the first steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, self.parameters, 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: Sequence[torch.Tensor]) -> None:
        """Writes the average into parameters of the same shapes."""
        torch._foreach_copy_(list(parameters), self.values)
