"""``freeprompt build``: engines, for the GPU of this machine or ahead of time for others."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from freeprompt.cli import options
from freeprompt.cli.stages import Stages
from freeprompt.contract.text import escaped

if TYPE_CHECKING:
    from freeprompt.contract.bundle import Bundle
    from freeprompt.engines.backend_name import ProviderSpec
    from freeprompt.engines.shapes import Shapes
    from freeprompt.engines.tensorrt.building.bundle_build import Outcome

DESCRIPTION = """\
Build TensorRT engines of BUNDLE for the GPU of this machine, and keep them in it. An engine holds
for one GPU architecture and one TensorRT version. Each is compared with ONNX Runtime on the CPU;
one that does not agree is not kept. What was built before is not built again, so that a build that
was interrupted goes on where it was.

With --backend tensorrt-rtx no GPU is needed: engines are built here and run elsewhere, on GPUs of
compute capability 8.0, 8.6, 8.9, 12.0 and later, or on those of --for. Where one is first loaded, its
kernels are compiled and kept beside it, and it is compared with ONNX Runtime on the CPU. With -o they
are built in a copy of BUNDLE, to be shipped; whoever receives it adopts the engines with --trust.

With --backend ort:NAME every graph is run once at every shape on that execution provider of ONNX
Runtime and compared with the CPU, so that an edit need not wait for what the provider compiles and
keeps: ort:tensorrt keeps its engines in BUNDLE, others where their own options say, or nothing.

