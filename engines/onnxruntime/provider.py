"""An execution provider as it is in the installed onnxruntime: which library, which devices, which options."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, UsageError
from freeprompt.engines.backend_name import ProviderSpec, name_to_key
from freeprompt.engines.onnxruntime.plugins import (
    Plugin,
    find_packages,
    library_sha256,
    library_to_plugin,
    load_package,
    plugged_names,
    register,
    registered_devices,
)

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# These are the library's own, whatever plug-in has such a name too.
_OWN = {name_to_key(name): name for name in (CPU, CUDA, TENSORRT)}
_AZURE = "azure"

Options = tuple[tuple[str, str], ...]

_FIXED = "results have no fixed addresses there; use --backend tensorrt, which captures its steps as CUDA graphs"
_ADDRESS = "it is an address in the memory of the program that made the stream"
_KEPT = "engines are kept in the bundle, where only this user can have put them"
_REFUSED = {
    **dict.fromkeys(("enable_cuda_graph", "trt_cuda_graph_enable"), _FIXED),
    **dict.fromkeys(("user_compute_stream", "has_user_compute_stream"), _ADDRESS),
    **dict.fromkeys(("trt_engine_cache_path", "trt_timing_cache_path", "trt_engine_cache_enable"), _KEPT),
}
# What has to be installed for a name that is not there.
_PACKAGES = {
    **dict.fromkeys(("cuda", "tensorrt"), "install onnxruntime-gpu instead of onnxruntime"),
    "openvino": "pip install onnxruntime-ep-openvino",
    **dict.fromkeys(
        ("nvtensorrtrtx", "tensorrtrtx"), "pip install onnxruntime-ep-nv-tensorrt-rtx-cu12, and name it nv_tensorrt_rtx"
    ),
    "nxrtepcpu": "pip install nxrt-ep-cpu",
    "dml": "install onnxruntime-directml instead of onnxruntime",
}
# OpenVINO computes in bfloat16 where a processor has it, and in half precision on a GPU, unless it is told.
_ACCURACY = {"EXECUTION_MODE_HINT": "ACCURACY"}


@dataclass(frozen=True)
class Provider:
    """An execution provider that is here.

    Attributes:
        spec: how the user named it.
        ep_name: ONNX Runtime's name.
        options: what it is told, by the user or by default.
        devices: of a plug-in (``onnxruntime.OrtEpDevice``); () for one that is built in.
        plugin: where it comes from; None: built in, or registered by the program around.
        identity: what decides what it computes besides the library's version, as text.
    """

    spec: ProviderSpec
    ep_name: str
    options: Options = ()
    devices: tuple[Any, ...] = ()
    plugin: Plugin | None = None
    identity: str = ""

    @property
    def is_cpu(self) -> bool:
        """Whether it is ONNX Runtime's own CPU provider, which everything else is compared with."""
        return self.ep_name == CPU

    @property
    def cuda_device(self) -> int | None:
        """Number of the GPU in whose memory ONNX Runtime keeps arrays; None: they are in the host's.

        A plug-in gets its inputs from the host, and copies by itself.
        """
        if self.ep_name not in (CUDA, TENSORRT) or self.devices:
            return None
        return int(dict(self.options).get("device_id", "0"))

    @property
    def device(self) -> str:
        """ "cpu", "cuda:0", "gpu", "npu"; a provider that is built in and not known is said by its name."""
        if self.cuda_device is not None:
            return f"cuda:{self.cuda_device}"
        if self.is_cpu:
            return "cpu"
        return str(self.devices[0].device.type.name).lower() if self.devices else self.spec.key

    @property
    def fused(self) -> bool:
        """Whether it runs the form with ONNX Runtime's own operators.

        Where a provider does not take one of them it runs on the CPU: in place if that is where the provider is too,
        and between two copies if it is not.
        """
        return self.device == "cpu" or (self.ep_name == CUDA and not self.devices)

    def session_providers(self, bundle: Bundle) -> list[tuple[str, dict[str, str]]]:
        """The argument ``providers`` of a session; [] for a plug-in, which the session's options are told of."""
        if self.devices:
            return []
        if self.ep_name == TENSORRT:
            given = dict(self.options)
            cuda = {"device_id": given["device_id"]} if "device_id" in given else {}
            return [(TENSORRT, {**tensorrt_options(bundle), **given}), (CUDA, {**dict(_defaults(CUDA, ())), **cuda})]
        return [(self.ep_name, dict(self.options))]


def built_in() -> dict[str, str]:
    """Providers that the installed build has, by short names: "cpu", "cuda", "tensorrt", ...

    The library counts those of plug-ins as well, once they are registered.
    """
    names = ort.get_available_providers()
    plugged = plugged_names()
    found = {name.removesuffix("ExecutionProvider").lower(): name for name in names if name not in plugged}
    return {short: name for short, name in found.items() if short != _AZURE}


