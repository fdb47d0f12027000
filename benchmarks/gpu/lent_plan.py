"""What ``benchmarks.gpu.lent`` runs on a lent machine, in which Python, and for how long."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLAIN, ORT, TRT = "plain", "ort", "trt"
# Folders of the repository that the measurement imports, by their places in a view that every Python finds.
FOLDERS = {
    "benchmarks": "benchmarks",
    "tests": "tests",
    "freeprompt": "freeprompt",
    "engines": "freeprompt/engines",
    "runtime": "freeprompt/runtime",
    "export": "freeprompt/export",
}


@dataclass(frozen=True)
class Part:
    """A part of gpu_check in one process of one Python, and the seconds it gets. Cut off, it goes on the next time."""

    name: str
    python: str
    seconds: float

    @property
    def key(self) -> str:
        return f"{self.name}, {self.python}"


# What needs no upload but the wheels, and no quiet machine: made while the kits arrive.
PREPARE = (
    Part("export", PLAIN, 900),
    Part("references", PLAIN, 300),
    Part("precision-prepare", PLAIN, 300),
)
# The Python with TensorRT has no ONNX Runtime: what its engines are compared with is computed by another. What graphs
# prepared for CUDA are compared with is among it.
BUILD_REFERENCES = Part("build-references", PLAIN, 500)
REPORT = Part("report", PLAIN, 60)
# The figures that the goals are about come first.
SESSIONS = {
    "onnxruntime": (
        Part("machine", PLAIN, 90),
        Part("cuda-build", ORT, 240),
        Part("ort-cuda", ORT, 240),
        Part("ort-cuda-graph", ORT, 240),
        Part("torch-compile", PLAIN, 400),
        Part("profile", ORT, 240),
        Part("ort-cuda-exported", ORT, 180),
        Part("torch-eager", PLAIN, 120),
        Part("precision", ORT, 120),
        Part("literal", PLAIN, 180),
    ),
    "tensorrt": (
        Part("machine", TRT, 60),
        Part("machine", PLAIN, 90),
        Part("tensorrt-build", TRT, 540),
        Part("tensorrt", TRT, 240),
        Part("profile", TRT, 90),
        Part("tensorrt-no-graph", TRT, 180),
        Part("precision", TRT, 300),
        Part("tensorrt-build-more", TRT, 540),
    ),
}
# The same on a CPU: whatever of it needs no GPU.
DRY = (Part("machine", PLAIN, 60), Part("ort-cpu", PLAIN, 200), Part("profile", PLAIN, 200))
DRY_PREPARE = (Part("export", PLAIN, 900), Part("references", PLAIN, 300))


@dataclass(frozen=True)
class Place:
    """Folders of one machine.

    Attributes:
        base: everything that is made there.
        given: what the upload carried (".kit" in the repository).
        back: what comes back ($OUT).
        dry: the tiny model on the CPU, in this Python, without kits.
    """

    base: Path
    given: Path
    back: Path
    dry: bool = False

    @property
    def results(self) -> Path:
        return self.base / "out"

    @property
    def work(self) -> Path:
        return self.base / "work"

    @property
    def log(self) -> Path:
        return self.base / "log.txt"

    def parts(self, session: str) -> tuple[Part, ...]:
        return DRY if self.dry else SESSIONS[session]

    def preparation(self, session: str) -> Iterator[Part]:
        yield from DRY_PREPARE if self.dry else PREPARE
        if not self.dry:
            yield BUILD_REFERENCES

    def made(self) -> Iterator[Path]:
        """What is there when the preparation has succeeded."""
        yield self.work / "bundle" / "manifest.json"
        yield self.results / "reference-edit.npz"
        if not self.dry:
            yield self.results / "precision.json"
            yield self.work / "precision" / "bundle-0" / "manifest.json"

    def command(self, part: Part) -> tuple[list[str], dict[str, str]]:
        """Command line and environment of a part."""
        view, site, ort = self.base / "view", self.base / "site", self.base / "ort"
        # The image's onnxruntime has no CUDA; what comes first on the path is imported.
        paths = {PLAIN: [site, view], ORT: [ort, site, view], TRT: [view]}[part.python]
        python = str(self.base / "trt" / "python") if part.python == TRT and not self.dry else sys.executable
        arguments = ["-m", "benchmarks.gpu_check", part.name, "--work", str(self.work), "--out", str(self.results)]
        arguments += ["--dry-run"] if self.dry else []
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
        if part.python == ORT:
            # It looks for CUDA and cuDNN beside itself; those of the image lie beside the image's PyTorch.
            known = [*nvidia_libraries(sys.path), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(known)
        return [python, *arguments], environment


def nvidia_libraries(path: Iterable[str]) -> list[str]:
    """Folders of the libraries that NVIDIA's wheels bring, on a Python's path."""
    return [str(folder) for entry in path if entry for folder in sorted(Path(entry).glob("nvidia/*/lib"))]
