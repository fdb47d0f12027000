"""Attention processors whose routing is an input of the graph.

A row of a U-Net batch normally attends with its own queries and keys. Free-Prompt-Editing gives some rows the
attention *map* of another row, that is ``softmax(q_other k_other^T / sqrt(d)) v_own``. Queries and keys are linear in
the normalised hidden states that enter the layer, so a row takes another row's map by projecting the other row's
hidden states: what is routed (and recorded, see ``runtime``) is one tensor of C channels, half of q and k together,
and the projections and the attention itself stay the ones every runtime knows how to fuse.

The processors use diffusers' documented extension point (``set_attn_processor`` with ``cross_attention_kwargs``); no
module is patched and no state is kept between calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from diffusers.models.attention_processor import Attention

# Sees a layer, its queries [R, N, heads * d] and its keys [R, M, heads * d].
Watch = Callable[[Attention, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Routing:
    """What one evaluation routes; travels through ``cross_attention_kwargs``.

    Attributes:
        row_text: [R] int32, the text each row reads.
        map_row: [layers, R] int32 or None. Per self-attention layer: whose map each row uses. Own rows come first,
            then the rows of ``records``. None means every row uses its own.
        cross_map_row: [layers, R] int32 or None, the same for cross-attention (own rows only).
        records: layer number (from 1) -> [S, N, C], hidden states recorded in an earlier evaluation.
        taps: filled while the U-Net is traced: layer number -> [R, N, C], the hidden states entering each layer.
        watch: called in every layer while the ranges of a model are measured.
    """

    row_text: torch.Tensor
    map_row: torch.Tensor | None
    cross_map_row: torch.Tensor | None
    records: dict[int, torch.Tensor] = field(default_factory=dict)
    taps: dict[int, torch.Tensor] = field(default_factory=dict)
    watch: Watch | None = None


def scaled_attention(attn: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v per head, as MatMul-Softmax-MatMul.

    The scale multiplies the query *before* the product: in half precision the unscaled product is what overflows. What
    a configuration says of upcasting is not read here: the export measures instead.

    Args:
        query: [R, N, heads * d]; key, value: [R, M, heads * d].

    Returns:
        [R, N, heads * d].
    """
    rows, tokens, channels = query.shape
    heads = attn.heads
    dim = channels // heads
    q = (query * attn.scale).view(rows, tokens, heads, dim).transpose(1, 2)
    k = key.view(rows, -1, heads, dim).permute(0, 2, 3, 1)
    v = value.view(rows, -1, heads, dim).transpose(1, 2)
    weights = torch.softmax(torch.matmul(q, k), dim=-1)
    if weights.dtype != v.dtype:
        weights = weights.to(v.dtype)
    return torch.matmul(weights, v).transpose(1, 2).reshape(rows, tokens, channels)


class _Routed:
    """What both kinds of layer do once they have projected."""

    def __init__(self, layer: int, upcast: bool = False) -> None:
        self.layer, self.upcast = layer, upcast

    def attend(
        self, attn: Attention, routing: Routing, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Attention and the output projection, [R, N, C]; with ``upcast`` maps are computed in float32."""
        if routing.watch is not None:
            routing.watch(attn, query, key)
        if self.upcast:
            query, key = query.float(), key.float()
        projected: torch.Tensor = attn.to_out[0](scaled_attention(attn, query, key, value))
        return projected


class RoutedSelfAttention(_Routed):
    """Self-attention layer ``layer`` (numbered from 1 in forward order)."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        *,
        routing: Routing,
    ) -> torch.Tensor:
        routing.taps[self.layer] = hidden_states
        mapped = hidden_states
        if routing.map_row is not None:
            if self.layer in routing.records:
                mapped = torch.cat([hidden_states, routing.records[self.layer]])
            mapped = mapped.index_select(0, routing.map_row[self.layer - 1])
        return self.attend(attn, routing, attn.to_q(mapped), attn.to_k(mapped), attn.to_v(hidden_states))


class RoutedCrossAttention(_Routed):
    """Cross-attention layer ``layer`` (numbered from 1 in forward order).

    Keys and values are projected once for each distinct text, not once for each row.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        *,
        routing: Routing,
    ) -> torch.Tensor:
        assert encoder_hidden_states is not None
        mapped, map_text = hidden_states, routing.row_text
        if routing.cross_map_row is not None:
            rows = routing.cross_map_row[self.layer - 1]
            mapped = hidden_states.index_select(0, rows)
            map_text = map_text.index_select(0, rows)
        query = attn.to_q(mapped)
        key = attn.to_k(encoder_hidden_states).index_select(0, map_text)
        value = attn.to_v(encoder_hidden_states).index_select(0, routing.row_text)
        return self.attend(attn, routing, query, key, value)
