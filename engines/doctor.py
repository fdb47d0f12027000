"""What is installed, which backend "auto" takes and why not the others, what is missing."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.engines.bundle_report import BundleReport, bundle_to_lines, bundle_to_report
from freeprompt.engines.cuda.runtime import CudaRuntime, DeviceInfo
from freeprompt.engines.onnxruntime.cuda_notes import CudaNotes
from freeprompt.engines.provider_report import ProviderReport, provider_reports, providers_to_lines
from freeprompt.engines.select import Candidate, candidates
from freeprompt.engines.tensorrt.library import FLAVOURS, load_library
from freeprompt.engines.tensorrt.parity import Checked
from freeprompt.engines.tensorrt.store import EngineStore, Machine

# Packages that decide which backends there are, with the names they are installed under.
PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "cuda-core",
    "cuda-bindings",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx-cu12-bindings",
    "tensorrt-rtx-cu13-bindings",
    "polygraphy",
    "torch",
)


@dataclass(frozen=True)
class EngineReport:
    """One engine of the bundle; ``refused`` is None where it may be used.

    ``unchecked`` says that it has not shown on this machine that it computes right; "": it has.
    """

    file: str
    graph: str
    shapes: tuple[str, ...]
    fused_attention: str
    refused: str | None
    unchecked: str = ""


@dataclass(frozen=True)
class CudaFormReport:
    """A note on a graph's form for CUDA; ``refused`` is None where the form may be used."""

    file: str
    operators: str
    refused: str | None


@dataclass(frozen=True)
class Report:
    """The findings.

    Attributes:
        packages: name -> version of what is installed.
        providers: of ONNX Runtime, built in and plug-ins, and what of them can be used.
        gpu, gpu_problem: the device, or why none can be used; likewise for TensorRT.
        chosen: what "auto" takes; "" if nothing can be used.
        candidates: what it considered.
        onnxruntime: version of the library that is imported, whatever package it came from; "" without one.
        bundle: what was said of it, if one was named.
        engines: of the bundle.
        cuda_forms: what was noted of its graphs' forms for CUDA.
        advice: what to do to get further.
    """

    python: str
    system: str
    packages: dict[str, str]
    providers: tuple[ProviderReport, ...]
    gpu: DeviceInfo | None
    gpu_problem: str | None
    tensorrt: str | None
    tensorrt_problem: str | None
    tensorrt_rtx: str | None
    tensorrt_rtx_problem: str | None
    chosen: str
    candidates: tuple[Candidate, ...]
    onnxruntime: str = ""
    bundle: BundleReport | None = None
    engines: tuple[EngineReport, ...] = ()
    cuda_forms: tuple[CudaFormReport, ...] = ()
    advice: tuple[str, ...] = field(default=())


def examine(bundle: Bundle | None = None, damaged: BundleReport | None = None) -> Report:
    """Look at everything; nothing is changed, and what is missing is a finding, not an error.

    Args:
        bundle: opened, to be reported with its engines.
        damaged: the report of one that does not open, instead.
    """
    packages = _packages()
    gpu, gpu_problem = _gpu()
    tensorrt, tensorrt_problem = _tensorrt("tensorrt")
    rtx, rtx_problem = _tensorrt("tensorrt-rtx")
    considered = tuple(candidates(bundle))
    chosen = next((c.name for c in considered if c.problem is None), "")
    versions = {"tensorrt": tensorrt, "tensorrt-rtx": rtx}
    engines = () if bundle is None else tuple(_engines(bundle, versions, gpu))
    cuda_forms = () if bundle is None else _cuda_forms(bundle, gpu)
    return Report(
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.machine()}",
        packages=packages,
        providers=provider_reports(next((c.problem for c in considered if c.name == "cuda"), None)),
        gpu=gpu,
        gpu_problem=gpu_problem,
        tensorrt=tensorrt,
        tensorrt_problem=tensorrt_problem,
        tensorrt_rtx=rtx,
        tensorrt_rtx_problem=rtx_problem,
        chosen=chosen,
        candidates=considered,
        onnxruntime=_onnxruntime_version(),
        bundle=damaged if bundle is None else bundle_to_report(bundle, chosen not in ("", "cpu")),
        engines=engines,
        cuda_forms=cuda_forms,
        advice=tuple(_advice(packages, gpu, versions, engines, cuda_forms, bundle)),
    )


