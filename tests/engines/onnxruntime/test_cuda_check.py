"""``build --backend cuda``: a graph's form for CUDA is checked and timed, and used only where that speaks for it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from freeprompt import Editor
from freeprompt.cli import cuda_build
from freeprompt.cli.stages import Stages
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.session import Array, HostArray, NumpyArray
from freeprompt.engines.onnxruntime import backend as onnxruntime_backend
from freeprompt.engines.onnxruntime import cuda_check, library
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend, OnnxRuntimeSession
from tests.engines.onnxruntime.cpu_backend import CpuBackend, check, notes_of, refusals, usual
from tests.shapes import shapes_of

PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_what_is_right_and_not_slower_is_used(bundle: Bundle, times: list[float]) -> None:
    backend = CpuBackend()
    (done,) = check(bundle, "step", backend=backend)
    assert (done.how, done.refused) == ("checked", None)
    assert backend.opened == [("step", "fused"), ("step", "cuda")], "one at a time"
    note = done.note
    assert [timing.fused_ms for timing in note.timings] == [4.0, 8.0]
    assert [timing.cuda_ms for timing in note.timings] == [3.0, 6.0]
    assert all(0 < parity.relative_l2 < 2e-6 for parity in note.parity), "measured, not assumed"
    assert notes_of(bundle).model("step") == (bundle.path / "step.cuda.onnx").read_bytes()
    assert notes_of(bundle).model("record") is None, "not checked"


def test_a_note_is_all_that_is_kept(bundle: Bundle, times: list[float]) -> None:
    check(bundle, "step")
    kept = [path for path in bundle.engines.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert [path.suffix for path in kept] == [".json"] and kept[0].stat().st_size < 2000


def test_every_graph_by_default_and_once(bundle: Bundle, times: list[float]) -> None:
    times.clear()
    first = check(bundle)
    assert [done.note.graph for done in first] == list(bundle.manifest.graphs)
    backend = CpuBackend()
    again = check(bundle, backend=backend)
    assert [(done.how, done.refused) for done in again] == [("kept", None)] * len(first)
    assert backend.opened == []
    # Another size has not been checked.
    (more,) = check(bundle, "step", shapes=shapes_of(bundle.manifest, (96, 64), rows="2"))
    assert more.how == "checked"


def test_a_wrong_kernel_is_refused_with_its_error(bundle: Bundle, times: list[float]) -> None:
    (done,) = check(bundle, "text_encoder", backend=CpuBackend(wrong="cuda"))
    assert "differs from ONNX Runtime on the CPU by 5.0e-01, 1e-03 is allowed" in str(done.refused)
    assert notes_of(bundle).model("text_encoder") is None
    # Asked again, it is tried again.
    (again,) = check(bundle, "text_encoder", backend=CpuBackend(wrong="cuda"))
    assert (again.how, again.refused) == ("checked", done.refused)


def test_what_is_slower_is_not_used(bundle: Bundle, times: list[float]) -> None:
    times[:] = [3.0, 6.0, 4.0, 5.5]
    (done,) = check(bundle, "step")
    assert done.refused == "it is slower here than the fused form (9.5 ms, 9 ms by the fused form)"
    assert notes_of(bundle).model("step") is None
    assert cuda_build.check_to_line(done, {}).startswith("step runs in its fused form: it is slower here")


def test_a_kernel_that_is_missing_leaves_the_fused_form(bundle: Bundle, times: list[float]) -> None:
    (done,) = check(bundle, "step", backend=CpuBackend(missing=True))
    assert done.refused == "it cannot be run here: no kernel"
    assert (done.note.parity, done.note.timings) == ((), ()), "nothing is said of what did not run"
    assert notes_of(bundle).model("step") is None
    (again,) = check(bundle, "step")
    assert (again.how, again.refused) == ("checked", None), "what was short of memory may have it now"


def test_a_provider_that_is_wrong_itself_is_an_error(bundle: Bundle, times: list[float]) -> None:
    with pytest.raises(BackendError, match=r"text_encoder is wrong on backend cuda in its fused form.*5\.0e-01"):
        check(bundle, "text_encoder", backend=CpuBackend(wrong="fused"))
    assert refusals(bundle) == []


def test_the_cuda_backend_opens_the_form_that_was_checked(
    bundle: Bundle, times: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the CPU, not where another form was asked for, and only where a check speaks for it."""
    check(bundle, "step", device="")
    models: list[bytes | None] = []
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: PROVIDERS)
    monkeypatch.setattr(onnxruntime_backend, "open_session", lambda *args: models.append(args[-1]))
    monkeypatch.setattr(OnnxRuntimeSession, "__init__", lambda self, *args: None)
    monkeypatch.setattr(OnnxRuntimeSession, "placement", None, raising=False)
    monkeypatch.setattr(onnxruntime_backend, "verify_session", lambda *args: None)
    OnnxRuntimeBackend("cuda").open(bundle, "step")
    OnnxRuntimeBackend("cuda", cuda_form=False).open(bundle, "step")
    OnnxRuntimeBackend("cuda", fused=False).open(bundle, "step")
    OnnxRuntimeBackend("cuda").open(bundle, "record")
    OnnxRuntimeBackend("cpu").open(bundle, "step")
    assert models == [(bundle.path / "step.cuda.onnx").read_bytes(), None, None, None, None]


