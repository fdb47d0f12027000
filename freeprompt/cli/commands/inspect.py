"""``freeprompt inspect``: what a bundle is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from freeprompt.cli import options
from freeprompt.cli.json_text import value_to_json
from freeprompt.contract.text import escaped

if TYPE_CHECKING:
    from freeprompt.contract.bundle import Bundle
    from freeprompt.contract.manifest import Manifest
    from freeprompt.contract.parity import Parity

# In the short account: as many parts or notes are named, and of a note so many characters are shown.
_NAMED, _WIDTH = 3, 100
DESCRIPTION = """\
Check every file of a bundle and print what it is: model, precision, size, graphs, the layers that
--replace-layers takes, engines that were built, and how well the graphs agreed with PyTorch when it
was exported. --all goes on with every tensor, layer, comparison and file."""


def register(subparsers: options.Subparsers) -> None:
    """Add the command."""
    parser = options.add_command(subparsers, "inspect", run, "check a bundle and print what it is", DESCRIPTION)
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder, or demo")
    parser.add_argument("--all", action="store_true", help="every tensor, layer, comparison and file too")
    parser.add_argument("--json", action="store_true", help="print the whole manifest, path and hash as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    bundle = options.open_bundle(arguments.bundle)
    if arguments.json:
        print(bundle_to_json(bundle))
        return
    lines = [*summary_lines(bundle), *(detail_lines(bundle) if arguments.all else ())]
    print("\n".join(escaped(line) for line in lines))


def bundle_to_json(bundle: Bundle) -> str:
    """The manifest with where it lies and what identifies it."""
    import msgspec

    from freeprompt.contract.manifest import MANIFEST_NAME

    return value_to_json(
        {
            "path": str(bundle.path),
            "sha256": bundle.sha256,
            "bytes": sum(file.bytes for file in bundle.manifest.files),
            "manifest": msgspec.Raw((bundle.path / MANIFEST_NAME).read_bytes()),
        }
    )


def summary_lines(bundle: Bundle) -> Iterator[str]:
    """A screenful: what most want to know."""
    manifest = bundle.manifest
    latents, text, scheduler = manifest.latents, manifest.text, manifest.scheduler
    total = sum(file.bytes for file in manifest.files)
    facts = {
        "bundle": f"{bundle.path} ({_megabytes(total)}, format {manifest.format_version}; every file is as exported)",
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
        "replaced": f"layers {_ranges(manifest.replaced_layers)} of {len(manifest.layers)} by default "
        "(--replace-layers)",
        "graphs": ", ".join(manifest.graphs),
        "fused": _fused(manifest),
        "cuda": _cuda(manifest),
        "agreement": _agreement(manifest),
        **({"half": _half(manifest)} if manifest.half_precision is not None else {}),
        "built": _built(bundle),
        **_few(manifest.notes),
    }
    width = max(len(name) for name in facts)
    yield from (f"{name:{width}}  {value}" for name, value in facts.items())


def detail_lines(bundle: Bundle) -> Iterator[str]:
    """Everything else."""
    manifest = bundle.manifest
    yield ""
    yield from _half_lines(manifest)
    yield from _graph_lines(manifest)
    yield from _layer_lines(manifest)
    yield from _engine_lines(bundle)
    yield ""
    yield from _table(
        ("file", "size", "sha256"),
        [(file.path, _megabytes(file.bytes), file.sha256[:16]) for file in manifest.files],
    )
    yield from (f"note {name}: {note}" for name, note in manifest.notes.items())


def _ranges(numbers: Sequence[int]) -> str:
    """ "3-13, 16": in the words of --replace-layers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) or "none"


def _fused(manifest: Manifest) -> str:
    """How much of the U-Net has the form for ONNX Runtime."""
    from freeprompt.contract.graphs import STEP

    step = manifest.graphs.get(STEP)
    if step is None or step.fused is None:
        return "nothing: the step graph has the standard form only"
    operators = ", ".join(f"{count} {name}" for name, count in step.fused.operators.items()) or "nothing"
    return f"{operators} in the step graph, for ONNX Runtime; the standard form is there too"


