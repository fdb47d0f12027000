"""The onnxruntime library: which providers it has, and a session on one of them or an error that says what to do."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import io
import re
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime as ort

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.engines.onnxruntime.external_data import checked_snapshot
from freeprompt.engines.onnxruntime.stoppable import call_stoppable
from freeprompt.engines.onnxruntime.weights import Given, give_weights, trim_memory
from freeprompt.engines.verify import Runner

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "ort-tensorrt": "TensorrtExecutionProvider",
}
# Warnings of the library are about its own choices (a node placed on the CPU, a transformer skipped); errors raise.
_LOG_WARNING, _LOG_ERROR, _LOG_FATAL = 2, 3, 4
# The driver's library, which no package brings.
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
INSTALL_CUDA = "install them with pip install 'onnxruntime-gpu[cuda,cudnn]'"

# 1.17 to 1.19 fail on these graphs, 1.20.0 to 1.21.0 compute the text encoder's attention wrong without a word.
OLDEST = (1, 21, 1)

Provider = tuple[str, dict[str, str]]


def available() -> tuple[str, ...]:
    """Names of the ONNX Runtime backends that the installed build has."""
    providers = ort.get_available_providers()
    return tuple(name for name, provider in PROVIDERS.items() if provider in providers)


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
    if "cuda" not in available():
        return (
            f"the installed onnxruntime {ort.__version__} has no {PROVIDERS['cuda']}; "
            "install onnxruntime-gpu instead of onnxruntime"
        )
    missing = load_libraries()
    try:
        with _quiet():
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


def check_available(name: str) -> None:
    """Raises BackendError if the installed onnxruntime is too old or lacks the provider of that name."""
    check_version()
    if name not in available():
        raise BackendError(
            f"backend {name!r} is not there: the installed onnxruntime {ort.__version__} has no "
            f"{PROVIDERS.get(name, name)}; "
            f"it has {', '.join(ort.get_available_providers())}. "
            "For CUDA install onnxruntime-gpu instead of onnxruntime"
        )


def open_session(
    bundle: Bundle,
    graph: str,
    name: str,
    providers: list[Provider],
    threads: int | None = None,
    fused: bool = True,
    model: bytes | None = None,
) -> Any:
    """An ``InferenceSession`` that really uses the provider of that name.

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
    if name == "cpu":
        # A plan of memory for each set of shapes costs half as much again as it saves, and no time (ARCHITECTURE.md).
        options.enable_mem_pattern = False
        if _share_arena():
            options.add_session_config_entry("session.use_env_allocators", "1")
    with contextlib.ExitStack() as stack:
        given = Given()
        if name == "ort-tensorrt":
            # That provider reads weights by path, and may again.
            source: Any = str(stack.enter_context(checked_snapshot(bundle, graph, fused)))
        else:
            source = model if model is not None else bundle.read(bundle.graph_name(graph, fused))
            given = give_weights(options, source, bundle, graph)
        session = _load(source, options, providers, graph, name)
        # Nothing of the library's own would keep either for as long as it needs them.
        session.freeprompt_memory = given.memory if given.referred else ()
        weakref.finalize(session, stack.pop_all().close)
    if given.memory:
        del given, options
        trim_memory()
    if PROVIDERS[name] not in session.get_providers():
        # The library falls back to the CPU with no more than a log line when CUDA cannot be initialised.
        problem = cuda_problem() or "check that its libraries match this onnxruntime-gpu"
        raise BackendError(f"ONNX Runtime could not use {PROVIDERS[name]} on this machine: {problem}")
    return session


def _load(source: Any, options: Any, providers: list[Provider], graph: str, name: str) -> Any:
    """Open a session such that Ctrl-C is heard while the library computes what a graph makes of its constants."""

    def load() -> Any:
        # Without the library's fallback, by which a provider that fails, now or in a run, is exchanged for the CPU.
        return ort.InferenceSession(source, options, providers=providers, enable_fallback=0)

    def stop() -> None:
        if hasattr(options, "set_load_cancellation_flag"):
            options.set_load_cancellation_flag(True)

    try:
        with contextlib.nullcontext() if name == "cpu" else _quiet():
            return call_stoppable(load, stop)
    except Exception as error:
        if _is_out_of_memory(error):
            raise failure(graph, error, name == "cpu") from error
        detail = str(error) if name == "cpu" else _reason(error)
        raise BackendError(f"ONNX Runtime {ort.__version__} cannot load graph {graph}: {detail}") from error


def onnxruntime_runner(name: str, fused: bool, model: bytes | None) -> Runner:
    """What runs a graph in that form on that provider."""
    form = "fused" if fused else "standard"
    if model is not None:
        form = hashlib.sha256(model).hexdigest()
    return Runner(f"ONNX Runtime {ort.__version__} ({PROVIDERS[name]})", f"{ort.get_build_info()} {form}")


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


def cuda_options() -> dict[str, str]:
    """Options of the CUDA provider."""
    # Products of float32 stay float32: by default they are rounded to 11 bits on the tensor cores.
    return {"use_tf32": "0"}


def tensorrt_options(bundle: Bundle) -> dict[str, str]:
    """Options of the TensorRT provider: its engines are kept in the bundle, where only this user can have put them."""
    from freeprompt.engines.artifacts.metadata import make_folder
    from freeprompt.engines.artifacts.signature import Signature

    folder = bundle.engines / f"ort-tensorrt-{Signature().token('ort-tensorrt')}"
    make_folder(folder)
    half = "True" if bundle.manifest.precision == "float16" else "False"
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": half,
    }


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No lines of the library's own on the terminal while it tries what may fail: the failure is an error of ours."""
    ort.set_default_logger_severity(_LOG_FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_LOG_WARNING)


def _has_driver() -> bool:
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return False
    return True


def _reason(error: Exception) -> str:
    """What CUDA says, out of an error that begins with places in the library's source."""
    line = _first_line(error)
    found = re.search(r"CUDA failure \d+: ([^;]+)", line)
    return found.group(1).strip() if found else re.sub(r"^/onnxruntime_src/.*\) ", "", line)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
