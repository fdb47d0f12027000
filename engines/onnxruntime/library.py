"""The onnxruntime library: whether it can be used, and sessions on its providers or an error that says what to do."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import io
import re
import sys
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.engines.onnxruntime.external_data import checked_snapshot
from freeprompt.engines.onnxruntime.plugins import quiet
from freeprompt.engines.onnxruntime.provider import CUDA, TENSORRT, Provider
from freeprompt.engines.onnxruntime.stoppable import call_stoppable
from freeprompt.engines.onnxruntime.weights import Given, give_weights, trim_memory
from freeprompt.engines.verify import ADVICE, Runner

# Warnings of the library are about its own choices (a node placed on the CPU, a transformer skipped); errors raise.
_LOG_ERROR = 3
# Lets a session say afterwards which node runs where.
_NOTE_NODES = ("session.record_ep_graph_assignment_info", "1")
# The driver's library, which no package brings.
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
INSTALL_CUDA = "install them with pip install 'onnxruntime-gpu[cuda,cudnn]'"

# 1.17 to 1.19 fail on these graphs, 1.20.0 to 1.21.0 compute the text encoder's attention wrong without a word.
OLDEST = (1, 21, 1)


def check_version(version: str = "") -> None:
    """Raises BackendError if the installed onnxruntime is older than ``OLDEST``.

    Whatever a package's requirements say, another may have been put in its place; the library itself is asked.

    Args:
        version: of the library; "": as it is installed.
    """
    version = version or str(ort.__version__)
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    oldest = ".".join(map(str, OLDEST))
    if found is None or tuple(int(part or 0) for part in found.groups()) < OLDEST:
        raise BackendError(
            f"onnxruntime {version} is installed, and versions before {oldest} fail on these graphs or compute them "
            f"wrong; install a later one: pip install 'onnxruntime>={oldest}'"
        )


def cuda_problem() -> str | None:
    """Why the CUDA provider cannot be used here, or None. Having been built with it says nothing of the machine."""
    if CUDA not in ort.get_available_providers():
        return (
            f"the installed onnxruntime {ort.__version__} has no {CUDA}; install onnxruntime-gpu instead of onnxruntime"
        )
    missing = load_libraries()
    try:
        with quiet():
            ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda", 0)
    except Exception as error:  # the library raises plain RuntimeError and classes of its own
        if missing:
            return (
                f"onnxruntime-gpu {ort.__version__} cannot find {', '.join(missing)}; "
                f"{INSTALL_CUDA}, or name their folder in LD_LIBRARY_PATH"
            )
        if not _has_driver():
            return f"there is no NVIDIA driver: {_DRIVER} cannot be loaded"
        return f"onnxruntime-gpu {ort.__version__} cannot use CUDA: {_reason(error)}; check the driver (nvidia-smi)"
    return None


def open_session(
    bundle: Bundle,
    graph: str,
    provider: Provider,
    threads: int | None = None,
    fused: bool = True,
    model: bytes | None = None,
) -> Any:
    """An ``InferenceSession`` that really uses the provider.

    Args:
        fused: the form of the graph for ONNX Runtime instead of the standard one.
        model: an ONNX file to run instead of either, whose weights are the bundle's.

    Raises:
        BundleError: there is no such graph, or a file was changed since the bundle was opened.
        BackendError: the graph cannot be loaded, or the library fell back to another provider.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERROR
    if threads is not None:
        options.intra_op_num_threads = threads
    if provider.cuda_device is None:
        # A plan of memory for each set of shapes costs half as much again as it saves, and no time (ARCHITECTURE.md).
        options.enable_mem_pattern = False
    if provider.is_cpu:
        if _share_arena():
            options.add_session_config_entry("session.use_env_allocators", "1")
    else:
        options.add_session_config_entry(*_NOTE_NODES)
    with contextlib.ExitStack() as stack:
        given = Given()
        if provider.ep_name == TENSORRT:
            # That provider reads weights by path, and may again.
            source: Any = str(stack.enter_context(checked_snapshot(bundle, graph, fused)))
        else:
            source = model if model is not None else bundle.read(bundle.graph_name(graph, fused))
            given = give_weights(options, source, bundle, graph)
        session = _load(source, options, provider, provider.session_providers(bundle), graph)
        # Nothing of the library's own would keep either for as long as it needs them.
        session.freeprompt_memory = given.memory if given.referred else ()
        weakref.finalize(session, stack.pop_all().close)
    if given.memory:
        del given, options
        trim_memory()
    if provider.ep_name not in session.get_providers():
        # The library falls back to the CPU with no more than a log line when CUDA cannot be initialised.
        problem = cuda_problem() if provider.cuda_device is not None else None
        problem = problem or "check that its libraries match this version of onnxruntime"
        raise BackendError(f"ONNX Runtime could not use {provider.ep_name} on this machine: {problem}")
    return session


