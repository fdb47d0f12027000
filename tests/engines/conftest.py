"""Fixtures of the engine tests: a device and a TensorRT that are fakes, on a bundle that is real."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from freeprompt.contract.bundle import Bundle
from freeprompt.engines.cuda.runtime import CudaRuntime
from freeprompt.engines.tensorrt.backend import TensorRTBackend
from freeprompt.engines.tensorrt.building.bundle_build import BundleBuild, Outcome, build_bundle
from freeprompt.engines.tensorrt.building.progress import Reporter
from freeprompt.engines.tensorrt.library import FLAVOURS, Library, Messages
from freeprompt.engines.tensorrt.store import EngineStore
from tests.engines.cuda.fake_cuda import FakeCuda
from tests.engines.tensorrt.fake_tensorrt import FakeTensorRT
from tests.shapes import shapes_of

SIZE = (64, 64)


@dataclass
class Machine:
    """A fake machine with a backend on it."""

    cuda: FakeCuda
    trt: FakeTensorRT
    backend: TensorRTBackend

    @classmethod
    def create(
        cls,
        version: str = "10.16.1.11",
        backend: str = "tensorrt",
        limit: int = 1 << 30,
        cuda_graphs: bool = True,
        eager: tuple[int, ...] = (),
        memory_pools: bool = True,
        capability: tuple[int, int] = (9, 0),
    ) -> Machine:
        cuda = FakeCuda(limit, eager=eager, memory_pools=memory_pools, capability=capability)
        trt = FakeTensorRT(version, cuda, backend)
        flavour = FLAVOURS[backend]
        library = Library(flavour, trt, Messages(trt, flavour.title))
        return cls(cuda, trt, TensorRTBackend(library, cuda_graphs=cuda_graphs, cuda=CudaRuntime(cuda.library)))

    def build(self, bundle: Bundle, *graphs: str, rows: str = "1,2,3", engines: str = "shared") -> list[Outcome]:
        shapes = shapes_of(bundle.manifest, SIZE, rows=rows)
        return self.run(bundle, BundleBuild(shapes, engines, graphs))

    def run(
        self, bundle: Bundle, build: BundleBuild, progress: Reporter = lambda line: None, gpu: bool = True
    ) -> list[Outcome]:
        library, backend = self.backend.library, self.backend if gpu else None
        return list(build_bundle(bundle, build, library, backend, progress, self.trt.compile))

    def store(self, bundle: Bundle, trust: bool = False) -> EngineStore:
        return EngineStore(bundle, self.backend.library.flavour, self.backend.machine, trust)


@pytest.fixture(autouse=True)
def own_signature(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret of the user who runs the tests stays out of them."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    """A bundle of one's own, without engines."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder, ignore=shutil.ignore_patterns("engines"))
    return Bundle.open(folder, verify=False)


@pytest.fixture(params=["10.3.0", "10.16.1.11", "11.4.0.106"])
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine.create(request.param)
