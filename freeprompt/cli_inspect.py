"""``freeprompt inspect``: what a bundle is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from freeprompt import clioptions

if TYPE_CHECKING:
    from freeprompt.bundle import Bundle
    from freeprompt.manifest import Manifest, Parity

DESCRIPTION = """\
Check every file of a bundle and print what it is: model, sizes, graphs with their inputs and
outputs, the layers that --replace-layers takes, and how each graph agreed with PyTorch when it was
exported."""


def register(subparsers: clioptions.Subparsers) -> None:
    """Add the command."""
    parser = clioptions.add_command(subparsers, "inspect", run, "check a bundle and print what it is", DESCRIPTION)
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder, or demo")
    parser.add_argument("--json", action="store_true", help="print the whole manifest, path and hash as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    bundle = clioptions.open_bundle(arguments.bundle)
    print(bundle_to_json(bundle) if arguments.json else "\n".join(bundle_to_lines(bundle)))


def bundle_to_json(bundle: Bundle) -> str:
    """The manifest with where it lies and what identifies it."""
    import msgspec

    from freeprompt.manifest import MANIFEST_NAME

    whole = {
        "path": str(bundle.path),
        "sha256": bundle.sha256,
        "bytes": sum(file.bytes for file in bundle.manifest.files),
        "manifest": msgspec.Raw((bundle.path / MANIFEST_NAME).read_bytes()),
    }
    return msgspec.json.format(msgspec.json.encode(whole), indent=1).decode()


def bundle_to_lines(bundle: Bundle) -> Iterator[str]:
    """The readable account."""
    manifest = bundle.manifest
    latents, text, scheduler = manifest.latents, manifest.text, manifest.scheduler
    total = sum(file.bytes for file in manifest.files)
    facts = {
        "bundle": f"{bundle.path} ({_megabytes(total)}, format {manifest.format_version})",
        "sha256": bundle.sha256,
        "model": manifest.model,
        "producer": manifest.producer,
        "precision": f"{manifest.precision}, opset {manifest.opset}",
        "image": f"{latents.width}x{latents.height} native, in multiples of {latents.scale * latents.multiple}",
        "latents": f"{latents.channels}x{latents.height // latents.scale}"
        f"x{latents.width // latents.scale}, "
        f"scaling factor {latents.scaling_factor:g}",
        "text": f"{text.tokens} tokens of width {text.channels}",
        "schedule": f"{len(scheduler.alphas_cumprod)} timesteps, "
        f"{scheduler.timestep_spacing} spacing, "
        f"{scheduler.prediction_type} prediction",
        **manifest.notes,
    }
    width = max(len(name) for name in facts)
    yield from (f"{name:{width}}  {value}" for name, value in facts.items())
    yield ""
    yield from _half_lines(manifest)
    yield from _graph_lines(manifest)
    yield from _layer_lines(manifest)
    yield ""
    yield from _table(
        ("file", "size", "sha256"),
        [(file.path, _megabytes(file.bytes), file.sha256[:16]) for file in manifest.files],
    )


def _half_lines(manifest: Manifest) -> Iterator[str]:
    half = manifest.half_precision
    if half is None:
        return
    yield f"half precision: what exceeds {half.limit:g} on the export's inputs stays float32"
    yield from (f"  largest activation of {graph}: {peak:.4g}" for graph, peak in half.activations.items())
    if half.logits:
        layer, peak = max(half.logits.items(), key=lambda item: item[1])
        yield f"  largest attention logit: {peak:.4g} in {layer}"
    for part in half.float32_parts:
        yield f"  float32: {'.'.join(filter(None, (part.graph, part.part)))}: {part.reason}"
    for part in half.unneeded:
        yield f"  not float32, although configured: {part.graph}: {part.reason}"
    if not half.float32_parts:
        yield "  nothing does"
    yield ""


def _graph_lines(manifest: Manifest) -> Iterator[str]:
    for name, graph in manifest.graphs.items():
        cost = f", {graph.macs / 1e9:.4g} GMAC a row" if graph.macs else ""
        yield f"graph {name} ({graph.file}{cost})"
        yield from (f"  in   {spec}" for spec in graph.inputs)
        yield from (f"  out  {spec}" for spec in graph.outputs)
        yield from _parity_lines(graph.parity, graph.parity_threshold)
        if graph.fused is not None:
            operators = ", ".join(f"{count} {name}" for name, count in graph.fused.operators.items())
            yield f"  for ONNX Runtime: {graph.fused.file} ({operators or 'nothing to fuse'})"
            yield from _parity_lines(graph.fused.parity, graph.parity_threshold)
        yield ""


def _parity_lines(parity: tuple[Parity, ...], threshold: float) -> Iterator[str]:
    for each in parity:
        yield (
            f"  agrees with PyTorch to {each.relative_l2:.1e} relative L2, {each.max_abs:.1e} at most "
            f"({each.shapes}; threshold {threshold:.0e})"
        )


def _layer_lines(manifest: Manifest) -> Iterator[str]:
    yield f"self-attention layers (tokens at {manifest.latents.width}x{manifest.latents.height})"
    rows = [
        (
            str(layer.number),
            str(layer.level),
            str(layer.tokens),
            str(layer.heads),
            str(layer.channels),
            "yes" if layer.replaced else "no",
            "yes" if layer.recordable else "no",
            layer.name,
        )
        for layer in manifest.layers
    ]
    head = ("layer", "level", "tokens", "heads", "channels", "replaced", "recordable", "name")
    yield from _table(head, rows)
    yield f"cross-attention layers: {manifest.cross_layers}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    for row in (head, *rows):
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"