def _cuda(manifest: Manifest) -> str:
    """Whether the U-Net has the form for ONNX Runtime's CUDA provider."""
    step = manifest.graphs.get("step")
    if step is None or step.cuda is None:
        return "no forms of its own: it was exported before there were any"
    operators = ", ".join(f"{count} {name}" for name, count in step.cuda.operators.items()) or "nothing"
    return f"{operators} in the step graph, where freeprompt build --backend cuda finds it right and not slower"


def _agreement(manifest: Manifest) -> str:
    """The comparison that is nearest to what is allowed."""
    found = [
        (parity.relative_l2 / graph.parity_threshold, name, parity.relative_l2, graph.parity_threshold)
        for name, graph in manifest.graphs.items()
        for parity in (*graph.parity, *(graph.fused.parity if graph.fused else ()))
        if graph.parity_threshold > 0
    ]
    if not found:
        return "with PyTorch was not measured"
    _, name, worst, threshold = max(found)
    return f"with PyTorch to {worst:.1e} relative L2 at worst ({name}; {threshold:.0e} is allowed)"


def _half(manifest: Manifest) -> str:
    """What was measured and what stays float32, in a line."""
    half = manifest.half_precision
    assert half is not None
    activation = max(half.activations.values(), default=0.0)
    logit = max(half.logits.values(), default=0.0)
    parts = [".".join(filter(None, (part.graph, part.part))) for part in half.float32_parts]
    kept = ", ".join(parts[:_NAMED]) + (f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else "")
    return (
        f"largest activation {activation:.4g}, attention logit {logit:.4g}, {half.limit:g} allowed; "
        f"float32: {kept or 'nothing'}"
    )


def _built(bundle: Bundle) -> str:
    """Engines in the bundle; whether they fit this machine is another question."""
    from freeprompt.engines.onnxruntime import cuda_notes
    from freeprompt.engines.tensorrt.library import FLAVOURS
    from freeprompt.engines.tensorrt.store import PATTERN

    counts = {
        f"{flavour.title} engines": len(list((bundle.engines / name).glob(PATTERN)))
        for name, flavour in FLAVOURS.items()
    }
    counts["forms checked for CUDA"] = len(list((bundle.engines / cuda_notes.FOLDER).glob("*.json")))
    found = [f"{count} {what}" for what, count in counts.items() if count]
    if not found:
        return "no engines; the graphs run as they are"
    return f"{', '.join(found)} (--all lists them, freeprompt doctor says which can be used)"


def _engine_lines(bundle: Bundle) -> Iterator[str]:
    """Every engine: what it is of, by what and for what, how large, how right."""
    from freeprompt.engines.tensorrt.library import FLAVOURS
    from freeprompt.engines.tensorrt.store import EngineStore

    for flavour in FLAVOURS.values():
        for found in EngineStore(bundle, flavour, None).scan():
            metadata = found.metadata
            if metadata is None:
                yield f"engine {found.path.name}: {found.refused}"
                continue
            yield (
                f"engine {found.path.name} of {metadata.graph}: {flavour.title} {metadata.tensorrt}, "
                f"for {metadata.targets}, {_megabytes(metadata.engine_bytes)}, SHA-256 {metadata.engine_sha256}"
            )
            yield from (f"  shapes {profile}{' (fixed)' if metadata.baked else ''}" for profile in metadata.profiles)
            yield from _parity_lines(metadata.parity, metadata.parity_threshold, "ONNX Runtime on the CPU")
            if not metadata.parity:
                yield "  not yet checked: built without a GPU, it is checked where it is first loaded"


def _few(notes: Mapping[str, str]) -> dict[str, str]:
    """The first notes, shortened: they are an exporter's own words, and may be many."""
    return {f"note {name[:_WIDTH]}": note[:_WIDTH] for name, note in list(notes.items())[:_NAMED]}


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
        if graph.cuda is not None:
            operators = ", ".join(f"{count} {name}" for name, count in graph.cuda.operators.items())
            yield f"  for ONNX Runtime on CUDA: {graph.cuda.file} ({operators or 'nothing to fuse'})"
        yield ""


def _parity_lines(parity: tuple[Parity, ...], threshold: float, other: str = "PyTorch") -> Iterator[str]:
    for each in parity:
        yield (
            f"  agrees with {other} to {each.relative_l2:.1e} relative L2, {each.max_abs:.1e} at most "
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
