"""Control over the attention layers of a diffusers U-Net: whose queries and keys a row uses."""

from __future__ import annotations

from typing import Optional

import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional

Records = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Queries and keys [rows, heads, tokens, dim] by layer."""


class Control:
    """What the attention layers do in the next U-Net call.

    Attributes:
        source: for every row of the batch the row whose queries and keys it uses; None is itself.
        self_layers, cross_layers: layers in which `source` counts.
        record: queries and keys by layer are kept here if not None.
        given: recorded queries and keys by layer, used by the rows of `given_rows`.
    """

    def __init__(self) -> None:
        self.source: Optional[torch.Tensor] = None
        self.self_layers: frozenset[int] = frozenset()
        self.cross_layers: frozenset[int] = frozenset()
        self.record: Optional[Records] = None
        self.given: Optional[Records] = None
        self.given_rows: Optional[torch.Tensor] = None


class ControlledAttention:
    """Attention processor of one layer that lets rows use other rows' queries and keys.

    Taking queries and keys is the same as taking the attention map, and stays a fused attention.
    """

    def __init__(self, control: Control, layer: int, cross: bool) -> None:
        self.control = control
        self.layer = layer
        self.cross = cross

    def __call__(
        self,
        attn: torch.nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        temb: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        del attention_mask, temb
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows, tokens, width = hidden_states.shape
        heads: int = attn.heads  # type: ignore[assignment]

        def split(states: torch.Tensor) -> torch.Tensor:
            return states.view(rows, -1, heads, states.shape[-1] // heads).transpose(1, 2)

        query = split(attn.to_q(hidden_states))  # type: ignore[operator]
        key = split(attn.to_k(context))  # type: ignore[operator]
        value = split(attn.to_v(context))  # type: ignore[operator]
        control = self.control
        layers = control.cross_layers if self.cross else control.self_layers
        if self.layer in layers and control.source is not None:
            query, key = query[control.source], key[control.source]
        if self.layer in layers and control.record is not None:
            control.record[self.layer] = (query, key)
        if self.layer in layers and control.given is not None and control.given_rows is not None:
            given_query, given_key = control.given[self.layer]
            repeats = len(control.given_rows) // len(given_query)
            query = query.index_copy(0, control.given_rows, given_query.repeat(repeats, 1, 1, 1))
            key = key.index_copy(0, control.given_rows, given_key.repeat(repeats, 1, 1, 1))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed = mixed.transpose(1, 2).reshape(rows, tokens, width)
        out: torch.Tensor = attn.to_out[0](mixed)  # type: ignore[index,operator]
        return out


def control_attention(unet: UNet2DConditionModel) -> Control:
    """Puts one `Control` on all attention layers, numbered from 0 in forward order."""
    control = Control()
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    names = list(unet.attn_processors)

    def place(name: str) -> tuple[int, list[int]]:
        return order[name.split(".", 1)[0]], [int(p) for p in name.split(".") if p.isdigit()]

    count = {"attn1": 0, "attn2": 0}
    processors: dict[str, ControlledAttention] = {}
    for name in sorted(names, key=place):
        kind = "attn1" if ".attn1." in name else "attn2"
        processors[name] = ControlledAttention(control, count[kind], kind == "attn2")
        count[kind] += 1
    unet.set_attn_processor(processors)
    return control
