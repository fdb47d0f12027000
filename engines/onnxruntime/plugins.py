"""Plug-in execution providers: shared libraries that ONNX Runtime loads by path, found as Python packages or named.

What is registered is asked of the library, which keeps it for the process: nothing is kept here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime as ort

from freeprompt.contract.errors import BackendError
from freeprompt.engines.backend_name import ProviderSpec, name_to_key

# Warnings of the library are about its own choices (a node placed on the CPU, a transformer skipped); errors raise.
_LOG_WARNING, _LOG_FATAL = 2, 4
# What ONNX Runtime's own guidance calls such packages; others put a maker's name in front.
_NAMING = "onnxruntime_ep_"
_WORD = "ep"
_LIBRARY = re.compile(r".*\.(so|dylib|dll)(\.[\d.]+)?")
_API = ("register_execution_provider_library", "get_ep_devices")


@dataclass(frozen=True)
class PluginPackage:
    """An installed distribution that looks like a plug-in: "ep" is a word of its name, and it brings a library.

    Nothing of it has been imported.
    """

    distribution: str
    version: str
    module: str

    @property
    def name(self) -> str:
        """What ``ort:`` is followed by."""
        return self.module.removeprefix(_NAMING)

    def answers(self, spec: ProviderSpec) -> bool:
        """Whether the name means this package: the short name, the module's or the distribution's."""
        return spec.key in {name_to_key(name) for name in (self.name, self.module, self.distribution)}


@dataclass(frozen=True)
class Plugin:
    """A plug-in's library.

    Attributes:
        name: that it is registered under, of our choice.
        library: its path.
        origin: package and version, or the path again.
        ep_names: providers that its package says it has; (): not said.
    """

    name: str
    library: str
    origin: str
    ep_names: tuple[str, ...] = ()


def find_packages() -> list[PluginPackage]:
    """Every plug-in that is installed, by name."""
    found: dict[str, PluginPackage] = {}
    for distribution in metadata.distributions():
        with contextlib.suppress(Exception):  # what pip left half removed has no name, or none of its files
            for package in _distribution_to_packages(distribution):
                found.setdefault(package.module, package)
    return sorted(found.values(), key=lambda package: package.name)


def load_package(package: PluginPackage) -> Plugin:
    """Import a plug-in's package and ask it where its library is. Raises BackendError."""
    try:
        module = importlib.import_module(package.module)
        library = str(module.get_library_path())
        names = _declared(module)
    except Exception as error:  # whatever a package does when it is imported
        raise BackendError(
            f"{package.distribution} {package.version} cannot be used as a plug-in of ONNX Runtime: "
            f"{type(error).__name__}: {error}; install it again"
        ) from error
    return Plugin(package.module, library, f"{package.distribution} {package.version}", names)


def library_to_plugin(spec: ProviderSpec) -> Plugin:
    """The plug-in whose library is named by path. Raises BackendError if there is no such file."""
    try:
        path = Path(spec.library).expanduser().absolute()
        found = path.is_file()
    except (OSError, RuntimeError):  # a name that is too long, or a home that is not known
        found = False
    if not found:
        raise BackendError(f"backend {str(spec)!r} cannot be used: there is no file {spec.library!r}")
    return Plugin(spec.name, str(path), str(path), (spec.name,))


def register(plugin: Plugin) -> tuple[Any, ...]:
    """Have ONNX Runtime load a plug-in, unless it has.

    Returns:
        the devices that it lists on this machine (``onnxruntime.OrtEpDevice``), of its first provider; () if none.

    Raises:
        BackendError: onnxruntime is too old for plug-ins, or the library cannot be loaded.
    """
    if not all(hasattr(ort, name) for name in _API):
        raise BackendError(
            f"onnxruntime {ort.__version__} knows no plug-in execution providers: for {plugin.origin} install a later "
            "one: pip install 'onnxruntime>=1.24'"
        )
    devices = _devices(plugin)
    if not devices:
        try:
            with quiet():
                ort.register_execution_provider_library(plugin.name, plugin.library)
        except Exception as error:  # the library has classes of its own
            # By another thread meanwhile, or before, when it listed no device either.
            if "already registered" not in str(error):
                raise BackendError(
                    f"onnxruntime {ort.__version__} cannot load {plugin.origin}: {_reason(error)}; install what it "
                    "needs, or another version of it"
                ) from error
        devices = _devices(plugin)
    return devices


def registered_devices(key: str) -> tuple[Any, ...]:
    """Devices of a provider of that name that somebody has registered before."""
    if not all(hasattr(ort, name) for name in _API):
        return ()
    return tuple(device for device in ort.get_ep_devices() if name_to_key(device.ep_name) == key)


def plugged_names() -> set[str]:
    """ONNX Runtime's names of the providers that registered plug-ins have."""
    if not all(hasattr(ort, name) for name in _API):
        return set()
    return {device.ep_name for device in ort.get_ep_devices() if _library(device) is not None}


def library_sha256(path: str) -> str:
    """Of a plug-in's file: another one has to show that it computes right again. Raises BackendError."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise BackendError(f"{path} cannot be read: {error.strerror or error}") from error


def device_to_text(device: Any) -> str:
    """ "CPU (Intel(R) Xeon(R) Processor)"."""
    about = device.ep_metadata.get("FULL_DEVICE_NAME") or device.device.metadata.get("Description")
    return f"{device.device.type.name} ({about or device.device.vendor})"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No lines of the library's own on the terminal while it tries what may fail: the failure is an error of ours."""
    ort.set_default_logger_severity(_LOG_FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_LOG_WARNING)


def _distribution_to_packages(distribution: metadata.Distribution) -> Iterator[PluginPackage]:
    name = str(distribution.metadata["Name"])
    if _WORD not in re.split(r"[-_.]+", name.lower()):
        return
    files = distribution.files or []
    folders = {file.parts[0] for file in files if len(file.parts) > 1 and _LIBRARY.fullmatch(file.name)}
    for module in sorted(folders):
        if module.isidentifier() and any(file.parts == (module, "__init__.py") for file in files):
            yield PluginPackage(name, distribution.version, module)


def _declared(module: Any) -> tuple[str, ...]:
    if hasattr(module, "get_ep_name"):
        return (str(module.get_ep_name()),)
    if hasattr(module, "get_ep_names"):
        return tuple(str(name) for name in module.get_ep_names())
    return ()


def _devices(plugin: Plugin) -> tuple[Any, ...]:
    """Its devices among all that are known. A library may have several providers (as one that chooses among others):
    those of the first that its package names, or else that it lists."""
    listed = [device for device in ort.get_ep_devices() if _belongs(device, plugin)]
    names = [device.ep_name for device in listed]
    first = next((name for name in plugin.ep_names if name in names), names[0] if names else "")
    return tuple(device for device in listed if device.ep_name == first)


def _belongs(device: Any, plugin: Plugin) -> bool:
    library = _library(device)
    if library is None:  # built in, or onnxruntime 1.23 or 1.24, which do not say
        return name_to_key(device.ep_name) in {name_to_key(name) for name in plugin.ep_names}
    return Path(library).resolve() == Path(plugin.library).resolve()


def _library(device: Any) -> str | None:
    """Path of the plug-in that a device's provider comes from."""
    found: str | None = device.ep_metadata.get("library_path")
    return found


def _reason(error: Exception) -> str:
    """What the system's loader says, without the library's code of the error and the path that was tried."""
    text = " ".join(str(error).split())
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Failed to load library .* with error: )?", "", text)
