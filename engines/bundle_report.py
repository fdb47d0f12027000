"""What ``freeprompt doctor`` says of a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BundleError
from freeprompt.contract.manifest import GraphSpec
from freeprompt.engines.footprint import Footprint, bundle_to_footprint, gigabytes


@dataclass(frozen=True)
class BundleReport:
    """A bundle, or why it cannot be used.

    Attributes:
        path: as it was given.
        problem: why it does not open; None: every file is there, with the manifest's SHA-256.
        forms: graph -> "standard", "standard, fused" or "standard, fused, cuda".
        footprint: of its weights; None where they could not be told.
    """

    path: str
    problem: str | None = None
    sha256: str = ""
    model: str = ""
    format_version: int = 0
    precision: str = ""
    size: str = ""
    bytes: int = 0
    forms: dict[str, str] = field(default_factory=dict)
    footprint: Footprint | None = None
    footprint_problem: str | None = None


def bundle_to_report(bundle: Bundle, on_gpu: bool) -> BundleReport:
    """Look at an opened bundle.

    Args:
        on_gpu: whether its weights would lie in the GPU's memory.
    """
    manifest = bundle.manifest
    footprint, problem = None, None
    try:
        footprint = bundle_to_footprint(bundle, on_gpu)
    except BundleError as error:
        problem = str(error)
    except OSError as error:
        problem = f"a graph cannot be read: {error}"
    return BundleReport(
        str(bundle.path),
        None,
        bundle.sha256,
        manifest.model,
        manifest.format_version,
        manifest.precision,
        f"{manifest.latents.width}x{manifest.latents.height}",
        sum(file.bytes for file in manifest.files),
        {name: ", ".join(_forms(graph)) for name, graph in manifest.graphs.items()},
        footprint,
        problem,
    )


def _forms(graph: GraphSpec) -> Iterator[str]:
    yield "standard"
    if graph.fused is not None:
        yield "fused"
    if graph.cuda is not None:
        yield "cuda"


def bundle_to_lines(report: BundleReport, chosen: str) -> Iterator[str]:
    """The readable account.

    Args:
        chosen: the backend that "auto" takes, "" if none can be used.
    """
    if report.problem is not None:
        yield f"bundle        cannot be used: {report.problem}"
        return
    yield f"bundle        {report.path}: whole, every file has the SHA-256 that its manifest says"
    yield (
        f"model         {report.model}, {report.size}, {report.precision}, {gigabytes(report.bytes)} on disk, "
        f"format {report.format_version}"
    )
    for form in sorted({*report.forms.values()}):
        graphs = ", ".join(name for name, each in report.forms.items() if each == form)
        yield f"graphs        {graphs} ({form})"
    footprint = report.footprint
    if footprint is None:
        yield f"memory        cannot be told: {report.footprint_problem}"
    else:
        place = f"with {chosen}" if chosen else "on the CPU"
        yield (
            f"memory        weights {gigabytes(footprint.weights)}; {place} an edit by one prompt keeps at least "
            f"{gigabytes(footprint.least)} of them, by several at most {gigabytes(footprint.most)}, and activations; "
            f"{footprint.verdict}"
        )
