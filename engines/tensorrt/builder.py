"""From an ONNX graph to a TensorRT engine, by the library's own parser and builder.

Written once for 8.6 and for 10.3 to 11.x. From 10 on networks are strongly typed: precision is what the graph says.
8.6 has no such networks; there the builder may use half precision where the bundle is in half precision.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freeprompt.contract.errors import BackendError, OutputError, UsageError
from freeprompt.contract.files import read_regular
from freeprompt.contract.manifest import TensorSpec
from freeprompt.engines.artifacts.metadata import save_file
from freeprompt.engines.shapes import Profile
from freeprompt.engines.tensorrt.library import Messages, at_least, parser_failure
from freeprompt.engines.tensorrt.progress import BuildProgress, Reporter, create_monitor

# A timing cache is some megabytes.
MAX_CACHE_BYTES = 1 << 28


@dataclass(frozen=True)
class BuilderSettings:
    """What the builder may do.

    Attributes:
        precision: of the bundle.
        workspace_bytes: device memory for one kernel's scratch; None: whatever the GPU has.
        optimization_level: 0 (quick build) to 5; 3 is TensorRT's default.
        baked: fix the shapes in the network itself. Needs a single static profile.
    """

    precision: str
    workspace_bytes: int | None = None
    optimization_level: int = 3
    baked: bool = False

    def __post_init__(self) -> None:
        if self.workspace_bytes is not None and self.workspace_bytes < 1 << 20:
            raise UsageError(f"the workspace must be at least 1 MiB, not {self.workspace_bytes} bytes")
        if not 0 <= self.optimization_level <= 5:
            raise UsageError(f"the optimization level is 0 to 5, not {self.optimization_level}")


@dataclass(frozen=True)
class Built:
    """A serialized engine (a buffer) and how long it took."""

    engine: Any
    seconds: float
    warnings: tuple[str, ...]


def build_engine(
    trt: Any,
    path: Path,
    inputs: tuple[TensorSpec, ...],
    profiles: tuple[Profile, ...],
    settings: BuilderSettings,
    timing_cache: Path | None = None,
    progress: Reporter = lambda line: None,
) -> Built:
    """Build the graph at ``path``.

    Args:
        trt: the library.
        inputs: of the graph, as the manifest names their dimensions.
        profiles: one optimization profile each.
        timing_cache: file of measured kernels, read and written; builds that follow are several times faster.

    Raises:
        BackendError: the parser or the builder refused; the message holds node and cause.
        UsageError: ``settings`` ask for what this version or these profiles do not have.
    """
    start = time.monotonic()
    messages = Messages(trt)
    try:
        builder = trt.Builder(messages.logger)
    except TypeError as error:  # how the bindings report that the library gave them nothing
        raise messages.failure("start its builder") from error
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse_from_file(str(path)):
        raise parser_failure(parser, trt, path)
    config = builder.create_builder_config()
    _configure(trt, config, settings)
    _add_profiles(builder, network, config, inputs, profiles, settings.baked)
    cache = _load_cache(config, timing_cache)
    if at_least(trt, "10.3"):
        state = BuildProgress(f"building {path.stem}", progress)
        config.progress_monitor = create_monitor(trt, state)
    memory = builder.build_serialized_network(network, config)
    if memory is None:
        raise messages.failure(f"build {path.stem}")
    _save_cache(cache, timing_cache)
    return Built(memory, time.monotonic() - start, tuple(messages.warnings))


def _network_flags(trt: Any) -> int:
    flag = trt.NetworkDefinitionCreationFlag
    if at_least(trt, "10.3"):
        return 1 << int(flag.STRONGLY_TYPED)
    else:  # noqa: RET505 - the conformance test reads versions off if and else
        return 1 << int(flag.EXPLICIT_BATCH)


def _configure(trt: Any, config: Any, settings: BuilderSettings) -> None:
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    config.builder_optimization_level = settings.optimization_level
    # Kernel names in the inspector's output: without them nobody could count what was fused.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # On by default, and it rounds a float32 model's products to 11 bits.
    config.clear_flag(trt.BuilderFlag.TF32)
    if at_least(trt, "10.3"):
        return
    else:  # noqa: RET505 - the conformance test reads versions off if and else
        if settings.precision == "float16":
            config.set_flag(trt.BuilderFlag.FP16)
        # The later versions' own choice. cuDNN and cuBLAS, which 8.6 would use too, need not be installed then.
        source = trt.TacticSource
        config.set_tactic_sources(1 << int(source.EDGE_MASK_CONVOLUTIONS) | 1 << int(source.JIT_CONVOLUTIONS))


def _add_profiles(
    builder: Any,
    network: Any,
    config: Any,
    inputs: tuple[TensorSpec, ...],
    profiles: tuple[Profile, ...],
    baked: bool,
) -> None:
    if baked and (len(profiles) != 1 or not profiles[0].is_static):
        raise UsageError("shapes can be fixed in an engine for a single static profile only")
    specs = {spec.name: spec for spec in inputs}
    entries = {}
    for index in range(network.num_inputs):
        entry = network.get_input(index)
        entries[entry.name] = entry
    if entries.keys() != specs.keys():
        raise BackendError(f"the graph has inputs {sorted(entries)}, the manifest says {sorted(specs)}")
    if baked:
        for name, spec in specs.items():
            entry = entries[name]
            entry.shape = profiles[0].shape(spec, 1)
        return
    for profile in profiles:
        optimization = builder.create_optimization_profile()
        for name, spec in specs.items():
            if any(isinstance(dim, str) for dim in spec.shape):
                shapes = (profile.shape(spec, 0), profile.shape(spec, 1), profile.shape(spec, 2))
                optimization.set_shape(name, shapes[0], shapes[1], shapes[2])
        if config.add_optimization_profile(optimization) < 0:
            raise BackendError(f"TensorRT refused the shapes {profile}")


def _load_cache(config: Any, path: Path | None) -> Any:
    data = b""
    if path is not None:
        with contextlib.suppress(OSError):  # none yet, or something else: start anew
            data = read_regular(path, MAX_CACHE_BYTES, follow_links=False)
    cache = config.create_timing_cache(data)
    if cache is None and data:  # damaged, or of another version: start anew
        cache = config.create_timing_cache(b"")
    if cache is not None:
        config.set_timing_cache(cache, False)
    return cache


def _save_cache(cache: Any, path: Path | None) -> None:
    if cache is None or path is None:
        return
    memory = cache.serialize()
    if memory is not None:
        try:
            save_file(path, memory)
        except OutputError:
            return  # costs time at the next build, nothing else
