"""What ``freeprompt doctor`` says of ONNX Runtime's execution providers, built in and plug-ins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from freeprompt.contract.errors import FreePromptError

BUILT_IN = "built in"
NO_DEVICE = "registered, lists no device on this machine"


@dataclass(frozen=True)
class ProviderReport:
    """An execution provider.

    Attributes:
        backend: what --backend takes, "ort:openvino".
        ep_name: ONNX Runtime's name; "" where the plug-in that brings it cannot say.
        origin: "built in", or the plug-in's package and version.
        devices: that a plug-in lists; what is built in names its own by numbers.
        problem: why it cannot be used; None: nothing is known against it.
    """

    backend: str
    ep_name: str
    origin: str
    devices: tuple[str, ...] = ()
    problem: str | None = None


def provider_reports(cuda_problem: str | None = None) -> tuple[ProviderReport, ...]:
    """Every provider of the installed onnxruntime and of every plug-in that is installed, which are registered for it.

    Args:
        cuda_problem: why CUDA cannot be used, as found before.
    """
    try:
        from freeprompt.engines.onnxruntime import plugins, provider
    except ImportError:  # no onnxruntime
        return ()
    problems = dict.fromkeys(("cuda", "tensorrt"), cuda_problem)
    found = [
        ProviderReport(f"ort:{short}", name, BUILT_IN, (), problems.get(short))
        for short, name in provider.built_in().items()
    ]
    for package in plugins.find_packages():
        name, problem = "", None
        devices: tuple[Any, ...] = ()
        try:
            plugin = plugins.load_package(package)
            name = next(iter(plugin.ep_names), "")
            devices = plugins.register(plugin)
            name, problem = (devices[0].ep_name, None) if devices else (name, NO_DEVICE)
        except FreePromptError as error:
            problem = str(error)
        texts = tuple(plugins.device_to_text(device) for device in devices)
        origin = f"{package.distribution} {package.version}"
        found.append(ProviderReport(f"ort:{package.name}", name, origin, texts, problem))
    return tuple(found)


def providers_to_lines(reports: tuple[ProviderReport, ...]) -> Iterator[str]:
    """The readable account."""
    width = max((len(report.backend) for report in reports), default=0)
    for report in reports:
        parts = [part for part in (report.ep_name, report.origin) if part]
        found = report.problem or ", ".join(report.devices)
        yield f"  {report.backend:<{width}}  {', '.join(parts)}{': ' if found else ''}{found}"
