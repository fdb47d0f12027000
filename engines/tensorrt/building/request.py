"""What is asked of a build, and what is said of it: the messages between a process and the one that builds for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from freeprompt.contract.errors import BackendError, FreePromptError, OutputError, UsageError
from freeprompt.contract.manifest import TensorSpec
from freeprompt.engines.shapes import Profile
from freeprompt.engines.tensorrt.building.progress import Reporter


@dataclass(frozen=True)
class BuilderSettings:
    """What the builder may do.

    Attributes:
        workspace_bytes: device memory for one kernel's scratch; None: whatever the GPU has.
        optimization_level: 0 (quick build) to 5; 3 is TensorRT's default.
        baked: fix the shapes in the network itself. Needs a single static profile.
        compute_capabilities: of the GPUs that the engine is for, as "8.6"; none: the library's own choice.
    """

    workspace_bytes: int | None = None
    optimization_level: int = 3
    baked: bool = False
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.workspace_bytes is not None and self.workspace_bytes < 1 << 20:
            raise UsageError(f"the workspace must be at least 1 MiB, not {self.workspace_bytes} bytes")
        if not 0 <= self.optimization_level <= 5:
            raise UsageError(f"the optimization level is 0 to 5, not {self.optimization_level}")


@dataclass(frozen=True)
class BuildRequest:
    """One engine to be built.

    Attributes:
        backend: name of the library, as of ``FLAVOURS``.
        model: path of the ONNX file, its weights beside it.
        engine: path of the file to write, which is there and empty.
        inputs: of the graph, as the manifest names their dimensions.
        profiles: one optimization profile each.
        timing_cache: path of measured kernels, read and written; builds that follow are several times faster.
    """

    backend: str
    model: str
    engine: str
    inputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    settings: BuilderSettings
    timing_cache: str | None = None

    def __post_init__(self) -> None:
        if self.settings.baked and (len(self.profiles) != 1 or not self.profiles[0].is_static):
            raise UsageError("shapes can be fixed in an engine for a single static profile only")


@dataclass(frozen=True)
class Built:
    """An engine that was written.

    Attributes:
        seconds: that the build took.
        warnings: of the library, each once.
        peak_memory_bytes: most memory that the process which built it has held; 0 where the system does not tell.
    """

    seconds: float
    warnings: tuple[str, ...] = ()
    peak_memory_bytes: int = 0


# Builds what is requested, and reports how far it is.
Compile = Callable[[BuildRequest, Reporter], Built]


class Line(msgspec.Struct, frozen=True, tag="progress"):
    """How far the build is."""

    text: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The build has ended well."""

    built: Built


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The build has ended with an error that is known."""

    kind: Literal["backend", "usage", "output"]
    message: str


Answer = Line | Done | Failed
_KINDS: dict[str, type[FreePromptError]] = {"backend": BackendError, "usage": UsageError, "output": OutputError}


def error_to_answer(error: FreePromptError) -> Failed:
    """An error as it is sent."""
    kinds: dict[type[FreePromptError], Any] = {UsageError: "usage", OutputError: "output"}
    return Failed(kinds.get(type(error), "backend"), str(error))


def answer_to_error(answer: Failed) -> FreePromptError:
    """An error as it was raised where the engine was built."""
    return _KINDS[answer.kind](answer.message)
