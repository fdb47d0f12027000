"""From an ONNX graph to an engine, by polygraphy.

Polygraphy works on one of the libraries in a process, chosen when it is imported, and holds its logger globally; the
libraries keep the first logger of a process too. So this module is imported by ``child`` alone. Networks are strongly
typed: precision is what the graph says.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
from polygraphy.backend.trt import (
    CreateConfig,
    EngineBytesFromNetwork,
    NetworkFromOnnxPath,
    PostprocessConfig,
    PostprocessNetwork,
    Profile,
)
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER

from freeprompt.contract.errors import BackendError, OutputError
from freeprompt.contract.files import read_regular
from freeprompt.contract.manifest import TensorSpec
from freeprompt.engines import shapes
from freeprompt.engines.artifacts.metadata import save_file
from freeprompt.engines.tensorrt.building.progress import BuildProgress, Reporter, create_monitor
from freeprompt.engines.tensorrt.building.request import BuildRequest, Built
from freeprompt.engines.tensorrt.library import Library, explain

if TYPE_CHECKING:
    from freeprompt.engines.tensorrt.api import BuildingTensorRT, IBuilderConfig, INetworkDefinition

# A timing cache is some megabytes.
MAX_CACHE_BYTES = 1 << 28
_REFUSED = re.compile(r"In node \d+ with name: (.*?) and operator: (.*?) \(\w*\): \w+: (.*)", re.DOTALL)


class _Collector(logging.Handler):
    """Keeps what polygraphy, and the library through it, has to say."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = re.sub(r"^\[[A-Z!]\] *", "", record.getMessage()).strip()
        if record.levelno >= logging.ERROR:
            self.errors.append(text)
        elif text not in self.warnings:
            self.warnings.append(text)


def compile_engine(request: BuildRequest, library: Library, progress: Reporter) -> Built:
    """Build the engine and write it.

    Raises:
        BackendError: the parser or the builder refused; the message holds node and cause.
        OutputError: the engine cannot be written.
    """
    start = time.monotonic()
    trt, path = library.trt, Path(request.model)
    said = _collect()
    names = {spec.name for spec in request.inputs}
    network = NetworkFromOnnxPath(request.model, strongly_typed=True)
    if request.settings.baked:
        network = PostprocessNetwork(network, _Baking(request))
    try:
        loaded = network()
        found = {loaded[1].get_input(index).name for index in range(loaded[1].num_inputs)}
        if found != names:
            raise BackendError(f"the graph has inputs {sorted(found)}, the manifest says {sorted(names)}")
    except PolygraphyException as error:
        raise _parser_failure(said.errors or [str(error)], library, path) from error
    except TypeError as error:  # how the bindings report that the library gave them nothing
        raise _failure("start its builder", said, library) from error
    monitor = create_monitor(trt, BuildProgress(f"building {path.stem}", progress))
    try:
        with _timing_cache(request.timing_cache) as (kept, measured):
            config = _config(request, library, monitor, kept)
            engine = EngineBytesFromNetwork(loaded, config, save_timing_cache=measured)()
    except PolygraphyException as error:
        said.errors = said.errors or [str(error)]
        raise _failure(f"build {path.stem}", said, library) from error
    try:
        Path(request.engine).write_bytes(engine)
    except OSError as error:
        raise OutputError(f"cannot write the engine of {path.stem}: {error.strerror or error}") from error
    return Built(round(time.monotonic() - start, 3), tuple(said.warnings))


def _collect() -> _Collector:
    """From now on nothing is printed; it is kept."""
    collector = _Collector()
    G_LOGGER.use_python_logging_system = True
    G_LOGGER.module_severity = G_LOGGER.WARNING
    G_LOGGER.python_logger.handlers = [collector]
    G_LOGGER.python_logger.propagate = False
    return collector


