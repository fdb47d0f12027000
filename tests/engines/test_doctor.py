"""Choosing a backend, and saying why, on a machine without GPU or TensorRT."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from freeprompt.bench.meter import MeteredBackend, rows_by_graph
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, UsageError
from freeprompt.engines import doctor, footprint, select
from freeprompt.engines.cuda.runtime import CudaRuntime, DeviceInfo
from freeprompt.engines.fake import FakeBackend
from freeprompt.engines.warm import warm_bundle
from tests.engines.conftest import SIZE, Machine
from tests.engines.cuda.fake_cuda import FakeCuda
from tests.shapes import shapes_of

without_gpu = pytest.mark.skipif(
    select.tensorrt_problem(None) is None or select._cuda_problem() is None, reason="this machine has a GPU backend"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "freeprompt", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@without_gpu
def test_build_without_tensorrt_is_one_clear_line(tiny_bundle: Path) -> None:
    done = run("build", str(tiny_bundle))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("freeprompt: error: TensorRT is not installed; install it with 'pip install freeprompt[")


@pytest.mark.parametrize(
    "arguments", [["--rows", "0"], ["--size", "60x64"], ["--workspace", "none"], ["--backend", "cpu"]]
)
def test_build_checks_its_arguments_first(tiny_bundle: Path, arguments: list[str]) -> None:
    done = run("build", str(tiny_bundle), *arguments)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cuda-graph"], "there is no backend 'cuda-graph' any more: use cuda, or tensorrt"),
        (["ort-tensorrt"], "there is no backend 'ort-tensorrt' any more: it is called ort:tensorrt now"),
        (["ort:cpu"], "--backend cpu needs no build"),
        (["ort:openvino,threads"], "expected option=value of ort:openvino, not 'threads'"),
        (["cuda", "--workspace", "2"], "--workspace means nothing to --backend cuda"),
        (["cpu"], "--backend cpu needs no build"),
        (["auto"], "build takes tensorrt, tensorrt-rtx, cuda or ort:NAME"),
        (["gpu"], "unknown backend 'gpu'"),
        (["ort:tensorrt", "--workspace", "2"], "--workspace means nothing to --backend ort:tensorrt"),
        (["ort:tensorrt", "--optimization-level", "5"], "--optimization-level means nothing"),
    ],
)
def test_build_says_what_there_is_to_build(tiny_bundle: Path, arguments: list[str], said: str) -> None:
    done = run("build", str(tiny_bundle), "--backend", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert said in line


@without_gpu
@pytest.mark.parametrize("name", ["ort:tensorrt", "ort:none", "cuda"])
def test_build_for_a_provider_that_is_not_here(tiny_bundle: Path, name: str) -> None:
    done = run("build", str(tiny_bundle), "--backend", name)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"freeprompt: error: backend '{name}' is not there")


def test_warming_runs_and_checks_every_shape(bundle: Bundle) -> None:
    """On the CPU provider, which has nothing to build: what is run, and that a wrong result is an error."""
    shapes = shapes_of(bundle.manifest, SIZE, rows="1,2")
    backend = MeteredBackend(select.create_backend("cpu", threads=1))
    parities = list(warm_bundle(bundle, shapes, backend))
    done = backend.take()
    assert rows_by_graph(done) == {"step": 3, "step_recorded": 2, "step_recording": 1, "record": 4}
    assert {evaluation.graph for evaluation in done} == set(bundle.manifest.graphs)
    assert len(parities) == len(done)
    assert all(parity.relative_l2 < 1e-6 for parity in parities)
    with pytest.raises(BackendError, match=r"graph text_encoder is wrong on backend fake.*1e-03 is allowed"):
        list(warm_bundle(bundle, shapes, FakeBackend(), ("text_encoder",)))


@without_gpu
def test_doctor_explains(tiny_bundle: Path) -> None:
    assert run("doctor", "demo").returncode == 0
    done = run("doctor", str(tiny_bundle))
    assert done.returncode == 0, done.stderr
    assert "--backend auto takes cpu" in done.stdout
    assert "not tensorrt: TensorRT is not installed" in done.stdout
    assert "not cuda: the installed onnxruntime" in done.stdout
    assert "advice: without a usable GPU everything runs on the CPU" in done.stdout


@without_gpu
def test_doctor_as_json() -> None:
    report = json.loads(run("doctor", "--json").stdout)
    assert report["chosen"] == "cpu"
    assert {candidate["name"] for candidate in report["candidates"]} == {"tensorrt", "tensorrt-rtx", "cuda", "cpu"}
    cpu = report["providers"][0]
    assert (cpu["backend"], cpu["ep_name"], cpu["origin"]) == ("ort:cpu", "CPUExecutionProvider", "built in")
    assert (cpu["devices"], cpu["problem"]) == ([], None)


def test_unknown_and_missing_backends() -> None:
    with pytest.raises(UsageError, match="auto, cpu, cuda, tensorrt, tensorrt-rtx, and ort:NAME"):
        select.create_backend("gpu")


@without_gpu
@pytest.mark.parametrize("name", ["cuda", "ort:CUDAExecutionProvider", "ort:tensorrt", "ort:openvino_", "tensorrt"])
def test_backends_that_are_not_here(name: str) -> None:
    with pytest.raises(BackendError, match="install"):
        select.create_backend(name)


def test_auto_takes_the_best_that_has_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select.create_backend("auto").name in ("cpu", "cuda")
    monkeypatch.setattr(select, "tensorrt_problem", lambda bundle, name="tensorrt": "no engine")
    monkeypatch.setattr(select, "_cuda_problem", lambda: "no driver")
    assert [c.problem for c in select.candidates(None)] == ["no engine", "no engine", "no driver", None]
    assert select.create_backend("auto").name == "cpu"


def test_engines_are_reported_with_the_reason_of_their_refusal(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine.create()
    machine.trt.layers = [{"Name": "mha"}]
    machine.build(bundle, "step", rows="1")
    info = DeviceInfo(0, "GPU", "9.0", 1 << 30, "13.0", "12.9")
    monkeypatch.setattr(doctor, "_tensorrt", lambda name: ("10.3.0", None))
    monkeypatch.setattr(doctor, "_gpu", lambda: (info, None))
    text = "\n".join(doctor.report_to_lines(doctor.examine(bundle)))
    assert "built with TensorRT 10.16.1.11, this is 10.3.0" in text
    assert "for latents 1" in text and "rows 1" in text
    assert "fused attention 1 of 8 layers" in text
    assert f"freeprompt build {bundle.path}" in text
    monkeypatch.setattr(doctor, "_tensorrt", lambda name: ("10.16.1.11", None))
    assert ": usable" in "\n".join(doctor.report_to_lines(doctor.examine(bundle)))


def test_what_cuda_says_of_the_device() -> None:
    info = CudaRuntime(FakeCuda(limit=5 << 30).library).info()
    assert info == DeviceInfo(0, "Fake GPU", "9.0", 5 << 30, "13.0", "12.9")


def test_no_device() -> None:
    with pytest.raises(BackendError, match="CUDA could not find a GPU: CUDA_ERROR_NO_DEVICE"):
        CudaRuntime(FakeCuda(devices=0).library)
    with pytest.raises(BackendError, match="there is no GPU 3; CUDA sees 1"):
        CudaRuntime(FakeCuda().library, device=3)


def test_a_bundle_is_reported_with_its_graphs_and_its_weights(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    report = doctor.examine(bundle)
    about = report.bundle
    assert about is not None and about.problem is None
    assert (about.sha256, about.model, about.precision) == (bundle.sha256, bundle.manifest.model, "float32")
    assert about.forms == dict.fromkeys(bundle.manifest.graphs, "standard, fused, cuda")
    text = "\n".join(doctor.report_to_lines(report))
    assert f"{tiny_bundle}: whole, every file has the SHA-256" in text
    assert "64x64, float32" in text and "step_recording" in text and "(standard, fused, cuda)" in text
    assert "nothing of the bundle was built for a GPU" in text
    assert "memory        weights " in text


def test_weights_are_counted_once_on_disk_and_once_a_session_in_memory(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    sizes = {file.path: file.bytes for file in bundle.manifest.files if file.path.endswith(".weights")}
    monkeypatch.setattr(footprint, "free_bytes", lambda: 10**9)
    found = footprint.bundle_to_footprint(bundle, on_gpu=False)
    assert found.weights == found.least == sum(sizes.values())
    assert found.available == 10**9
    copies = sum(sizes.values()) + 2 * sizes["unet.weights"]  # step, record and step_recorded
    assert found.most == round(1.6 * copies)
    monkeypatch.setattr(footprint, "_device_memory", lambda: None)
    assert footprint.bundle_to_footprint(bundle, on_gpu=True).most == copies
    # On the CPU float16 is computed in float32.
    half = replace(bundle, manifest=replace(bundle.manifest, precision="float16"))
    assert footprint.bundle_to_footprint(half, on_gpu=False).least == 2 * found.least


@pytest.mark.parametrize(
    ("available", "said"),
    [
        (None, "cannot be told"),
        (99, "it does not fit"),
        (100, "may not fit by several prompts; --record none"),
        (300, "it fits"),
    ],
)
def test_whether_weights_fit(available: int | None, said: str) -> None:
    assert said in footprint.Footprint(100, 100, 300, available).verdict


def test_an_onnxruntime_that_is_refused_is_told_and_nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.20.0")
    monkeypatch.setattr(select, "tensorrt_problem", lambda bundle, name="tensorrt": "no engine")
    monkeypatch.setattr(select, "_cuda_problem", lambda: "no driver")
    report = doctor.examine()
    assert report.chosen == ""
    text = "\n".join(doctor.report_to_lines(report))
    assert "--backend auto takes nothing" in text
    assert "not cpu: onnxruntime 1.20.0 is installed" in text
    assert "(of onnxruntime " in text
    with pytest.raises(BackendError, match=r"1\.20\.0 is installed"):
        select.create_backend("auto")


@pytest.mark.parametrize(("capability", "advised"), [("8.6", True), ("12.0", True), ("9.0", False), ("7.5", False)])
def test_engines_of_tensorrt_rtx_are_advised_where_they_run(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capability: str, advised: bool
) -> None:
    info = DeviceInfo(0, "GPU", capability, 1 << 30, "13.0", "12.9")
    monkeypatch.setattr(doctor, "_tensorrt", lambda name: ("1.7.1.116", None))
    monkeypatch.setattr(doctor, "_gpu", lambda: (info, None))
    advice = "\n".join(doctor.examine(bundle).advice)
    assert (f"for --backend tensorrt-rtx: freeprompt build {bundle.path} --backend tensorrt-rtx" in advice) == advised
