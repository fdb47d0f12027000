"""freeprompt on PyTorch: the same plan, rows and routing as the engines', so that only execution differs.

Attention is PyTorch's fused one (``scaled_dot_product_attention``), not the MatMul-Softmax-MatMul that is exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from freeprompt import Editor
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.manifest import TensorSpec
from freeprompt.contract.session import Array, Feed, NumpyArray, check_feeds
from freeprompt.export.checkpoint.load import load_checkpoint
from freeprompt.export.model.attention import RoutedCrossAttention, RoutedSelfAttention, Routing
from freeprompt.export.model.layers import set_routed_attention, unet_to_architecture
from freeprompt.export.model.modules import StepGraph, TextEncoderGraph, VaeDecoderGraph, VaeEncoderGraph


@dataclass(frozen=True)
class TorchArray:
    """A tensor on the device."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(str(self.tensor.dtype).removeprefix("torch."))

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def numpy(self) -> NumpyArray:
        values: NumpyArray = self.tensor.cpu().numpy()
        return values


class TorchSession:
    """One module with the signature of one graph."""

    def __init__(self, bundle: Bundle, graph: str, run: Any, device: str, clones: bool) -> None:
        self._graph = graph
        self._spec = bundle.manifest.graph(graph)
        self._run = run
        self._device = device
        self._clones = clones

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._spec.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._spec.outputs

    @torch.no_grad()
    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        check_feeds(self._graph, self._spec.inputs, feeds)
        values = [self._tensor(feeds[spec.name]) for spec in self._spec.inputs]
        if self._graph == "step":
            values.append(())
        if self._clones:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        result = self._run(*values)
        outputs = result if isinstance(result, tuple) else (result,)
        named = zip(self._spec.outputs, outputs)
        # What a recorded CUDA graph returns is overwritten by its next run.
        return {spec.name: TorchArray(t.clone() if self._clones else t) for spec, t in named}

    def _tensor(self, feed: Feed) -> Any:
        if isinstance(feed, TorchArray):
            return feed.tensor
        values = feed if isinstance(feed, np.ndarray) else feed.numpy()
        return torch.from_numpy(np.array(values)).to(self._device, non_blocking=True)


class TorchBackend:
    """A checkpoint in PyTorch. Has the graphs of the one-engine plan only (``record="none"``).

    Args:
        checkpoint: the folder that was exported.
        dtype: of the weights.
        compiled: through ``torch.compile`` with CUDA graphs.
    """

    def __init__(self, checkpoint: Path, device: str, dtype: torch.dtype, compiled: bool = False) -> None:
        loaded = load_checkpoint(str(checkpoint))
        size = loaded.unet.config.sample_size
        set_routed_attention(loaded.unet, unet_to_architecture(loaded.unet, size, size))
        loaded.unet.set_attn_processor({name: _fused(p) for name, p in loaded.unet.attn_processors.items()})
        self._modules: dict[str, nn.Module] = {
            "step": StepGraph(loaded.unet, ()),
            "text_encoder": TextEncoderGraph(loaded.text_encoder),
            "vae_encoder": VaeEncoderGraph(loaded.vae),
            "vae_decoder": VaeDecoderGraph(loaded.vae),
        }
        for module in self._modules.values():
            module.to(device, dtype).eval()
        self._device = device
        self._compiled = compiled

    @property
    def name(self) -> str:
        return "torch"

    @property
    def device(self) -> str:
        return self._device

    def open(self, bundle: Bundle, graph: str) -> TorchSession:
        module: Any = self._modules[graph]
        clones = False
        if self._compiled and graph == "step":
            module, clones = torch.compile(module, mode="reduce-overhead", dynamic=False), True
        return TorchSession(bundle, graph, module, self._device, clones)

    def upload(self, array: NumpyArray) -> TorchArray:
        return TorchArray(torch.from_numpy(np.array(array)).to(self._device))

    def synchronize(self) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize()


def torch_editor(bundle: Bundle, checkpoint: Path) -> Editor:
    """An editor that runs the checkpoint of a bundle in PyTorch on the CPU, in float32."""
    return Editor(bundle, TorchBackend(checkpoint, "cpu", torch.float32))


class _Fused:
    """In place of the exported form of attention."""

    def attend(self, attn: Any, routing: Routing, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, tokens, channels = query.shape
        dim = channels // attn.heads

        def split(tensor: Tensor) -> Tensor:
            return tensor.view(rows, -1, attn.heads, dim).transpose(1, 2)

        out = functional.scaled_dot_product_attention(split(query), split(key), split(value), scale=attn.scale)
        projected: Tensor = attn.to_out[0](out.transpose(1, 2).reshape(rows, tokens, channels))
        return projected


class _FusedSelfAttention(_Fused, RoutedSelfAttention):
    pass


class _FusedCrossAttention(_Fused, RoutedCrossAttention):
    pass


def _fused(processor: Any) -> Any:
    """The processor of the same layer with PyTorch's own attention."""
    kind = _FusedSelfAttention if isinstance(processor, RoutedSelfAttention) else _FusedCrossAttention
    return kind(processor.layer)
