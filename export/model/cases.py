"""Seeded inputs of the step graph, for tracing and for parity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from freeprompt.contract.manifest import LatentSpec, TextSpec
from freeprompt.export.model.layers import Architecture

Routes = Literal["recorded", "own", "none"]
SEED = 20240304
# PyTorch's upsampling takes another (equal) path from 64 rows on; tracing stays below it, the graph has no such limit.
MAX_TRACED_ROWS = 63


@dataclass(frozen=True)
class StepCase:
    """Arguments of ``StepGraph``; ``records`` apart, since their dtype is the weights'."""

    shapes: str
    step: tuple[Tensor, ...]
    records: tuple[Tensor, ...]

    @property
    def args(self) -> tuple[Any, ...]:
        # A bundle that records nothing is traced without the argument: PyTorch takes no empty tuple of dynamic shapes.
        return (*self.step, self.records) if self.records else self.step

    @property
    def dynamic_shapes(self) -> tuple[Any, ...]:
        dim = torch.export.Dim
        rows, count = dim("rows", min=1, max=MAX_TRACED_ROWS), dim("latents", min=1, max=64)
        pinned, texts = dim("pinned", min=1, max=64), dim("texts", min=1, max=64)
        block = self.step[0].shape[2] // self.blocks[0]
        height = block * dim("height_blocks", min=1, max=512)
        width = block * dim("width_blocks", min=1, max=512)
        # How a layer's tokens follow from the height and width is for PyTorch to find out.
        auto = {0: dim.AUTO, 1: dim.AUTO}
        shapes: tuple[Any, ...] = (
            {0: count, 2: height, 3: width},
            {0: pinned, 2: height, 3: width},
            {0: texts},
            {0: rows},
            {0: rows},
            {0: rows},
            {1: rows},
            {1: rows},
            {0: count, 1: rows},
            {0: count},
            {0: count},
        )
        return (*shapes, tuple(auto for _ in self.records)) if self.records else shapes

    blocks: tuple[int, int] = (2, 3)


def step_cases(latents: LatentSpec, text: TextSpec, architecture: Architecture, routes: Routes) -> list[StepCase]:
    """The first is for tracing (no size equals another or is 0 or 1), the others differ in size and in batch.

    The last is the smallest that still routes between rows and between neighbours: a bundle keeps it as known answer.

    Args:
        routes: "recorded" routes among own and recorded rows, "own" among own rows; with "none" every row uses its own
            maps and reads stepped latents, as in the record graph.
    """
    # rows, latents, pinned, texts, blocks of height and width, recorded rows
    sizes = [(5, 2, 2, 3, 2, 3, 4), (3, 1, 1, 2, 2, 2, 1), (4, 2, 1, 3, 3, 2, 2), (2, 1, 1, 2, 1, 2, 1)]
    return [_case(latents, text, architecture, routes, *size) for size in sizes]


def _case(
    spec: LatentSpec,
    text: TextSpec,
    architecture: Architecture,
    routes: Routes,
    rows: int,
    latents: int,
    pinned: int,
    texts: int,
    high: int,
    wide: int,
    recorded: int,
) -> StepCase:
    generator = torch.Generator().manual_seed(SEED)
    height, width = high * spec.multiple, wide * spec.multiple

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def index(limit: int, *shape: int) -> Tensor:
        return torch.randint(limit, shape, generator=generator).int()

    layers, cross = len(architecture.layers), len(architecture.cross_layers)
    recordable = [layer for layer in architecture.layers if layer.recordable]
    plain = routes == "none"
    own = torch.arange(rows, dtype=torch.int32)
    map_row = own.repeat(layers, 1) if plain else index(rows, layers, rows)
    if routes == "recorded":
        for layer in recordable:
            map_row[layer.number - 1] = index(rows + recorded, rows)
            map_row[layer.number - 1, 0] = rows + recorded - 1
    cross_map_row = own.repeat(cross, 1) if plain else index(rows, cross, rows)
    step = (
        normal(latents, spec.channels, height, width),
        normal(pinned, spec.channels, height, width),
        normal(texts, text.tokens, text.channels),
        index(latents if plain else latents + pinned, rows),
        index(texts, rows),
        torch.randint(1000, (rows,), generator=generator).float(),
        map_row,
        cross_map_row,
        normal(latents, rows),
        normal(latents),
        normal(latents),
    )
    records = tuple(normal(recorded, height * width // 4**layer.level, layer.channels) for layer in recordable)
    shapes = f"rows={rows} latents={latents}x{height}x{width} recorded={recorded}"
    return StepCase(shapes, step, records, (high, wide))
