"""``build --backend cuda``: what is prepared is checked and timed, and used only where that speaks for it."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from freeprompt.cli import cuda_build
from freeprompt.cli.stages import Stages
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.parity import Parity
from freeprompt.contract.session import Array, HostArray, NumpyArray, Session
from freeprompt.engines import doctor
from freeprompt.engines.artifacts import metadata as metadata_files
from freeprompt.engines.artifacts.signature import Signature
from freeprompt.engines.cuda.runtime import DeviceInfo
from freeprompt.engines.onnxruntime import backend as onnxruntime_backend
from freeprompt.engines.onnxruntime import library
from freeprompt.engines.onnxruntime import prepare as preparing
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend, OnnxRuntimeSession
from freeprompt.engines.onnxruntime.cuda_form import RewrittenGraph
from freeprompt.engines.onnxruntime.prepare import Preparation, prepare_bundle
from freeprompt.engines.onnxruntime.prepared_metadata import CudaTiming, PreparedMetadata, prepared_metadata_from_json
from freeprompt.engines.onnxruntime.prepared_store import CudaStore
from freeprompt.engines.shapes import Shapes
from tests.engines.onnxruntime.cuda_reference import to_standard
from tests.shapes import shapes_of

VERSION = ort.__version__
Fused = Callable[[str], RewrittenGraph]


class CpuBackend:
    """Stands for ``OnnxRuntimeBackend("cuda")``: computes what the kernels that only CUDA has are documented to.

    Args:
        wrong: "exported", "prepared" or "": which form gives half of what it should.
        missing: a kernel is, so that a prepared graph cannot be opened.
    """

    name, device = "cuda", "cuda:0"

    def __init__(self, wrong: str = "", missing: bool = False) -> None:
        self.wrong, self.missing = wrong, missing
        self.opened: list[tuple[str, str]] = []

    def open(self, bundle: Bundle, graph: str) -> Session:
        raise AssertionError("a build opens models")

    def open_model(self, bundle: Bundle, graph: str, model: bytes | None) -> Session:
        form = "exported" if model is None else "prepared"
        self.opened.append((graph, form))
        if model is not None and self.missing:
            raise BackendError("no kernel")
        session = OnnxRuntimeBackend("cpu", 1).open_model(bundle, graph, to_standard(model) if model else None)
        return Halved(session) if self.wrong == form else session

    def upload(self, array: NumpyArray) -> Array:
        return HostArray(array)


class Halved:
    """A session with a wrong kernel."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inputs, self.outputs = session.inputs, session.outputs

    def run(self, feeds: Any) -> dict[str, Array]:
        return {n: HostArray(0.5 * v.numpy()) for n, v in self._session.run(feeds).items()}


def usual(bundle: Bundle) -> Shapes:
    return shapes_of(bundle.manifest, (64, 64), rows="1,2")


def store_of(bundle: Bundle, version: str = VERSION, device: str = "GPU") -> CudaStore:
    return CudaStore(bundle, version, device)


def prepare(
    bundle: Bundle,
    rewritten: Fused,
    *graphs: str,
    backend: CpuBackend | None = None,
    shapes: Shapes | None = None,
    device: str = "GPU",
) -> list[Preparation]:
    backend, store = backend or CpuBackend(), store_of(bundle, device=device)
    shapes = shapes or usual(bundle)
    return list(prepare_bundle(bundle, shapes, backend, store, graphs, fuse=lambda path, graph: rewritten(graph)))