def report_to_lines(report: Report) -> Iterator[str]:
    """The readable account."""
    yield f"python        {report.python}, {report.system}"
    for name, version in report.packages.items():
        yield f"{name:<13} {version}"
    if report.onnxruntime:
        yield f"providers     --backend takes these (of onnxruntime {report.onnxruntime})"
        yield from providers_to_lines(report.providers)
    else:
        yield "providers     none: onnxruntime is not installed"
    if report.gpu is not None:
        gpu = report.gpu
        yield (
            f"gpu           {gpu.name}, compute capability {gpu.capability}, {gpu.memory_bytes / 1e9:.1f} GB, "
            f"driver for CUDA {gpu.driver}, runtime {gpu.runtime}"
        )
    else:
        yield f"gpu           none: {report.gpu_problem}"
    yield f"tensorrt      {report.tensorrt or f'none: {report.tensorrt_problem}'}"
    yield f"tensorrt-rtx  {report.tensorrt_rtx or f'none: {report.tensorrt_rtx_problem}'}"
    if report.bundle is not None:
        yield ""
        yield from bundle_to_lines(report.bundle, report.chosen)
    yield ""
    yield f"--backend auto takes {report.chosen or 'nothing, since nothing can be used'}"
    for candidate in report.candidates:
        if candidate.problem is not None:
            yield f"  not {candidate.name}: {candidate.problem}"
    if report.bundle is not None and report.bundle.problem is None and not report.engines and not report.cuda_forms:
        yield ""
        yield "nothing of the bundle was built for a GPU; the CPU needs nothing built, and CUDA runs the fused forms"
    if report.engines:
        yield ""
        yield "TensorRT engines of the bundle"
    for engine in report.engines:
        yield f"  {engine.file}: {engine.refused or 'usable'}"
        for shapes in engine.shapes:
            yield f"    for {shapes}"
        if engine.fused_attention:
            yield f"    fused attention {engine.fused_attention}"
        if engine.unchecked:
            yield f"    {engine.unchecked}"
    if report.cuda_forms:
        yield ""
        yield "forms for CUDA that were checked; a graph whose form is not usable runs in its fused form"
    for form in report.cuda_forms:
        yield f"  {form.file}: {form.refused or 'usable'}"
        if form.operators:
            yield f"    {form.operators}"
    if report.advice:
        yield ""
    for line in report.advice:
        yield f"advice: {line}"


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _onnxruntime_version() -> str:
    try:
        import onnxruntime
    except ImportError:
        return ""
    return str(onnxruntime.__version__)


def _gpu() -> tuple[DeviceInfo | None, str | None]:
    try:
        return CudaRuntime().info(), None
    except BackendError as error:
        return None, str(error)


def _tensorrt(name: str) -> tuple[str | None, str | None]:
    try:
        return load_library(name).version, None
    except BackendError as error:
        return None, str(error)


def _engines(bundle: Bundle, versions: dict[str, str | None], gpu: DeviceInfo | None) -> Iterator[EngineReport]:
    for name, version in versions.items():
        machine = Machine(version, gpu.capability, gpu.name) if version and gpu else None
        for found in EngineStore(bundle, FLAVOURS[name], machine).scan():
            metadata = found.metadata
            fused, checked = "", ""
            if metadata is not None and metadata.attention_layers and metadata.layers:
                count = "unknown" if metadata.fused_attention is None else str(metadata.fused_attention)
                fused = f"{count} of {metadata.attention_layers} layers"
            if metadata is not None and machine is not None and found.refused is None:
                right = Checked(FLAVOURS[name], machine).holds(bundle, metadata)
                checked = "" if right else "not checked on this machine yet: that is done when it is first loaded"
            yield EngineReport(
                found.path.name,
                metadata.graph if metadata else "",
                tuple(str(profile) for profile in metadata.profiles) if metadata else (),
                fused,
                found.refused,
                checked,
            )


def _cuda_forms(bundle: Bundle, gpu: DeviceInfo | None) -> tuple[CudaFormReport, ...]:
    reports = []
    for found in CudaNotes(bundle, _onnxruntime_version(), gpu.name if gpu else "").scan():
        spec = bundle.manifest.graphs.get(found.note.graph) if found.note else None
        operators = spec.cuda.operators if spec and spec.cuda else {}
        counted = ", ".join(f"{count} {name}" for name, count in operators.items())
        reports.append(CudaFormReport(found.path.name, counted, found.refused))
    return tuple(reports)


def _advice(
    packages: dict[str, str],
    gpu: DeviceInfo | None,
    versions: dict[str, str | None],
    engines: tuple[EngineReport, ...],
    cuda_forms: tuple[CudaFormReport, ...],
    bundle: Bundle | None,
) -> Iterator[str]:
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        yield (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "pip uninstall both, then install onnxruntime-gpu"
        )
    if gpu is None:
        yield "without a usable GPU everything runs on the CPU; that is complete, only slower"
        return
    if "onnxruntime-gpu" not in packages:
        yield "for --backend cuda: pip uninstall onnxruntime; pip install onnxruntime-gpu"
    elif bundle is not None and not any(form.refused is None for form in cuda_forms):
        if any(graph.cuda is not None for graph in bundle.manifest.graphs.values()):
            yield f"for a faster --backend cuda: freeprompt build {bundle.path} --backend cuda"
        else:
            yield "for a faster --backend cuda: export the checkpoint again, with this version's forms for CUDA"
    unbuilt = None if any(engine.refused is None for engine in engines) else bundle
    rtx = FLAVOURS["tensorrt-rtx"]
    if unbuilt is not None and versions[rtx.backend] is not None and rtx.covers((), gpu.capability):
        yield f"for --backend {rtx.backend}: freeprompt build {unbuilt.path} --backend {rtx.backend}"
    if versions["tensorrt"] is None:
        major = int(gpu.driver.split(".")[0])
        yield f"for --backend tensorrt: pip install 'freeprompt[tensorrt-cu{min(13, major)}]'"
    elif unbuilt is not None:
        yield f"for --backend tensorrt: freeprompt build {unbuilt.path}"