def _load(source: Any, options: Any, provider: Provider, providers: list[Any], graph: str) -> Any:
    """Open a session such that Ctrl-C is heard while the library computes what a graph makes of its constants."""

    def load() -> Any:
        # Without the library's fallback, by which a provider that fails, now or in a run, is exchanged for the CPU.
        return ort.InferenceSession(source, options, providers=providers or None, enable_fallback=0)

    def stop() -> None:
        if hasattr(options, "set_load_cancellation_flag"):
            options.set_load_cancellation_flag(True)

    try:
        with contextlib.nullcontext() if provider.is_cpu else quiet():
            if provider.devices:
                options.add_provider_for_devices(list(provider.devices), dict(provider.options))
            return call_stoppable(load, stop)
    except Exception as error:
        on_cpu = provider.device == "cpu"
        if _is_out_of_memory(error):
            raise failure(graph, error, on_cpu) from error
        detail = str(error) if provider.is_cpu else _reason(error)
        where = "" if provider.is_cpu else f" with {provider.ep_name}"
        raise BackendError(f"ONNX Runtime {ort.__version__} cannot load graph {graph}{where}: {detail}") from error


@dataclass(frozen=True)
class Placement:
    """How many of a graph's nodes run on a provider; the others run on the CPU."""

    ep_name: str
    taken: int
    nodes: int

    def __str__(self) -> str:
        others = ", the others on the CPU" if self.taken < self.nodes else ""
        return f"{self.taken} of {self.nodes} nodes on {self.ep_name}{others}"


def session_to_placement(session: Any, provider: Provider) -> Placement | None:
    """What the provider has taken; None: this is the CPU, or the library does not say (before 1.24)."""
    if provider.is_cpu or not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    counts: Counter[str] = Counter()
    try:
        for part in session.get_provider_graph_assignment_info():
            counts[part.ep_name] += len(part.get_nodes())
    except Exception:  # it was not noted
        return None
    return Placement(provider.ep_name, counts[provider.ep_name], sum(counts.values()))


def onnxruntime_runner(provider: Provider, fused: bool, model: bytes | None) -> Runner:
    """What runs a graph in that form on that provider."""
    form = "fused" if fused else "standard"
    if model is not None:
        form = hashlib.sha256(model).hexdigest()
    origin = f" of {provider.plugin.origin}" if provider.plugin else ""
    name = f"ONNX Runtime {ort.__version__} ({provider.ep_name}{origin})"
    build = f"{ort.get_build_info()} {form} {provider.identity}"
    if provider.is_cpu:
        return Runner(name, build)
    return Runner(name, build, f"let it compute in the model's precision, if it has an option for that, or {ADVICE}")


def cuda_model(bundle: Bundle, graph: str) -> bytes | None:
    """The graph's form for CUDA, if ``freeprompt build --backend cuda`` has found that it may be used here."""
    from freeprompt.engines.onnxruntime.cuda_notes import CudaNotes

    return CudaNotes(bundle, ort.__version__).model(graph)


@functools.cache
def _share_arena() -> bool:
    """Let all sessions of the process take their memory from one arena: they run one after the other.

    Else each keeps what its largest evaluation took. The library has one such arena, made once.
    """
    kind = getattr(ort, "OrtAllocatorType", None)
    if kind is None or not hasattr(ort, "create_and_register_allocator"):
        return False
    info = ort.OrtMemoryInfo("Cpu", kind.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, None)
    return True


def failure(graph: str, error: Exception, on_cpu: bool = False) -> BackendError:
    """The error for a run that failed, on the CPU or on a GPU."""
    if isinstance(error, BackendError):
        return error
    if _is_out_of_memory(error):
        place, where = ("this machine", "") if on_cpu else ("the GPU", " on the GPU")
        return BackendError(
            f"graph {graph}: {place} has not enough memory ({_first_line(error)}); use fewer prompts at once, a "
            f"smaller size, or close other programs{where}"
        )
    return BackendError(f"graph {graph} failed in ONNX Runtime: {error}")


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    said = ("out of memory", "failed to allocate memory", "bad_alloc", "bad allocation")
    return isinstance(error, MemoryError) or any(part in text.lower() for part in said)


def load_libraries() -> tuple[str, ...]:
    """Find CUDA and cuDNN where pip put them.

    Returns:
        the names of those that were not found.
    """
    said = io.StringIO()
    if hasattr(ort, "preload_dlls"):
        # It prints what it does not find, and raises nothing.
        with contextlib.suppress(Exception), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            ort.preload_dlls()
    return tuple(re.findall(r"Failed to load ([^:\s]+):", said.getvalue()))


def _has_driver() -> bool:
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return False
    return True


def _reason(error: Exception) -> str:
    """What CUDA or a provider says, out of an error that begins with codes and places in the library's source."""
    first, *more = str(error).strip().splitlines() or [""]
    found = re.search(r"CUDA failure \d+: ([^;]+)", first)
    if found:
        return found.group(1).strip()
    first = re.sub(r"^(\[ONNXRuntimeError\] : \d+ : \w+ : )?(/onnxruntime_src/.*\) )?", "", first)
    return " ".join(" ".join((first, *more)).split()) or type(error).__name__


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
