"""ONNX Runtime: the CPU provider everywhere, the CUDA and TensorRT providers where the installed build has them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import onnxruntime as ort

from freeprompt.bundle import Bundle
from freeprompt.engines.session import Array, Feed, HostArray, NumpyArray, Session, check_feeds
from freeprompt.errors import BackendError
from freeprompt.manifest import TensorSpec

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "ort-tensorrt": "TensorrtExecutionProvider",
}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}
# Warnings of the library are about its own choices (a node placed on the CPU, a transformer skipped); errors raise.
_LOG_ERROR = 3

Provider = tuple[str, dict[str, str]]


def available() -> tuple[str, ...]:
    """Names of the ONNX Runtime backends that the installed build has."""
    providers = ort.get_available_providers()
    return tuple(name for name, provider in PROVIDERS.items() if provider in providers)


def cuda_problem() -> Optional[str]:
    """Why the CUDA provider cannot be used here, or None. Having been built with it says nothing of the machine."""
    if "cuda" not in available():
        return (
            f"the installed onnxruntime {ort.__version__} has no {PROVIDERS['cuda']}; "
            "install onnxruntime-gpu instead of onnxruntime"
        )
    _load_libraries()
    try:
        ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda", 0)
    except Exception as error:  # the library raises plain RuntimeError and classes of its own
        return f"onnxruntime-gpu {ort.__version__} cannot use CUDA: {_first_line(error)}"
    return None


@dataclass(frozen=True)
class DeviceArray:
    """A tensor in CUDA memory, held by ONNX Runtime."""

    value: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape())

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(_DTYPES[self.value.data_type()])

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def numpy(self) -> NumpyArray:
        result: NumpyArray = self.value.numpy()
        return result


class OnnxRuntimeSession:
    """One graph in one ``onnxruntime.InferenceSession``."""

    def __init__(self, graph: str, session: Any, specs: tuple[TensorSpec, ...], on_device: bool):
        self._graph = graph
        self._session = session
        self._on_device = on_device
        self._inputs, self._outputs = check_signature(graph, session, specs)
        # The manifest's names for dimensions tie the inputs to each other; the file's own need not.
        self._checked = specs

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        check_feeds(self._graph, self._checked, feeds)
        try:
            return self._run_on_device(feeds) if self._on_device else self._run_on_host(feeds)
        except Exception as error:  # the library raises plain RuntimeError and classes of its own
            raise failure(self._graph, error) from error

    def _run_on_host(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        values = {name: feed if isinstance(feed, np.ndarray) else feed.numpy() for name, feed in feeds.items()}
        names = [spec.name for spec in self._outputs]
        results = self._session.run(names, values)
        return {name: HostArray(result) for name, result in zip(names, results)}

    def _run_on_device(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        binding = self._session.io_binding()
        for name, feed in feeds.items():
            if isinstance(feed, DeviceArray):
                binding.bind_ortvalue_input(name, feed.value)
            else:
                values = feed if isinstance(feed, np.ndarray) else feed.numpy()
                binding.bind_cpu_input(name, np.ascontiguousarray(values))
        for spec in self._outputs:
            # Memory of its own for each result, from the library's pool: an array never changes once returned.
            binding.bind_output(spec.name, "cuda")
        self._session.run_with_iobinding(binding)
        values = binding.get_outputs()
        return {spec.name: DeviceArray(value) for spec, value in zip(self._outputs, values)}


class OnnxRuntimeBackend:
    """Sessions on one ONNX Runtime provider.

    Args:
        name: "cpu", "cuda" or "ort-tensorrt" (whose engines are kept in the bundle).
        threads: threads within an operator on the CPU; None lets the library use every core.
        fused: False runs the standard form of each graph instead of that with ONNX Runtime's own operators: the same
            result from more memory, to compare.

    Raises:
        BackendError: the installed onnxruntime has no such provider.
    """

    def __init__(self, name: str = "cpu", threads: Optional[int] = None, fused: bool = True) -> None:
        check_available(name)
        if threads is not None and threads < 1:
            raise BackendError(f"threads must be at least 1, not {threads}")
        self._name = name
        self._threads = threads
        # TensorRT knows the standard's operators only.
        self._fused = fused and name != "ort-tensorrt"
        if name != "cpu":
            _load_libraries()

    @property
    def name(self) -> str:
        return self._name

    @property
    def device(self) -> str:
        return "cpu" if self._name == "cpu" else "cuda:0"

    def open(self, bundle: Bundle, graph: str) -> Session:
        session = open_session(bundle, graph, self._name, self._providers(bundle), self._threads, self._fused)
        specs = bundle.manifest.graph(graph).inputs
        return OnnxRuntimeSession(graph, session, specs, self._name != "cpu")

    def upload(self, array: NumpyArray) -> Array:
        if self._name == "cpu":
            return HostArray(np.array(array))
        try:
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", 0)
        except Exception as error:
            raise failure("upload", error) from error
        return DeviceArray(value)

    def _providers(self, bundle: Bundle) -> list[Provider]:
        if self._name == "cpu":
            return [(PROVIDERS["cpu"], {})]
        if self._name == "cuda":
            return [(PROVIDERS["cuda"], cuda_options())]
        return [
            (PROVIDERS["ort-tensorrt"], tensorrt_options(bundle)),
            (PROVIDERS["cuda"], cuda_options()),
        ]


def check_available(name: str) -> None:
    """Raises BackendError if the installed onnxruntime lacks the provider of that name."""
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
    threads: Optional[int] = None,
    fused: bool = True,
) -> Any:
    """An ``InferenceSession`` that really uses the provider of that name, on the fused form of the graph or not.

    Raises:
        BundleError: there is no such graph.
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
    path = str(bundle.graph_path(graph, fused))
    try:
        session = ort.InferenceSession(path, options, providers=providers)
    except Exception as error:
        raise BackendError(f"ONNX Runtime {ort.__version__} cannot load graph {graph}: {error}") from error
    if PROVIDERS[name] not in session.get_providers():
        # The library falls back to the CPU with no more than a log line when CUDA cannot be initialised.
        raise BackendError(
            f"ONNX Runtime could not use {PROVIDERS[name]} on this machine; "
            "check the driver and that its CUDA and cuDNN match this onnxruntime-gpu ('freeprompt doctor')"
        )
    return session


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
    from freeprompt.engines.tensorrt_record import Seal

    folder = bundle.engines / f"ort-tensorrt-{Seal().token('ort-tensorrt')}"
    folder.mkdir(parents=True, exist_ok=True)
    half = "True" if bundle.manifest.precision == "float16" else "False"
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": half,
    }


