"""TensorRT's Python API over ONNX Runtime on the CPU: engines that compute, in the memory of ``FakeCuda``.

``compile`` stands for the process that builds; what is told the library's builder there is in ``told_builder``. A
conformance test holds what is here against the real bindings.
"""

from __future__ import annotations

import base64
import ctypes
import json
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime as ort

from freeprompt.engines.tensorrt.building.progress import Reporter
from freeprompt.engines.tensorrt.building.request import BuildRequest, Built
from tests.engines.cuda.fake_core import MAIN
from tests.engines.cuda.fake_cuda import FakeCuda

NAMES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int32)": "INT32", "tensor(int64)": "INT64"}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64}
SCRATCH_BYTES = 4096


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    INT64 = 8
    BOOL = 4


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class BaseLogger:
    INTERNAL_ERROR: ClassVar[Any] = Severity.INTERNAL_ERROR
    ERROR: ClassVar[Any] = Severity.ERROR
    WARNING: ClassVar[Any] = Severity.WARNING

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class BaseProfiler:
    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


class BaseMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError


class FakeTensorRT:
    """The module.

    Args:
        version: what it says it is.
        cuda: the device.
        backend: which library it is, as of ``FLAVOURS``.

    Attributes:
        requests: what ``compile`` was asked for.
        layers: of the inspector's output.
        times: layers and milliseconds that a profiler is told of after each run.
        distort: applied to every output, for engines that are wrong.
        breaks_capture: the engine does something that cannot be captured.
        diagnostics: why engines are not valid here; 0: they are.
        compiled: kernels that engines compiled, rather than found in their runtime cache.
    """

    def __init__(self, version: str, cuda: FakeCuda, backend: str = "tensorrt") -> None:
        self.__version__ = version
        self.cuda = cuda
        self.backend = backend
        self.requests: list[BuildRequest] = []
        self.layers: list[Any] = []
        self.times: list[tuple[str, float]] = []
        self.distort: Callable[[Any], Any] = lambda values: values
        self.breaks_capture = False
        self.gpu = True
        self.builds = 0
        self.contexts = 0
        self.diagnostics = 0
        self.compiled = 0
        self.ILogger = BaseLogger
        self.IProfiler = BaseProfiler
        self.IProgressMonitor = BaseMonitor
        self.DataType = DataType
        self.TensorIOMode = TensorIOMode
        self.Runtime = lambda logger: Runtime(self, logger)
        enum: Any = IntEnum
        self.LayerInformationFormat = enum("LayerInformationFormat", {"JSON": 1})
        strategies = {"STATIC": 0, "USER_MANAGED": 2}
        self.ExecutionContextAllocationStrategy = enum("ExecutionContextAllocationStrategy", strategies)
        if backend == "tensorrt-rtx":
            self.ComputeCapability = enum("ComputeCapability", {"SM75": 75, "SM86": 86, "SM120": 120})
            self.EngineValidity = enum("EngineValidity", {"VALID": 0, "SUBOPTIMAL": 1, "INVALID": 2})
            causes = "VERSION_MISMATCH UNSUPPORTED_CC OLD_CUDA_DRIVER OLD_CUDA_RUNTIME INSUFFICIENT_GPU_MEMORY"
            causes = f"{causes} MALFORMED_ENGINE CUDA_ERROR"
            bits = {cause: 1 << bit for bit, cause in enumerate(causes.split())}
            self.EngineInvalidityDiagnostics = enum("EngineInvalidityDiagnostics", bits)
            specialization = {"LAZY": 0, "EAGER": 1, "NONE": 2}
            self.DynamicShapesKernelSpecializationStrategy = enum("DynamicShapes", specialization)

    def compile(self, request: BuildRequest, progress: Reporter) -> Built:
        """Stands for ``build_in_child``."""
        self.requests.append(request)
        self.builds += 1
        fixed = [{s.name: [p.shape(s, which) for which in range(3)] for s in request.inputs} for p in request.profiles]
        engine = serialize(self, Path(request.model), fixed)
        Path(request.engine).write_bytes(engine)
        if request.timing_cache is not None:
            Path(request.timing_cache).write_bytes(b"timings")
        return Built(1.0, peak_memory_bytes=1 << 20)


def serialize(trt: FakeTensorRT, model: Path, profiles: list[dict[str, Any]]) -> bytes:
    # With its weights: an engine needs no other file.
    content = base64.b64encode(onnx.load(model).SerializeToString()).decode()
    return json.dumps({"model": content, "version": trt.__version__, "profiles": profiles}).encode()


class Runtime:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def get_engine_validity(self, data: bytes) -> tuple[Any, int]:
        validity = self._trt.EngineValidity
        return (validity.INVALID if self._trt.diagnostics else validity.VALID), self._trt.diagnostics

    def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
        self._trt.cuda.need_context()
        if not self._trt.gpu:
            self._logger.log(BaseLogger.ERROR, "CUDA initialization failure with error: 35.")
            return None
        engine = json.loads(data)
        if engine["version"] != self._trt.__version__:
            self._logger.log(BaseLogger.ERROR, "Serialization assertion: Version tag does not match")
            return None
        return FakeEngine(self._trt, engine)