def test_an_edit_by_forms_for_cuda(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, times: list[float]) -> None:
    """The whole way: check, then edit with the forms that may be used; the edit with the fused forms is the oracle."""
    times.clear()
    check(bundle, device="")
    backend = CpuBackend()
    monkeypatch.setattr(
        backend, "open", lambda bundle, graph: backend.open_model(bundle, graph, library.cuda_model(bundle, graph))
    )
    start = np.random.default_rng(3).standard_normal((1, 4, 16, 16)).astype(np.float32)
    results = []
    for each in (backend, OnnxRuntimeBackend("cpu", 1)):
        editor = Editor(bundle, each)
        inversion = editor.pipeline.invert(each.upload(start), 6)
        results.append(editor.edit_latents(inversion, "a red cat", record="exact"))
    assert {(graph, "cuda") for graph in ("step", "record", "step_recorded")} <= set(backend.opened)
    got, want = results
    # Six steps with guidance of sums in another order; one wrong map gives 1e-2 and more.
    assert 0 < np.linalg.norm(got - want) / np.linalg.norm(want) < 2e-5


def test_the_command_tells_what_became_of_each_graph(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], times: list[float]
) -> None:
    times[:] = [8.0, 4.0]
    with pytest.raises(BackendError, match="backend 'cuda' is not there"):
        cuda_build.check_forms(bundle, usual(bundle), (), Stages(quiet=True), quiet=False)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: PROVIDERS)
    monkeypatch.setattr(library, "cuda_problem", lambda: "no driver")
    with pytest.raises(BackendError, match="no driver"):
        cuda_build.check_forms(bundle, usual(bundle), (), Stages(quiet=True), quiet=False)
    assert not bundle.engines.exists(), "before any work"
    monkeypatch.setattr(library, "cuda_problem", lambda: None)
    cpu, backend = OnnxRuntimeBackend("cpu", 1), CpuBackend()
    monkeypatch.setattr(onnxruntime_backend, "OnnxRuntimeBackend", lambda name, threads=1: backend)
    monkeypatch.setattr(backend, "open", cpu.open)  # the reference of the parity
    monkeypatch.setattr(backend, "open_model", lambda bundle, graph, model: cpu.open(bundle, graph))
    cuda_build.check_forms(bundle, usual(bundle), ("text_encoder",), Stages(quiet=True), quiet=False)
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("checked text_encoder: ") and "MultiHeadAttention" in line
    assert "differs from ONNX Runtime on the CPU by" in line and "4 ms where its fused form takes 8" in line


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
    device = Device([90.0] * 3 + [10.0] * 23)
    monkeypatch.setattr(time, "perf_counter", device.clock)
    assert cuda_check._milliseconds(device, {}) == pytest.approx(2.0)