With --backend cuda nothing is built: each graph's form for ONNX Runtime's CUDA provider (fused group
norms and convolutions with channels last), which the export has written, is compared with ONNX Runtime
on the CPU and timed against the fused form. If it is right and not slower that is noted in BUNDLE, and
--backend cuda runs it from then on."""

# Backends that have nothing to build, and why.
NOTHING_TO_BUILD = {
    "cpu": "runs the graphs as they were exported",
}
TENSORRT = ("tensorrt", "tensorrt-rtx")
BUILDABLE = "tensorrt, tensorrt-rtx, cuda or ort:NAME"
# Options that only some backends take, by their names in the parsed arguments.
TENSORRT_ONLY = {
    "range": "--dynamic",
    "engines": "--engines",
    "workspace": "--workspace",
    "optimization_level": "--optimization-level",
    "trust": "--trust",
}
RTX_ONLY = {"targets": "--for"}


def register(subparsers: options.Subparsers) -> None:
    """Add the command."""
    parser = options.add_command(subparsers, "build", run, "build TensorRT engines, here or for others", DESCRIPTION)
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder, or demo")
    parser.add_argument(
        "--backend",
        type=options.backend_name,
        default="tensorrt",
        metavar="B",
        help=f"what to build for: {BUILDABLE} (default: tensorrt); the CPU has nothing to build",
    )
    parser.add_argument(
        "--for",
        dest="targets",
        metavar="SM,SM,...",
        help="with tensorrt-rtx: compute capabilities of the GPUs to build for, as sm86,sm120 (default: portable)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="build in a copy of BUNDLE of this name; if it is there already, the build goes on in it",
    )
    parser.add_argument(
        "--size",
        action="append",
        type=options.width_and_height,
        metavar="WxH",
        help="image size in pixels; may be repeated (default: the model's native size)",
    )
    parser.add_argument(
        "--prompts",
        type=_counts,
        metavar="N,N,...",
        help="how many prompts an edit has (default: 1); inversion and generation are built for in any case",
    )
    parser.add_argument(
        "--record",
        action="append",
        choices=("none", "exact", "inversion"),
        help="how an edit records its source, see freeprompt edit; may be repeated (default: every way)",
    )
    parser.add_argument(
        "--max-rows", type=options.positive_integer, metavar="N", help="that of the edits (default: 8, as theirs)"
    )
    parser.add_argument(
        "--rows",
        metavar="R,R,...",
        help="batches of the U-Net of your own choice, as ROWS or ROWS:LATENTS, in place of the options above: "
        "1 is inversion, 2 generation and 2,3 an edit with one prompt",
    )
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument(
        "--dynamic",
        "--range",
        dest="range",
        action="store_true",
        help="one engine for everything from the least to the greatest size and rows; slower than exact shapes",
    )
    shapes.add_argument(
        "--static", dest="range", action="store_false", help="exact shapes, which fuse and tune best (default)"
    )
    parser.add_argument(
        "--record-rows",
        type=options.positive_integer,
        metavar="N",
        help="source rows recorded in one evaluation (default: as many as an edit of that size records, at most 4)",
    )
    parser.add_argument(
        "--engines",
        default="shared",
        choices=("shared", "each"),
        help="shared: one engine a graph, for all shapes; each: one engine for each shape, "
        "each with weights of its own (default: shared)",
    )
    options.add_renamed_option(
        parser, "--profile", "it is called --engines now: --engines shared (was memory) or --engines each (was latency)"
    )
    parser.add_argument("--graph", action="append", metavar="NAME", help="only this graph; may be repeated")
    parser.add_argument(
        "--workspace",
        type=_gibibytes,
        metavar="GIB",
        help="device memory for the scratch of one kernel (default: all)",
    )
    parser.add_argument("--optimization-level", type=int, default=3, metavar="0-5", help="TensorRT's (default: 3)")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="also check and adopt engines in BUNDLE that were built elsewhere. An engine is code: "
        "only if you know who built them",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    spec = _check_backend(arguments)
    bundle = options.open_bundle(arguments.bundle)
    shapes = _shapes(bundle, arguments)
    for graph in arguments.graph or ():
        bundle.manifest.graph(graph)
        shapes.profiles(graph)
    stages = Stages(arguments.quiet)
    if spec is not None and str(spec) != "cuda":
        _warm_provider(_copied(bundle, arguments), shapes, arguments, stages)
        return
    if spec is not None:
        from freeprompt.cli.cuda_build import check_forms

        check_forms(_copied(bundle, arguments), shapes, tuple(arguments.graph or ()), stages, arguments.quiet)
        return
    _build_tensorrt(bundle, shapes, arguments, stages)


def _build_tensorrt(bundle: Bundle, shapes: Shapes, arguments: argparse.Namespace, stages: Stages) -> None:
    from freeprompt.contract.errors import BackendError
    from freeprompt.engines.tensorrt.backend import TensorRTBackend
    from freeprompt.engines.tensorrt.building.bundle_build import BundleBuild, build_bundle
    from freeprompt.engines.tensorrt.library import load_library
    from freeprompt.engines.tensorrt.rtx import text_to_capabilities

    library = load_library(arguments.backend)
    build = BundleBuild(
        shapes,
        arguments.engines,
        tuple(arguments.graph or ()),
        arguments.workspace,
        arguments.optimization_level,
        arguments.trust,
        () if arguments.targets is None else text_to_capabilities(library, arguments.targets),
    )
    backend = None
    try:
        backend = TensorRTBackend(library)
    except BackendError as error:
        if not library.flavour.builds_without_gpu:
            raise
        stages.line(f"no GPU can be used here ({error}): engines are checked where they are first loaded")
    bundle = _copied(bundle, arguments)
    with stages.stage("build"):
        for outcome in build_bundle(bundle, build, library, backend, stages.line):
            if not arguments.quiet:
                print(escaped(_outcome_to_line(outcome)), flush=True)
    if not arguments.quiet:
        print(stages.summary())


def _copied(bundle: Bundle, arguments: argparse.Namespace) -> Bundle:
    """The bundle to build in."""
    from pathlib import Path

    from freeprompt.engines.artifacts.bundle_copy import copy_bundle

    return bundle if arguments.output is None else copy_bundle(bundle, Path(arguments.output))


def _check_backend(arguments: argparse.Namespace) -> ProviderSpec | None:
    """The provider of ONNX Runtime to build for; None: TensorRT or TensorRT-RTX.

    Raises:
        UsageError: a backend that has nothing to build, or an option that means nothing to it.
    """
    from freeprompt.contract.errors import UsageError
    from freeprompt.engines.backend_name import parse_backend

    spec = parse_backend(arguments.backend)
    name = arguments.backend if spec is None else str(spec)
    if name in NOTHING_TO_BUILD:
        raise UsageError(f"--backend {name} needs no build: it {NOTHING_TO_BUILD[name]}. Build for {BUILDABLE}")
    if name == "auto":
        raise UsageError(f"--backend auto is a choice among backends; build takes {BUILDABLE}")
    defaults = argparse.ArgumentParser()
    add_options(defaults)
    unknown = {**({} if name in TENSORRT else TENSORRT_ONLY), **({} if name == "tensorrt-rtx" else RTX_ONLY)}
    for option, flag in unknown.items():
        if getattr(arguments, option) != defaults.get_default(option):
            raise UsageError(f"{flag} means nothing to --backend {name}; leave it out")
    return spec


def _warm_provider(bundle: Bundle, shapes: Shapes, arguments: argparse.Namespace, stages: Stages) -> None:
    from freeprompt.engines.select import create_backend
    from freeprompt.engines.warm import warm_bundle

    backend = create_backend(arguments.backend)
    with stages.stage("build"):
        for parity in warm_bundle(bundle, shapes, backend, tuple(arguments.graph or ()), stages.line):
            if not arguments.quiet:
                line = f"{parity.shapes}: differs from ONNX Runtime on the CPU by {parity.relative_l2:.1e}"
                print(escaped(line), flush=True)
    if not arguments.quiet:
        print(stages.summary())


def _shapes(bundle: Bundle, arguments: argparse.Namespace) -> Shapes:
    """Raises UsageError for what the model or the bundle cannot do, before minutes of work."""
    from freeprompt.contract.errors import UsageError
    from freeprompt.engines.shapes import Shapes
    from freeprompt.runtime.inputs.arguments import size_to_latents
    from freeprompt.runtime.plan import shapes
    from freeprompt.runtime.plan.limits import Limits

    manifest, recorded = bundle.manifest, arguments.record_rows
    sizes = [size_to_latents(manifest.latents, size) for size in arguments.size or (None,)]
    if arguments.rows is None:
        limits = Limits() if arguments.max_rows is None else Limits(rows=arguments.max_rows)
        prompts = arguments.prompts or (1,)
        found = shapes.usual_sizes(manifest, sizes, prompts, arguments.record, limits, recorded)
        return Shapes(found, arguments.range)
    for option in ("prompts", "record", "max_rows"):
        if getattr(arguments, option) is not None:
            name = option.replace("_", "-")
            raise UsageError(f"--rows says which batches there are, and --{name} would find them: leave one out")
    batches = [shapes.Batch.parse(part) for part in arguments.rows.split(",")]
    found = shapes.joined(shapes.batches_to_sizes(manifest, batches, size, recorded) for size in sizes)
    return Shapes(found, arguments.range)


def _outcome_to_line(outcome: Outcome) -> str:
    metadata = outcome.metadata
    found = [
        f"{metadata.engine_bytes / 1e6:.1f} MB",
        f"{metadata.build_seconds:.0f} s",
        *([f"peak memory {metadata.peak_memory_bytes / 1e9:.1f} GB"] if metadata.peak_memory_bytes else []),
        *([f"scratch {metadata.device_memory_bytes / 1e6:.1f} MB"] if metadata.layers else []),
        f"for {metadata.targets}",
    ]
    if metadata.parity:
        found.append(f"differs from ONNX Runtime by {max(p.relative_l2 for p in metadata.parity):.1e}")
    else:
        found.append("not yet checked: that needs a GPU that it is for")
    if metadata.attention_layers and metadata.layers:
        count = "an unknown number" if metadata.fused_attention is None else metadata.fused_attention
        found.append(f"{count} of {metadata.attention_layers} attention layers fused")
    lines = [f"{outcome.how} {outcome.path.name}: {', '.join(found)}"]
    return "\n".join([*lines, *(f"  warning: {warning}" for warning in metadata.warnings)])


def _counts(text: str) -> tuple[int, ...]:
    return tuple(options.positive_integer(part) for part in text.split(","))


def _gibibytes(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.001 <= value <= 1024:
        raise argparse.ArgumentTypeError(f"expected GiB from 0.001 to 1024, not {text!r}")
    return int(value * 2**30)