class FakeEngine:
    def __init__(self, trt: FakeTensorRT, engine: Any) -> None:
        self._trt = trt
        self.profiles = engine["profiles"]
        self.session = open_onnx(base64.b64decode(engine["model"]))
        self._tensors = [(v.name, TensorIOMode.INPUT, NAMES[v.type]) for v in self.session.get_inputs()]
        self._tensors += [(v.name, TensorIOMode.OUTPUT, NAMES[v.type]) for v in self.session.get_outputs()]
        self.num_io_tensors = len(self._tensors)
        self.num_optimization_profiles = len(self.profiles)
        self.device_memory_size_v2 = SCRATCH_BYTES

    def create_execution_context(self, how: Any) -> FakeContext:
        self._trt.cuda.need_context()
        if isinstance(how, RuntimeConfig):
            assert how.dynamic_shapes_kernel_specialization_strategy.name == "EAGER" and how._cache is not None
            if b"kernels" not in how._cache._content:
                how._cache._content = b"kernels"
                self._trt.compiled += 1
            how = how._strategy
        return FakeContext(self._trt, self, how.name)

    def create_runtime_config(self) -> RuntimeConfig:
        assert self._trt.backend == "tensorrt-rtx"
        return RuntimeConfig()

    def get_tensor_name(self, index: int) -> str:
        name: str = self._tensors[index][0]
        return name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return next(mode for n, mode, _ in self._tensors if n == name)

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[next(dtype for n, _, dtype in self._tensors if n == name)]

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self._trt)


class RuntimeConfig:
    _strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None
    _cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self._cache = cache
        return True


class RuntimeCache:
    _content = b""

    def serialize(self) -> bytes:
        return self._content

    def deserialize(self, blob: bytes) -> bool:
        self._content = blob
        return True


class Inspector:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt

    def get_engine_information(self, format: Any) -> str:
        assert format.name == "JSON"
        return json.dumps({"Layers": self._trt.layers, "Bindings": []})


class FakeContext:
    def __init__(self, trt: FakeTensorRT, engine: FakeEngine, strategy: str) -> None:
        assert strategy == "USER_MANAGED"
        trt.contexts += 1
        self._trt, self._engine = trt, engine
        self._profile: dict[str, list[Any]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._outputs: dict[str, tuple[int, ...]] = {}
        self.device_memory = 0
        self.profiler: Any = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if not 0 <= index < len(self._engine.profiles):
            return False
        self._profile = self._engine.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        limits = self._profile.get(name)
        if limits is not None and any(not a <= s <= b for a, s, b in zip(limits[0], shape, limits[2])):
            return False
        self._shapes[name] = tuple(shape)
        self._outputs.clear()
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if not self._outputs:
            session = self._engine.session
            feeds = {v.name: np.zeros(self._shapes[v.name], NUMPY[NAMES[v.type]]) for v in session.get_inputs()}
            values = session.run(None, feeds)
            self._outputs = {v.name: a.shape for v, a in zip(session.get_outputs(), values)}
        return self._outputs[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self._trt.cuda
        assert stream == MAIN
        cuda.calls["enqueue"] += 1
        if cuda.capture is not None and self._trt.breaks_capture:
            return False
        # The address is looked at now and used later, as kernels do.
        scratch, addresses, shapes = self.device_memory, dict(self._addresses), dict(self._shapes)
        cuda.check(scratch, SCRATCH_BYTES)
        cuda.enqueue(lambda: self._compute(scratch, addresses, shapes))
        if self.profiler is not None:
            assert cuda.capture is None
            cuda.drain()
            for name, ms in self._trt.times:
                self.profiler.report_layer_time(name, ms)
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= SCRATCH_BYTES
        self.device_memory = address

    def _compute(self, scratch: int, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        cuda, session = self._trt.cuda, self._engine.session
        cuda.reach(scratch, SCRATCH_BYTES)
        feeds = {}
        for value in session.get_inputs():
            dtype = np.dtype(NUMPY[NAMES[value.type]])
            feeds[value.name] = read(cuda, addresses[value.name], shapes[value.name], dtype)
        for value, array in zip(session.get_outputs(), session.run(None, feeds)):
            result = np.ascontiguousarray(self._trt.distort(array).astype(array.dtype))
            cuda.reach(addresses[value.name], result.nbytes)
            ctypes.memmove(addresses[value.name], result.ctypes.data, result.nbytes)


def read(cuda: FakeCuda, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """A copy of device memory."""
    result = np.empty(shape, dtype)
    cuda.reach(address, result.nbytes)
    ctypes.memmove(result.ctypes.data, address, result.nbytes)
    return result


def open_onnx(model: str | bytes) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