@pytest.fixture(autouse=True)
def times(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Milliseconds that each timed run is said to take, in order: at each shape as exported, then as prepared."""
    times = [4.0, 8.0, 3.0, 6.0]
    rest = [1.0] * 50
    monkeypatch.setattr(preparing, "_milliseconds", lambda session, feeds: (times or rest).pop(0))
    return times


def refusals(bundle: Bundle, version: str = VERSION, device: str = "GPU") -> list[str]:
    return [str(found.refused) for found in store_of(bundle, version, device).scan()]


def test_what_is_prepared_is_checked_and_used(bundle: Bundle, rewritten: Fused) -> None:
    backend = CpuBackend()
    (done,) = prepare(bundle, rewritten, "step", backend=backend)
    assert (done.how, done.refused) == ("prepared", None)
    assert backend.opened == [("step", "exported"), ("step", "prepared")], "one at a time"
    metadata = done.metadata
    assert metadata.operators["GroupNorm"] and metadata.operators["NhwcConv"]
    assert [timing.exported_ms for timing in metadata.timings] == [4.0, 8.0]
    assert [timing.prepared_ms for timing in metadata.timings] == [3.0, 6.0]
    assert all(0 < parity.relative_l2 < 2e-6 for parity in metadata.parity), "measured, not assumed"
    assert store_of(bundle).model("step") == rewritten("step").model
    assert store_of(bundle).model("record") is None, "not prepared"


def test_every_graph_by_default_and_once(bundle: Bundle, rewritten: Fused, times: list[float]) -> None:
    times.clear()
    first = prepare(bundle, rewritten)
    assert [p.metadata.graph for p in first] == list(bundle.manifest.graphs)
    backend = CpuBackend()
    again = prepare(bundle, rewritten, backend=backend)
    assert [(p.how, p.refused) for p in again] == [("kept", None)] * len(first)
    assert backend.opened == []
    # Another size has not been checked.
    (more,) = prepare(bundle, rewritten, "step", shapes=shapes_of(bundle.manifest, (96, 64), rows="2"))
    assert more.how == "prepared"


def test_a_wrong_kernel_is_refused_with_its_error(bundle: Bundle, rewritten: Fused) -> None:
    (done,) = prepare(bundle, rewritten, "text_encoder", backend=CpuBackend(wrong="prepared"))
    assert "differs from ONNX Runtime on the CPU by 5.0e-01, 1e-03 is allowed" in str(done.refused)
    assert store_of(bundle).model("text_encoder") is None
    # Asked again, it is tried again.
    (again,) = prepare(bundle, rewritten, "text_encoder", backend=CpuBackend(wrong="prepared"))
    assert (again.how, again.refused) == ("prepared", done.refused)


def test_what_is_slower_is_not_used(bundle: Bundle, rewritten: Fused, times: list[float]) -> None:
    times[:] = [3.0, 6.0, 4.0, 5.5]
    (done,) = prepare(bundle, rewritten, "step")
    assert done.refused == "it is slower here than the graph as exported (9.5 ms, 9 ms as exported)"
    assert store_of(bundle).model("step") is None
    assert cuda_build.preparation_to_line(done).startswith("step stays as exported: it is slower here")


def test_a_kernel_that_is_missing_leaves_the_graph_as_exported(bundle: Bundle, rewritten: Fused) -> None:
    (done,) = prepare(bundle, rewritten, "step", backend=CpuBackend(missing=True))
    assert done.refused == "it cannot be run here: no kernel"
    assert (done.metadata.parity, done.metadata.timings) == ((), ()), "nothing is said of what did not run"
    assert store_of(bundle).model("step") is None
    (again,) = prepare(bundle, rewritten, "step")
    assert (again.how, again.refused) == ("prepared", None), "what was short of memory may have it now"


def test_a_graph_that_cannot_be_rewritten_leaves_the_others(
    bundle: Bundle, rewritten: Fused, times: list[float]
) -> None:
    times.clear()

    def fuse(path: Path, graph: str) -> RewrittenGraph:
        if graph == "step":
            raise BackendError("fused 3 of 4 group norms")
        return rewritten(graph)

    graphs = ("step", "text_encoder")
    first, second = prepare_bundle(bundle, usual(bundle), CpuBackend(), store_of(bundle), graphs, fuse=fuse)
    assert (first.refused, second.refused) == ("fused 3 of 4 group norms", None)
    assert store_of(bundle).model("step") is None and store_of(bundle).model("text_encoder") is not None


def test_packages_are_missed_before_anything_is_done(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sympy", None)
    with pytest.raises(BackendError, match="sympy cannot be imported"):
        list(prepare_bundle(bundle, usual(bundle), CpuBackend(), store_of(bundle)))
    assert not bundle.engines.exists()


def test_a_provider_that_is_wrong_itself_is_an_error(bundle: Bundle, rewritten: Fused) -> None:
    with pytest.raises(BackendError, match=r"text_encoder is wrong on backend cuda as it was exported.*5\.0e-01"):
        prepare(bundle, rewritten, "text_encoder", backend=CpuBackend(wrong="exported"))
    assert refusals(bundle) == []


def test_reasons_of_refusal(bundle: Bundle, rewritten: Fused, times: list[float], tmp_path: Path) -> None:
    times.clear()
    prepare(bundle, rewritten, "vae_decoder")
    (path,) = (bundle.engines / "cuda").glob("*.onnx")
    described = path.with_suffix(".json")
    assert refusals(bundle) == ["None"]
    assert refusals(bundle, version="9.9") == [f"prepared with onnxruntime {VERSION}, this is 9.9"]
    assert store_of(bundle, version="9.9").model("vae_decoder") is None
    assert refusals(bundle, device="Other") == ["checked on GPU, this is Other"]
    assert refusals(bundle, device="") == ["None"], "where no one can tell the GPU's name"
    stranger = CudaStore(bundle, VERSION, "GPU", Signature(tmp_path / "other"))
    assert "not prepared by this user" in str(stranger.scan()[0].refused)
    good, metadata = path.read_bytes(), described.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert "damaged or was replaced" in refusals(bundle)[0]
    path.write_bytes(good)
    described.write_bytes(metadata.replace(b'"exported_ms": 1.0', b'"exported_ms": 2.0'))
    assert "not prepared by this user" in refusals(bundle)[0], "metadata that was edited"
    for damage in (b"", b"{}", b"[" * 100_000, metadata[: len(metadata) // 2]):
        described.write_bytes(damage)
        assert "its metadata cannot be read" in refusals(bundle)[0]
    described.write_bytes(metadata.replace(b'"version": 1', b'"version": 2'))
    assert "its metadata has version 2, this freeprompt reads 1" in refusals(bundle)[0]
    described.unlink()
    assert "it has no metadata" in refusals(bundle)[0]
    assert store_of(bundle).model("vae_decoder") is None
    prepare(bundle, rewritten, "vae_decoder")
    assert refusals(bundle) == ["None"], "built again"
    for file in (path, described):
        file.rename(file.with_name(f"step{file.name[len('vae_decoder') :]}"))
    assert refusals(bundle) == ["its metadata belongs to another graph"]


def test_another_export_of_the_weights_is_another_graph(bundle: Bundle, rewritten: Fused) -> None:
    """Or of the form for ONNX Runtime, which is what was prepared; the standard form is not."""
    prepare(bundle, rewritten, "step")
    for changed, refused in (("unet.weights", True), ("step.fused.onnx", True), ("step.onnx", False)):
        files = tuple(replace(f, sha256="0" * 64) if f.path == changed else f for f in bundle.manifest.files)
        other = replace(bundle, manifest=replace(bundle.manifest, files=files))
        reason = "it was prepared from another version of the graph or its weights" if refused else "None"
        assert refusals(other) == [reason], changed
        assert (store_of(other).model("step") is None) == refused


def test_the_graph_that_was_checked_is_rewritten(bundle: Bundle, rewritten: Fused) -> None:
    """The library reads by path: a copy of what the bundle held when it was opened."""
    opened = Bundle.open(bundle.path)
    names = ("vae_decoder.fused.onnx", "vae_decoder.weights")
    held = {name: opened.read(name) for name in names}
    for name in names:
        (bundle.path / name).write_bytes(b"something else")
    seen: list[dict[str, bytes]] = []

    def fuse(path: Path, graph: str) -> RewrittenGraph:
        seen.append({file.name: file.read_bytes() for file in path.parent.iterdir()})
        return rewritten(graph)

    (done,) = prepare_bundle(opened, usual(opened), CpuBackend(), store_of(opened), ("vae_decoder",), fuse=fuse)
    assert seen == [held]
    assert done.how == "prepared"


def test_a_write_that_is_cut_off_leaves_no_graph(bundle: Bundle, rewritten: Fused) -> None:
    """Before the metadata: the graph is refused; the next build makes it good."""

    def cut_off(path: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(metadata_files, "save_metadata", cut_off)
        prepare(bundle, rewritten, "step")
    assert "it has no metadata" in refusals(bundle)[0]
    (done,) = prepare(bundle, rewritten, "step")
    assert (done.how, done.refused) == ("prepared", None)


def test_numbers_that_are_none_speak_against() -> None:
    metadata = PreparedMetadata("step", "0", "1", parity_threshold=1e-3)
    assert "inf" in str(metadata.problem), "never measured"
    right = replace(metadata, parity=(Parity("", 1e-4, 1e-4),))
    assert "nan" in str(replace(metadata, parity=(Parity("", float("nan"), 0.0),)).problem)
    assert "slower" in str(replace(right, timings=(CudaTiming("", 1.0, float("nan")),)).problem)
    assert replace(right, timings=(CudaTiming("", 1.0, 1.0),)).problem is None


def test_the_cuda_backend_opens_what_was_prepared(
    bundle: Bundle, rewritten: Fused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the CPU, not where the exported form was asked for, and only what is there."""
    prepare(bundle, rewritten, "step", device="")
    models: list[bytes | None] = []
    monkeypatch.setattr(onnxruntime_backend, "check_available", lambda name: None)
    monkeypatch.setattr(onnxruntime_backend, "open_session", lambda *args: models.append(args[-1]))
    monkeypatch.setattr(OnnxRuntimeSession, "__init__", lambda self, *args: None)
    monkeypatch.setattr(onnxruntime_backend, "verify_session", lambda *args: None)
    OnnxRuntimeBackend("cuda").open(bundle, "step")
    OnnxRuntimeBackend("cuda", prepared=False).open(bundle, "step")
    OnnxRuntimeBackend("cuda", fused=False).open(bundle, "step")
    OnnxRuntimeBackend("cuda").open(bundle, "record")
    OnnxRuntimeBackend("cpu").open(bundle, "step")
    assert models == [rewritten("step").model, None, None, None, None]


def test_the_command_tells_what_became_of_each_graph(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], times: list[float]
) -> None:
    times[:] = [8.0, 4.0]
    with pytest.raises(BackendError, match="backend 'cuda' is not there"):
        cuda_build.prepare(bundle, usual(bundle), (), Stages(quiet=True), quiet=False)
    monkeypatch.setattr(library, "check_available", lambda name: None)
    monkeypatch.setattr(library, "cuda_problem", lambda: "no driver")
    with pytest.raises(BackendError, match="no driver"):
        cuda_build.prepare(bundle, usual(bundle), (), Stages(quiet=True), quiet=False)
    assert not bundle.engines.exists(), "before any work"
    monkeypatch.setattr(library, "cuda_problem", lambda: None)
    cpu, backend = OnnxRuntimeBackend("cpu", 1), CpuBackend()
    monkeypatch.setattr(onnxruntime_backend, "OnnxRuntimeBackend", lambda name, threads=1: backend)
    monkeypatch.setattr(backend, "open", cpu.open)  # the reference of the parity
    monkeypatch.setattr(backend, "open_model", lambda bundle, graph, model: cpu.open(bundle, graph))
    cuda_build.prepare(bundle, usual(bundle), ("text_encoder",), Stages(quiet=True), quiet=False)
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("prepared text_encoder: ") and "MultiHeadAttention" in line
    assert "differs from ONNX Runtime on the CPU by" in line and "4 ms where it takes 8 as exported" in line


