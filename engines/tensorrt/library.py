"""The TensorRT libraries: which there are, what each can do, and their messages as errors that say what to do."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from freeprompt.contract.errors import BackendError

if TYPE_CHECKING:
    from freeprompt.engines.tensorrt.api import ILogger, TensorRT
# A process may run for long, and hear much.
_KEPT = 50


@dataclass(frozen=True)
class Flavour:
    """A TensorRT library as a backend, and what of the common API it has.

    Attributes:
        backend: its name for ``--backend``, and the folder of its engines.
        title: its maker's name for it.
        modules: names of its Python module; the first that is there is used.
        oldest: the first version that is supported.
        install: what to do where it is missing.
        builds_without_gpu: engines can be built on a machine that cannot run them; what such an engine computes is
            checked where it is first loaded.
        portable: compute capabilities of the GPUs that an engine runs on which was built for no one in particular;
            "12.0+": that and later ones. Empty: only those of the GPU that it was built on.
        timing_cache: measured kernels can be kept for the next build.
        engine_validity: the library says whether an engine can run before it is loaded.
        runtime_cache: kernels are compiled where an engine is loaded, and can be kept for the next time.
        single_row_ranges: a U-Net is built for exactly one row and a range of both heights and widths.
    """

    backend: str
    title: str
    modules: tuple[str, ...]
    oldest: str
    install: str
    builds_without_gpu: bool
    portable: tuple[str, ...]
    timing_cache: bool
    engine_validity: bool
    runtime_cache: bool
    single_row_ranges: bool

    def covers(self, targets: tuple[str, ...], capability: str) -> bool:
        """Whether an engine built for these compute capabilities (none: portable) runs on a GPU of another."""
        for target in targets or self.portable:
            if target == capability or (
                target.endswith("+") and version_numbers(capability) >= version_numbers(target)
            ):
                return True
        return False


FLAVOURS = {
    flavour.backend: flavour
    for flavour in (
        Flavour(
            "tensorrt",
            "TensorRT",
            ("tensorrt",),
            "10.3",
            "install it with 'pip install freeprompt[tensorrt-cu12]' or '[tensorrt-cu13]' (10.3 or later, matching the "
            "driver's CUDA), or take the one of JetPack; --backend tensorrt-rtx builds without a GPU, and ONNX Runtime "
            "needs no build: use --backend cuda or cpu",
            builds_without_gpu=False,
            portable=(),
            timing_cache=True,
            engine_validity=False,
            runtime_cache=False,
            single_row_ranges=True,
        ),
        Flavour(
            "tensorrt-rtx",
            "TensorRT-RTX",
            ("tensorrt_rtx", "tensorrt_rtx_bindings"),
            "1.4",
            "install it with 'pip install freeprompt[tensorrt-rtx]' (x86-64 Linux and Windows; 1.4 or later); "
            "ONNX Runtime needs no build: use --backend cuda or cpu",
            builds_without_gpu=True,
            portable=("8.0", "8.6", "8.9", "12.0+"),
            timing_cache=False,
            engine_validity=True,
            runtime_cache=True,
            # 1.7.1 ends in std::bad_alloc, whatever memory there is.
            single_row_ranges=False,
        ),
    )
}


class Messages:
    """What a library said since the last failure, kept for the error that may follow.

    Attributes:
        logger: to be given to the library.
        errors, warnings: its messages in order, the last of them.
    """

    def __init__(self, trt: TensorRT, title: str = "TensorRT") -> None:
        self.errors: deque[str] = deque(maxlen=_KEPT)
        self.warnings: deque[str] = deque(maxlen=_KEPT)
        self._title = title
        severe = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
        messages = self
        base: Any = trt.ILogger

        class Logger(base):  # type: ignore[misc]
            def __init__(self) -> None:
                base.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if severity in severe:
                    messages.errors.append(msg)
                elif severity == trt.ILogger.WARNING:
                    messages.warnings.append(msg)

        self.logger: ILogger = Logger()

    def failure(self, action: str) -> BackendError:
        """The error for an action that failed: the library returns None and has said why."""
        reason = explain(list(self.errors))
        self.errors.clear()
        return BackendError(f"{self._title} could not {action}: {reason}")


@dataclass(frozen=True)
class Library:
    """A library that is loaded.

    Attributes:
        trt: its module.
        messages: one for each process: the library keeps the first logger it is given, and ignores later ones.
    """

    flavour: Flavour
    trt: TensorRT
    messages: Messages

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def name(self) -> str:
        """For messages, as "TensorRT-RTX 1.7.1.116"."""
        return f"{self.flavour.title} {self.version}"


@functools.cache
def load_library(backend: str) -> Library:
    """The library of that backend.

    Raises:
        BackendError: not installed, its shared libraries are missing, or too old.
    """
    flavour = FLAVOURS[backend]
    trt = _import(flavour)
    if not hasattr(trt, "__version__"):
        raise BackendError(f"the module '{flavour.modules[0]}' is not {flavour.title}; {flavour.install}")
    if not at_least(trt, flavour.oldest):
        raise BackendError(
            f"{flavour.title} {trt.__version__} is too old; {flavour.oldest} is the first supported. {flavour.install}"
        )
    return Library(flavour, trt, Messages(trt, flavour.title))


def is_installed(flavour: Flavour) -> bool:
    """Whether there is a module of its name, without loading it."""
    return any(importlib.util.find_spec(name) is not None for name in flavour.modules)


def _import(flavour: Flavour) -> Any:
    for name in flavour.modules:
        module = _import_module(flavour, name)
        if module is not None:
            return module
    raise BackendError(f"{flavour.title} is not installed; {flavour.install}")


def _import_module(flavour: Flavour, name: str) -> Any:
    """The module of that name; None: there is none."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if getattr(error, "name", None) == name:
            return None
        raise BackendError(f"{flavour.title} cannot be loaded ({error}); {flavour.install}") from error
    except (OSError, RuntimeError) as error:
        raise BackendError(f"{flavour.title} cannot be loaded ({error}); {flavour.install}") from error


