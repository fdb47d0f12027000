"""A step whose attention logits grow until half precision ends: checkpoint, bundles and float32 results.

Queries and keys of one small model are scaled by the same factor, so that the largest logit passes a ladder of sizes up
to beyond 65504, the largest number of float16. The scaled bundles differ in these weights alone; what the export would
do about such a model (it measures ranges) is left out, since it is what a backend does without that help that is asked.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from benchmarks.gpu import measure
from benchmarks.gpu.precision import LADDER, ROWS, Rung, bundle_path, save_rungs
from benchmarks.gpu.torch_peer import TorchBackend
from freeprompt.bundle import Bundle
from freeprompt.engines.engine_parity import seeded_inputs
from freeprompt.export import attention
from freeprompt.export.exporter import ExportSettings, export_checkpoint

# Between a logit and the projections that it comes from.
_PASSED = ("Reshape", "Transpose", "Cast", "Mul", "Div", "Add", "Gather", "Squeeze", "Unsqueeze", "Identity", "Expand")
_FUSED = ("MultiHeadAttention", "Attention", "PackedMultiHeadAttention")


def prepare(work: Path, out: Path, dry: bool, device: str) -> list[Rung]:
    """Write checkpoint, bundles and references of the ladder; what is there is used."""
    checkpoint, base = work / "checkpoint", bundle_path(work, 0)
    if not (checkpoint / "model_index.json").exists():
        _save_checkpoint(checkpoint, dry)
    if not (base / "manifest.json").exists():
        settings = ExportSettings(precision="float16", profile="memory")
        export_checkpoint(checkpoint, base, settings, True, lambda line: print(line, flush=True))
    bundle = Bundle.open(base, verify=False)
    rungs, plain = [], float("nan")
    for number, target in enumerate(LADDER):
        factor = 1.0 if number == 0 else (target / plain) ** 0.5
        backend = scaled_backend(checkpoint, device, torch.float32, factor)
        latents, logits = _watched_step(bundle, backend)
        plain = logits if number == 0 else plain
        measure.save_reference(out, f"precision-{number}", latents)
        if number:
            scale_bundle(base, bundle_path(work, number), factor)
        rungs.append(Rung(number, factor, logits))
    save_rungs(out, rungs)
    return rungs


def scaled_backend(
    checkpoint: Path, device: str, dtype: torch.dtype, factor: float, fused: bool = False
) -> TorchBackend:
    """PyTorch with queries and keys multiplied."""
    backend = TorchBackend(checkpoint, device, dtype, fused=fused)
    with torch.no_grad():
        for name, parameter in backend.module("step").named_parameters():
            if name.endswith((".to_q.weight", ".to_k.weight")):
                parameter.mul_(factor)
    return backend


def scale_bundle(source: Path, target: Path, factor: float) -> None:
    """A copy of a bundle with the weights of all queries and keys multiplied. Its manifest is the source's: open it
    without verifying."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("engines"))
    scaled: set[tuple[str, int]] = set()
    for path in sorted(target.glob("*.onnx")):
        model = onnx.load(path, load_external_data=False)
        initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        names = {name for start in _attention_inputs(model.graph) for name in _weights(model.graph, start)}
        for name in sorted(names):
            tensor = initializers[name]
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                where = {entry.key: entry.value for entry in tensor.external_data}
                place = (where["location"], int(where.get("offset", 0)))
                if place not in scaled:
                    scaled.add(place)
                    _scale_external(target / place[0], place[1], tensor, factor)
            else:
                values = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), name))
        onnx.save(model, path)


def _scale_external(path: Path, offset: int, tensor: Any, factor: float) -> None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    values = np.memmap(path, dtype, "r+", offset, tuple(tensor.dims))
    values[:] = (values.astype(np.float32) * factor).astype(dtype)
    values.flush()


def _attention_inputs(graph: Any) -> Iterator[str]:
    """Names of the values that queries and keys are in when they meet."""
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type in _FUSED:
            yield from node.input[:2]
        elif node.op_type == "Softmax":
            product = made_by[node.input[0]]
            while product.op_type in _PASSED:
                product = made_by[product.input[0]]
            yield from product.input[:2]


def _weights(graph: Any, name: str) -> Iterator[str]:
    """The matrix of the projection that a value comes from."""
    made_by = {output: node for node in graph.node for output in node.output}
    initializers = {tensor.name for tensor in graph.initializer}
    while name in made_by:
        node = made_by[name]
        if node.op_type in ("MatMul", "Gemm", "FusedMatMul"):
            yield from (value for value in node.input[:2] if value in initializers)
            return
        if node.op_type not in _PASSED:
            return
        name = next(value for value in node.input if value not in initializers)


def _watched_step(bundle: Bundle, backend: TorchBackend) -> tuple[Any, float]:
    """Latents after one step, and the largest logit in it."""
    plain = attention.scaled_attention
    largest = 0.0

    def watch(attn: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        rows, _, channels = query.shape
        dim = channels // attn.heads
        q, k = (t.view(rows, -1, attn.heads, dim).transpose(1, 2) for t in (query, key))
        for one_q, one_k in zip(q, k):
            largest = max(largest, float((one_q @ one_k.transpose(1, 2)).abs().max()) * attn.scale)
        return plain(attn, query, key, value)

    attention.scaled_attention = watch
    try:
        inputs = seeded_inputs(bundle.manifest, "step", measure.step_sizes(bundle, ROWS))
        latents = backend.open(bundle, "step").run(inputs)["next_latents"].numpy()
    finally:
        attention.scaled_attention = plain
    return latents, largest


def _save_checkpoint(folder: Path, dry: bool) -> None:
    if dry:
        from tests.tiny import tiny_pipeline

        tiny_pipeline().save_pretrained(folder)
    else:
        from benchmarks.sd15 import save_random_checkpoint

        save_random_checkpoint(folder, narrow=True)