class Device:
    """A session on a device that works by itself: a run returns at once, its result takes ``milliseconds``."""

    inputs = outputs = ()

    def __init__(self, milliseconds: list[float]) -> None:
        self.milliseconds, self.now, self.done = milliseconds, 0.0, 0.0

    def clock(self) -> float:
        return self.now

    def run(self, feeds: Any) -> dict[str, Array]:
        self.done = self.now + (self.milliseconds.pop(0) if self.milliseconds else 2.0) / 1e3
        self.now += 1e-5  # what the host takes
        return {"small": Late(self, 1), "large": Late(self, 1000)}


class Late(HostArray):
    def __init__(self, device: Device, size: int) -> None:
        super().__init__(np.zeros(size))
        object.__setattr__(self, "device", device)

    def numpy(self) -> NumpyArray:
        assert self.nbytes == 8, "the least to copy"
        device: Device = self.device  # type: ignore[attr-defined]
        device.now = max(device.now, device.done)
        return self.values


def test_a_run_is_timed_to_its_end_and_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """At first it takes 90 ms, then, for half a second, 10, and 2 when the clock is up."""
    monkeypatch.undo()  # of the times that are said here otherwise
    device = Device([90.0] * 3 + [10.0] * 23)
    monkeypatch.setattr(time, "perf_counter", device.clock)
    assert preparing._milliseconds(device, {}) == pytest.approx(2.0)