def check_signature(
    graph: str, session: Any, specs: tuple[TensorSpec, ...]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as the file has them. Raises BackendError if the inputs are not the manifest's."""
    inputs, outputs = _specs(session.get_inputs()), _specs(session.get_outputs())
    expected = {spec.name: (spec.dtype, len(spec.shape)) for spec in specs}
    found = {spec.name: (spec.dtype, len(spec.shape)) for spec in inputs}
    if expected != found:
        raise BackendError(
            f"graph {graph} has inputs {[str(s) for s in inputs]}, the manifest says {[str(s) for s in specs]}"
        )
    return inputs, outputs


def failure(graph: str, error: Exception) -> BackendError:
    """The error for a run that failed."""
    if isinstance(error, BackendError):
        return error
    text = str(error)
    if "out of memory" in text.lower() or "Failed to allocate memory" in text:
        return BackendError(
            f"graph {graph}: the GPU has not enough memory ({_first_line(error)}); use fewer prompts at once, a "
            "smaller size, or close other programs on the GPU"
        )
    return BackendError(f"graph {graph} failed in ONNX Runtime: {error}")


def _load_libraries() -> None:
    # Finds CUDA and cuDNN where pip put them; what it cannot find is reported when a session is opened.
    if hasattr(ort, "preload_dlls"):
        with contextlib.suppress(Exception):
            ort.preload_dlls()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _specs(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(v.name, _DTYPES.get(v.type, v.type), tuple(v.shape)) for v in values)