def find_provider(spec: ProviderSpec, threads: int | None = None) -> Provider:
    """The provider of that name in the installed onnxruntime, or in a plug-in, which is registered with it.

    Args:
        threads: of the CPU; None: every core. For those that do not ask ONNX Runtime how many it was given.

    Raises:
        BackendError: it is not there, cannot be loaded, or lists no device on this machine.
        UsageError: an option that cannot be used.
    """
    _check_options(spec)
    if spec.library:
        return _of_plugin(spec, library_to_plugin(spec), threads)
    if spec.key not in _OWN:
        package = next((package for package in find_packages() if package.answers(spec)), None)
        if package is not None:
            return _of_plugin(spec, load_package(package), threads)
        devices = registered_devices(spec.key)
        if devices:
            return _on_devices(spec, devices, None, threads)
    name = next((name for name in built_in().values() if name_to_key(name) == spec.key), None)
    if name is None:
        raise _absent(spec)
    if spec.device:
        raise UsageError(f"option device chooses among a plug-in's devices, and {name} is built into onnxruntime")
    options = _defaults(name, spec.options)
    return Provider(spec, name, options, identity=" ".join(f"{key}={value}" for key, value in options))


def _of_plugin(spec: ProviderSpec, plugin: Plugin, threads: int | None) -> Provider:
    devices = register(plugin)
    if not devices:
        raise BackendError(
            f"backend {str(spec)!r} cannot be used: {plugin.origin} is registered and lists no device on this machine; "
            "it needs other hardware, a driver, or another version of onnxruntime"
        )
    return _on_devices(spec, devices, plugin, threads)


def _on_devices(spec: ProviderSpec, devices: tuple[Any, ...], plugin: Plugin | None, threads: int | None) -> Provider:
    kind, _, number = spec.device.partition(":")
    fitting = [device for device in devices if not kind or device.device.type.name.lower() == kind]
    index = int(number or 0)
    if index >= len(fitting):
        kinds = ", ".join(device.device.type.name.lower() for device in devices)
        raise BackendError(f"backend {str(spec)!r} cannot be used: it lists these devices: {kinds}")
    device = fitting[index]
    where = str(device.device.type.name)
    options = _defaults(device.ep_name, spec.options, device, threads)
    parts = [f"{where} {device.device.vendor_id}:{device.device.device_id}", device.ep_metadata.get("version", "")]
    library = plugin.library if plugin else device.ep_metadata.get("library_path")
    if library is not None:
        parts += [plugin.origin if plugin else "", library_sha256(library)]
    identity = " ".join((*parts, *(f"{key}={value}" for key, value in options)))
    return Provider(spec, device.ep_name, options, (device,), plugin, identity)


def _defaults(ep_name: str, given: Options, device: Any = None, threads: int | None = None) -> Options:
    """Options of the user over those by which a provider computes in the model's precision, on so many threads."""
    defaults: dict[str, str] = {}
    if ep_name == CUDA:
        # Products of float32 stay float32: by default they are rounded to 11 bits on the tensor cores.
        defaults = {"use_tf32": "0"}
    elif name_to_key(ep_name) == "openvino" and device is not None:
        where = str(device.ep_metadata.get("ov_device", device.device.type.name))
        own = {**_ACCURACY, "INFERENCE_NUM_THREADS": threads} if threads and where == "CPU" else _ACCURACY
        defaults = {"load_config": json.dumps({where.partition(".")[0]: own})}
    return tuple({**defaults, **dict(given)}.items())


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


def _check_options(spec: ProviderSpec) -> None:
    """Raises UsageError for options that cannot be meant. The provider itself may refuse others, or ignore them."""
    for name, value in spec.options:
        if name.lower() in _REFUSED:
            raise UsageError(f"option {name} cannot be given to {str(spec)!r}: {_REFUSED[name.lower()]}")
        if name == "device_id" and not (value.isdecimal() and len(value) < 4):
            raise UsageError(f"option device_id is the number of a device, from 0 on, not {value!r}")
    if spec.key == "cpu" and spec.options and not spec.library:
        raise UsageError(f"{CPU} takes no options, and would not say so: leave {spec.options[0][0]} out")
    if spec.key == _AZURE:
        raise UsageError("AzureExecutionProvider sends what it is given to a server; freeprompt sends nothing")


def _absent(spec: ProviderSpec) -> BackendError:
    plugins = ", ".join(package.name for package in find_packages()) or "none"
    hint = _PACKAGES.get(spec.key, "install the package of its plug-in, or name its library with library=PATH")
    return BackendError(
        f"backend {str(spec)!r} is not there: the installed onnxruntime {ort.__version__} has no "
        f"{_OWN.get(spec.key, 'execution provider of that name')}; it has {', '.join(built_in())}, and plug-ins: "
        f"{plugins}; {hint}"
    )