def test_doctor_lists_prepared_graphs(bundle: Bundle, rewritten: Fused, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(bundle, rewritten, "step")
    info = DeviceInfo(0, "GPU", "9.0", 1 << 30, "13.0", "12.9")
    monkeypatch.setattr(doctor, "_gpu", lambda: (info, None))
    monkeypatch.setattr(doctor, "_packages", lambda: {"onnxruntime-gpu": VERSION})
    advice = f"for a faster --backend cuda: freeprompt build {bundle.path} --backend cuda"
    text = "\n".join(doctor.report_to_lines(doctor.examine(bundle)))
    assert ".onnx: usable" in text and "GroupNorm" in text and advice not in text
    monkeypatch.setattr(doctor, "_gpu", lambda: (replace(info, name="Other"), None))
    text = "\n".join(doctor.report_to_lines(doctor.examine(bundle)))
    assert "checked on GPU, this is Other" in text and advice in text
    shutil.rmtree(bundle.engines)
    assert "prepared for CUDA" not in "\n".join(doctor.report_to_lines(doctor.examine(bundle)))


def test_metadata_read_back(bundle: Bundle, rewritten: Fused) -> None:
    (done,) = prepare(bundle, rewritten, "text_encoder")
    (path,) = (bundle.engines / "cuda").glob("*.json")
    assert replace(prepared_metadata_from_json(path.read_bytes()), seal="") == done.metadata
