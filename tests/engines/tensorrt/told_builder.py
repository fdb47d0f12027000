"""What TensorRT's builder is told, through polygraphy, by version: run as a process with the request as JSON.

TensorRT itself builds on a GPU only. A mock that takes every call stands for its module, so that this shows what is
asked of the library and not what it makes of it.
"""

from __future__ import annotations

import json
import sys
from enum import IntEnum
from typing import Any
from unittest.mock import MagicMock

import msgspec


class _Interface:
    def __init__(self) -> None:
        pass


def mock_tensorrt(version: str, how: str) -> Any:
    """The module; ``how`` is what goes wrong, "no builder" or what the library says of it; "" for nothing."""
    trt = MagicMock()
    trt.__version__, trt.__spec__ = version, None
    trt.ILogger = type("ILogger", (_Interface,), {"ERROR": 1, "INTERNAL_ERROR": 0, "WARNING": 2, "INFO": 3})
    trt.Logger.INTERNAL_ERROR, trt.Logger.ERROR, trt.Logger.WARNING, trt.Logger.INFO = range(4)
    trt.IProgressMonitor = type("IProgressMonitor", (_Interface,), {})
    enum: Any = IntEnum
    trt.NetworkDefinitionCreationFlag = enum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
    trt.BuilderFlag = enum("BuilderFlag", {"TF32": 7})
    trt.MemoryPoolType = enum("MemoryPoolType", {"WORKSPACE": 0})
    trt.ProfilingVerbosity = enum("ProfilingVerbosity", {"DETAILED": 2})
    builder, config, network = MagicMock(), MagicMock(), MagicMock()
    trt.Builder.return_value = builder
    if how == "no builder":
        trt.Builder.side_effect = TypeError("factory function returned nullptr")
    trt.OnnxParser.return_value.num_errors = 0
    builder.create_network.return_value = network
    builder.create_builder_config.return_value = config

    def build(network: Any, config: Any) -> bytes | None:
        if not how:
            return b"engine"
        logger = trt.Builder.call_args.args[0]
        for message in (how, "Engine could not be created because build failed"):
            logger.log(trt.Logger.ERROR, message)
        return None

    builder.build_serialized_network.side_effect = build
    entry = MagicMock(is_shape_tensor=False, shape=(-1, 77))
    entry.name = "input_ids"
    network.num_inputs, network.num_outputs = 1, 0
    network.get_input.return_value = entry
    config.int8_calibrator, config.DLA_core, config.num_optimization_profiles = None, -1, 1
    config.get_memory_pool_limit.return_value = 0
    cache = MagicMock()
    cache.serialize.return_value.__enter__.return_value = b"timings"
    cache.combine.return_value = True
    config.create_timing_cache.side_effect = lambda data: None if data == b"damaged" else cache
    config.get_timing_cache.return_value = cache
    return trt


def main() -> None:
    """Print what the builder was told."""
    version, how = sys.argv[1:3]
    trt = sys.modules["tensorrt"] = mock_tensorrt(version, how)
    from freeprompt.contract.errors import BackendError
    from freeprompt.engines.tensorrt.building.compile import compile_engine
    from freeprompt.engines.tensorrt.building.request import BuildRequest
    from freeprompt.engines.tensorrt.library import load_library

    request = msgspec.json.decode(sys.stdin.buffer.read(), type=BuildRequest)
    try:
        compile_engine(request, load_library("tensorrt"), lambda line: None)
    except BackendError as error:
        sys.stdout.write(json.dumps({"error": str(error)}))
        return
    builder = trt.Builder.return_value
    config, entry = builder.create_builder_config.return_value, builder.create_network.return_value.get_input(0)
    profile = builder.create_optimization_profile.return_value
    told = {
        "flags": builder.create_network.call_args.kwargs["flags"],
        "set_flag": [call.args[0].name for call in config.set_flag.call_args_list],
        "clear_flag": [call.args[0].name for call in config.clear_flag.call_args_list],
        "memory": [(call.args[0].name, call.args[1]) for call in config.set_memory_pool_limit.call_args_list],
        "level": config.builder_optimization_level,
        "verbosity": config.profiling_verbosity.name,
        "caches": [call.args[0].decode() for call in config.create_timing_cache.call_args_list],
        "profiles": [call.args for call in profile.set_shape.call_args_list],
        "shape": entry.shape,
    }
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
