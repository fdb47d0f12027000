"""A loaded TensorRT engine: its tensors, its execution contexts, and what the inspector says of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from freeprompt.contract.errors import BackendError
from freeprompt.engines.tensorrt.library import Library
from freeprompt.engines.tensorrt.rtx import JustInTime, check_validity
from freeprompt.engines.tensorrt.timing import LayerTimes, create_profiler

if TYPE_CHECKING:
    from freeprompt.engines.tensorrt.api import IExecutionContext, TensorRT

# How fused attention shows: Myelin's own kernels (_gemm_mha_v2, mha), and the hand-written ones (fmha, flash).
_FUSED = re.compile(r"mha|flash_?att|fused_?att", re.IGNORECASE)

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64"}


@dataclass(frozen=True)
class Inspection:
    """What the engine inspector shows.

    Attributes:
        layers: number of kernels or fused regions.
        fused_attention: how many of them are fused attention; None where the inspector shows regions whose kernels it
            does not name, so that nothing can be counted.
    """

    layers: int
    fused_attention: int | None


class Engine:
    """A deserialized engine.

    Args:
        library: that built it.
        data: the serialized engine. It is code: only from a trusted origin.
        kernels: that were compiled for it before, see ``kernels``; those that do not fit are ignored.

    Raises:
        BackendError: the library cannot load it.
    """

    def __init__(self, library: Library, data: Any, kernels: bytes = b"") -> None:
        self._trt = library.trt
        self.messages = library.messages
        # Kept for as long as the engine lives, as TensorRT demands.
        try:
            self._runtime = self._trt.Runtime(self.messages.logger)
        except TypeError as error:  # how the bindings report that the library gave them nothing
            raise self.messages.failure("start its runtime") from error
        if library.flavour.engine_validity:
            check_validity(library, self._runtime, data)
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise self.messages.failure("load the engine")
        self._engine = engine
        self._compiler = JustInTime(self._trt, engine, kernels) if library.flavour.runtime_cache else None
        self.inputs, self.outputs = self._tensors()

    @property
    def profiles(self) -> int:
        return int(self._engine.num_optimization_profiles)

    @property
    def device_memory_bytes(self) -> int:
        """Scratch memory that the largest of the contexts needs."""
        return int(self._engine.device_memory_size_v2)

    @property
    def kernels(self) -> bytes:
        """What was compiled for this GPU so far, b"" where engines hold their kernels themselves."""
        return b"" if self._compiler is None else self._compiler.kernels

    def create_context(self, profile: int, stream: int) -> Context:
        """An execution context of one profile, without memory of its own.

        Raises:
            BackendError: TensorRT refused.
        """
        trt, engine = self._trt, self._engine
        if self._compiler is None:
            context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        else:
            context = self._compiler.create_context()
        if context is None:
            raise self.messages.failure("create an execution context")
        if not context.set_optimization_profile_async(profile, stream):
            raise self.messages.failure(f"choose profile {profile}")
        return Context(trt, context, self)

    def inspect(self) -> Inspection:
        """Count kernels. Needs an engine built with detailed verbosity, as this package's are."""
        return text_to_inspection(self._information())

    def describe(self) -> dict[str, str]:
        """What the inspector says of each layer (its name, type and kernel), by name."""
        found = {}
        for layer in _text_to_layers(self._information()):
            name = str(layer.get("Name", "")) if isinstance(layer, dict) else str(layer)
            found[name] = _layer_to_text(layer)
        return found

    def _information(self) -> str:
        trt = self._trt
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def _tensors(self) -> tuple[dict[str, np.dtype[Any]], dict[str, np.dtype[Any]]]:
        trt, engine = self._trt, self._engine
        inputs: dict[str, np.dtype[Any]] = {}
        outputs: dict[str, np.dtype[Any]] = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            dtype = engine.get_tensor_dtype(name).name
            (inputs if is_input else outputs)[name] = np.dtype(_DTYPES.get(dtype, "V1"))
        return inputs, outputs


class Context:
    """An execution context of one profile."""

    def __init__(self, trt: TensorRT, context: IExecutionContext, owner: Engine) -> None:
        self._trt = trt
        self._context = context
        self._owner = owner

    def set_shapes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Give every input its shape.

        Returns:
            the shape of every output.

        Raises:
            BackendError: a shape is outside the profile.
        """
        context = self._context
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._owner.messages.failure(f"take shape {shape} for {name}")
        result = {}
        for name in self._owner.outputs:
            shape = tuple(context.get_tensor_shape(name))
            if any(dim < 0 for dim in shape):
                raise BackendError(f"the engine leaves the shape of {name} open: {shape}")
            result[name] = shape
        return result

    def set_memory(self, address: int, size: int) -> None:
        """Use this device memory as scratch."""
        context = self._context
        context.set_device_memory(address, size)

    def set_addresses(self, addresses: dict[str, int]) -> None:
        context = self._context
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._owner.messages.failure(f"bind {name}")

    def profile(self, times: LayerTimes) -> None:
        """From now on note how long each layer takes; every run then waits for the device, and none can be captured."""
        context = self._context
        self._profiler = create_profiler(self._trt, times)  # kept: the context only refers to it
        context.profiler = self._profiler

    def enqueue(self, stream: int) -> None:
        """Enqueue one evaluation. Raises BackendError if TensorRT could not."""
        if not self._context.execute_async_v3(stream):
            raise self._owner.messages.failure("run the engine")


def text_to_inspection(text: str) -> Inspection:
    """Count layers and fused attention in the inspector's JSON.

    A layer is a string (short verbosity) or an object with Name, LayerType, TacticName and Metadata.

    Raises:
        BackendError: not the inspector's JSON.
    """
    layers = _text_to_layers(text)
    fused, opaque = 0, False
    for layer in layers:
        names = _layer_to_text(layer)
        fused += bool(_FUSED.search(names))
        # A region compiled by Myelin may be one layer, whose kernels stay unnamed.
        opaque = opaque or "ForeignNode" in names
    return Inspection(len(layers), None if opaque and not fused else fused)


def _text_to_layers(text: str) -> list[Any]:
    try:
        layers: list[Any] = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(f"the engine inspector's output cannot be read: {error}") from error
    return layers


def _layer_to_text(layer: Any) -> str:
    if isinstance(layer, dict):
        return " ".join(str(layer.get(field, "")) for field in ("Name", "LayerType", "TacticName"))
    return str(layer)
