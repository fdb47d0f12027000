"""TensorRT's Python API over ONNX Runtime on the CPU: engines that compute, in the memory of ``FakeCuda``.

Every call of the builder is recorded. What a version lacks is absent, and a conformance test holds what is here against
the real bindings.
"""

from __future__ import annotations

import base64
import ctypes
import json
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

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


class BaseLogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    def __init__(self) -> None:
        pass


class BaseProfiler:
    def __init__(self) -> None:
        pass


class BaseMonitor:
    def __init__(self) -> None:
        pass


class FakeTensorRT:
    """The module.

    Args:
        version: what it says it is, and which names it has.
        cuda: the device.

    Attributes:
        calls: what the builder was told, in order.
        parser_errors: (node, operator, description) to fail with.
        build_errors: messages to fail a build with.
        layers: of the inspector's output.
        times: layers and milliseconds that a profiler is told of after each run.
        distort: applied to every output, for engines that are wrong.
        breaks_capture: the engine does something that cannot be captured.
    """

    def __init__(self, version: str, cuda: FakeCuda) -> None:
        self.__version__ = version
        self.cuda = cuda
        modern = not version.startswith("8.")
        self.modern = modern
        self.calls: list[tuple[Any, ...]] = []
        self.parser_errors: list[tuple[str, str, str]] = []
        self.build_errors: list[str] = []
        self.layers: list[Any] = []
        self.times: list[tuple[str, float]] = []
        self.distort: Callable[[Any], Any] = lambda values: values
        self.breaks_capture = False
        self.gpu = True
        self.builds = 0
        self.contexts = 0
        self.ILogger = BaseLogger
        self.IProfiler = BaseProfiler
        self.DataType = DataType
        self.TensorIOMode = TensorIOMode
        self.Builder = lambda logger: Builder(self, logger)
        self.Runtime = lambda logger: Runtime(self, logger)
        self.OnnxParser = lambda network, logger: OnnxParser(self, network)
        enum: Any = IntEnum
        self.MemoryPoolType = enum("MemoryPoolType", {"WORKSPACE": 0})
        self.ProfilingVerbosity = enum("ProfilingVerbosity", {"DETAILED": 2})
        self.LayerInformationFormat = enum("LayerInformationFormat", {"JSON": 1})
        self.TacticSource = enum("TacticSource", {"EDGE_MASK_CONVOLUTIONS": 3, "JIT_CONVOLUTIONS": 4})
        if modern:
            self.NetworkDefinitionCreationFlag = enum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
            self.BuilderFlag = enum("BuilderFlag", {"TF32": 7})
            self.IProgressMonitor = BaseMonitor
            strategies = {"STATIC": 0, "USER_MANAGED": 2}
            self.ExecutionContextAllocationStrategy = enum("ExecutionContextAllocationStrategy", strategies)
        else:
            self.NetworkDefinitionCreationFlag = enum("NetworkDefinitionCreationFlag", {"EXPLICIT_BATCH": 0})
            self.BuilderFlag = enum("BuilderFlag", {"TF32": 7, "FP16": 0})


class Builder:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        if not trt.gpu:
            logger.log(BaseLogger.ERROR, "CUDA initialization failure with error: 35.")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._trt, self._logger = trt, logger

    def create_network(self, flags: int = 0) -> Network:
        self._trt.calls.append(("create_network", flags))
        return Network()

    def create_builder_config(self) -> Config:
        return Config(self._trt)

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile(self._trt)

    def build_serialized_network(self, network: Network, config: Config) -> Any:
        trt = self._trt
        trt.builds += 1
        for message in trt.build_errors:
            self._logger.log(BaseLogger.ERROR, message)
        if trt.build_errors:
            return None
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("Building", None, 1)
            assert monitor.step_complete("Building", 0)
            monitor.phase_finish("Building")
        profiles = config.profiles or [{e.name: [e.shape] * 3 for e in network.entries}]
        engine = {"model": base64.b64encode(network.model).decode(), "version": trt.__version__, "profiles": profiles}
        return json.dumps(engine).encode()


class Entry:
    def __init__(self, name: str, shape: Any) -> None:
        self.name, self.shape = name, shape


class Network:
    def __init__(self) -> None:
        self.model = b""
        self.entries: list[Entry] = []

    @property
    def num_inputs(self) -> int:
        return len(self.entries)

    def get_input(self, index: int) -> Entry:
        return self.entries[index]


class Refusal:
    def __init__(self, trt: FakeTensorRT, index: int) -> None:
        self._parts = (index, *trt.parser_errors[index])
        if trt.modern:
            self.node_name = lambda: self._parts[1]
            self.node_operator = lambda: self._parts[2]

    def node(self) -> int:
        return self._parts[0]

    def desc(self) -> str:
        return self._parts[3]


class OnnxParser:
    def __init__(self, trt: FakeTensorRT, network: Network) -> None:
        self._trt, self._network = trt, network

    @property
    def num_errors(self) -> int:
        return len(self._trt.parser_errors)

    def get_error(self, index: int) -> Refusal:
        return Refusal(self._trt, index)

    def parse_from_file(self, path: str) -> bool:
        if self._trt.parser_errors:
            return False
        session = open_onnx(path)
        # With its weights: an engine needs no other file.
        self._network.model = onnx.load(path).SerializeToString()
        self._network.entries = [
            Entry(v.name, tuple(d if isinstance(d, int) else -1 for d in v.shape)) for v in session.get_inputs()
        ]
        return True


class OptimizationProfile:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.shapes: dict[str, list[Any]] = {}

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        self.shapes[name] = [least, best, most]


class Config:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.profiles: list[Any] = []
        self.builder_optimization_level = 3
        self.profiling_verbosity = None

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self._trt.calls.append(("set_memory_pool_limit", pool.name, size))

    def set_flag(self, flag: Any) -> None:
        self._trt.calls.append(("set_flag", flag.name))

    def clear_flag(self, flag: Any) -> None:
        self._trt.calls.append(("clear_flag", flag.name))

    def set_tactic_sources(self, sources: int) -> bool:
        self._trt.calls.append(("set_tactic_sources", sources))
        return True

    def create_timing_cache(self, data: bytes) -> Any:
        self._trt.calls.append(("create_timing_cache", bytes(data)))
        return None if data == b"damaged" else TimingCache()

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert isinstance(cache, TimingCache) and not ignore_mismatch
        return True

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        self.profiles.append(profile.shapes)
        self._trt.calls.append(("add_optimization_profile", profile.shapes))
        return len(self.profiles) - 1


class TimingCache:
    def serialize(self) -> bytes:
        return b"timings"


class Runtime:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def deserialize_cuda_engine(self, data: bytes) -> Any:
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
        if trt.modern:
            self.device_memory_size_v2 = SCRATCH_BYTES
            self.create_execution_context = lambda strategy: FakeContext(trt, self, strategy.name)
        else:
            self.device_memory_size = SCRATCH_BYTES
            self.create_execution_context_without_device_memory = lambda: FakeContext(trt, self, "USER_MANAGED")

    def get_tensor_name(self, index: int) -> str:
        name: str = self._tensors[index][0]
        return name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return next(mode for n, mode, _ in self._tensors if n == name)

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[next(dtype for n, _, dtype in self._tensors if n == name)]

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self._trt)


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
        if trt.modern:
            self.set_device_memory = self._set_device_memory

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

    def _set_device_memory(self, address: int, size: int) -> None:
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