def at_least(trt: Any, version: str) -> bool:
    """Whether the library is of that version or later."""
    return version_numbers(trt.__version__) >= version_numbers(version)


def explain(errors: list[str]) -> str:
    """One line from a library's messages: the cause it knows, and what to do about it."""
    text = " ".join(errors)
    turing = re.search(r"Cannot compile operation '([^']+)' for Turing \(SM75\): (.+?)\. In", text)
    if turing:
        return f"{turing.group(2)} on Turing (sm75), and node {turing.group(1)} needs it; leave sm75 out"
    if re.search(r"out of memory|OutOfMemory|allocat\w+ failed|insufficient (device )?memory", text, re.I):
        return (
            f"out of memory ({_first(errors)}). Build with a smaller --workspace, fewer --rows or a smaller --size, "
            "and close other programs on the GPU"
        )
    if "bad_alloc" in text:
        return (
            "the compiler ran out of this machine's memory, or cannot do these shapes; build exact shapes (--static), "
            "a smaller --size or fewer --rows"
        )
    node = re.search(r"Could not find any implementation for node ([^\s]+)", text)
    if node:
        return (
            f"it has no kernel for node {node.group(1)} within the workspace; build with a larger --workspace, "
            "or use --backend cuda"
        )
    if re.search(
        r"CUDA initialization failure|insufficient.*driver|no CUDA-capable device|driver.*insufficient", text, re.I
    ):
        return f"there is no GPU that it can use, or the driver is too old for it ({_first(errors)})"
    if re.search(r"Version tag does not match|incompatible.*version|Serialization.*version", text, re.I):
        return "the engine is of another TensorRT version; build it again with 'freeprompt build'"
    return _first(errors)


def _first(errors: list[str]) -> str:
    """The first message is nearest to the cause; later ones say that what needed it failed too."""
    line = errors[0].strip().splitlines()[0] if errors and errors[0].strip() else "it gave no reason"
    return line if len(line) <= 300 else f"{line[:297]}..."


def version_numbers(version: str) -> tuple[int, ...]:
    """For comparison: (1, 7, 1) of "1.7.1rc2"; (0,) of what is no version."""
    found: re.Match[str] | None = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(n) for n in found.group().split(".")) if found else (0,)