def _config(request: BuildRequest, library: Library, monitor: Any, cache: str | None) -> Any:
    trt, settings = cast("BuildingTensorRT", library.trt), request.settings
    common: dict[str, Any] = {
        "profiles": None if settings.baked else [_profile(p, request.inputs, library) for p in request.profiles],
        "builder_optimization_level": settings.optimization_level,
        # Kernel names in the inspector's output: without them nobody could count what was fused.
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        "progress_monitor": monitor,
        "load_timing_cache": cache,
    }
    if settings.workspace_bytes is not None:
        common["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: settings.workspace_bytes}
    if not library.flavour.portable:
        return CreateConfig(tf32=False, **common)
    targets = [tuple(int(part) for part in name.split(".")) for name in settings.compute_capabilities]
    config = CreateConfigRTX(compute_capabilities=targets or None, **common)
    return PostprocessConfig(config, _without_tf32(trt))


def _without_tf32(trt: BuildingTensorRT) -> Any:
    """On by default, and it rounds a float32 model's products to 11 bits."""

    def clear(builder: Any, network: Any, config: IBuilderConfig) -> None:
        config.clear_flag(trt.BuilderFlag.TF32)

    return clear


def _profile(profile: shapes.Profile, inputs: tuple[TensorSpec, ...], library: Library) -> Profile:
    if not library.flavour.single_row_ranges:
        profile = _without_single_rows(profile)
    found = Profile()
    for spec in inputs:
        found.add(spec.name, *(profile.shape(spec, which) for which in range(3)))
    return found


def _without_single_rows(profile: shapes.Profile) -> shapes.Profile:
    """The same, and for one row more where there is exactly one and the image's size is a range."""
    ranges = [low != high for low, _, high in (profile.dims.get(name, (0, 0, 0)) for name in ("height", "width"))]
    if profile.dims.get("rows") != (1, 1, 1) or not all(ranges):
        return profile
    return shapes.Profile({**profile.dims, "rows": (1, 1, 2)}, profile.slack)


class _Baking:
    """Fixes the shapes of a network's inputs, which nothing in polygraphy does."""

    def __init__(self, request: BuildRequest) -> None:
        self._profile = request.profiles[0]
        self._inputs = {spec.name: spec for spec in request.inputs}
        self.__name__ = "fix shapes"

    def __call__(self, network: INetworkDefinition) -> None:
        for index in range(network.num_inputs):
            entry = network.get_input(index)
            if entry.name in self._inputs:
                entry.shape = self._profile.shape(self._inputs[entry.name], 1)


def _parser_failure(errors: list[str], library: Library, path: Path) -> BackendError:
    """The error for an ONNX file that the parser refused: which nodes and why."""
    refusals = [match for match in map(_REFUSED.search, errors) if match]
    reasons = [f"node {match[1]} ({match[2]}): {match[3].strip().splitlines()[0]}" for match in refusals]
    if any("Invalid Node" in reason for reason in reasons) and explain(errors[:1]) not in reasons:
        reasons.append(explain(errors[:1]))
    shown = "; ".join(reasons[:3]) or explain(errors)
    return BackendError(
        f"{library.name} cannot take {path.name}: {shown}. "
        "An operator it lacks may be absent at a lower opset (export with --opset 18), or use --backend cuda"
    )


def _failure(action: str, said: _Collector, library: Library) -> BackendError:
    return BackendError(f"{library.flavour.title} could not {action}: {explain(said.errors)}")


@contextlib.contextmanager
def _timing_cache(path: str | None) -> Iterator[tuple[str | None, str | None]]:
    """Paths to read measured kernels from and to write them to: private copies, since polygraphy follows links."""
    if path is None:
        yield None, None
        return
    with tempfile.TemporaryDirectory(prefix="freeprompt-") as folder:
        copy = Path(folder) / "timing.cache"
        with contextlib.suppress(OSError):  # none yet, or something else: start anew
            copy.write_bytes(read_regular(Path(path), MAX_CACHE_BYTES, follow_links=False))
        yield str(copy) if copy.exists() else None, str(copy)
        # What cannot be kept costs time at the next build, nothing else.
        with contextlib.suppress(OSError, OutputError):
            save_file(Path(path), copy.read_bytes())
