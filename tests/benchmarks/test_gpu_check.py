"""The measurement for a GPU, as far as a CPU can show it: parts that run, go on, and say what they found."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_check
from benchmarks.gpu import engines, report
from benchmarks.gpu.kinds import NAMES, Timed, kind_of, summarise
from benchmarks.gpu.measure import step_feeds
from benchmarks.gpu.profile_ort import WARM, events_to_nodes
from benchmarks.gpu.profile_torch import events_to_kernels
from benchmarks.gpu.profiles import tensorrt_profile
from freeprompt.contract.bundle import Bundle
from freeprompt.engines.tensorrt.building.bundle_build import build_bundle
from tests.engines.conftest import Machine


@pytest.fixture(scope="module")
def folders(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A work folder with checkpoint and bundle, as after the export, and one for results."""
    work = tmp_path_factory.mktemp("work")
    shutil.copytree(tiny_bundle, work / "bundle")
    shutil.copytree(tiny_checkpoint, work / "checkpoint")
    return work, work / "out"


def run(folders: tuple[Path, Path], *parts: str) -> dict[str, Any]:
    work, out = folders
    assert gpu_check.main([*parts, "--dry-run", "--work", str(work), "--out", str(out)]) == 0
    return report.merge(out)


def test_the_dry_run(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    parts = run(folders, "references", "machine", "ort-cpu", "profile", "report")
    for part in ("ort-cpu", "references", "profile"):
        assert not [item for item, value in parts[part].items() if "error" in value]
    assert parts["ort-cpu"]["parity of an edit, record exact"]["passed"]
    assert set(parts["profile"]) == {"torch-eager", "ort-cpu"}
    for found in parts["profile"].values():
        assert found["kinds"].keys() == set(NAMES)
        assert found["total_ms"] == pytest.approx(sum(found["kinds"].values()))
        assert len(found["layers"]) == 25 < found["of"]
        # The tiny model has convolutions, products, norms and attention, and little that has no name.
        assert min(found["kinds"][k] for k in ("attention", "convolution", "normalisation", "matrix product")) > 0
    printed = capsys.readouterr().out
    assert "where a step of 2 rows spends its time" in printed
    before = (folders[1] / "part-profile.json").read_bytes()
    run(folders, "profile")
    assert (folders[1] / "part-profile.json").read_bytes() == before, "measured once"


def test_a_part_that_was_cut_off_goes_on(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run(folders, "references")
    path = folders[1] / "part-profile.json"
    path.unlink(missing_ok=True)

    def fails(*args: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr("benchmarks.gpu.profiles._onnxruntime", fails)
    found = run(folders, "profile")["profile"]
    assert found["ort-cpu"] == {"error": "RuntimeError: no memory"}
    kept = found["torch-eager"]
    monkeypatch.undo()
    found = run(folders, "profile")["profile"]
    assert found["torch-eager"] == kept and "kinds" in found["ort-cpu"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("_gemm_mha_v2_0x9d5b_myl0_12", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<40, 64>>", "attention"),
        ("fmha_cutlassF_f16_aligned_64x64_rf_sm80", "attention"),
        ("MultiHeadAttention", "attention"),
        ("softmax_warp_forward", "attention"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_nhwc", "convolution"),
        ("/down_blocks.0/attentions.0/proj_in/Conv CaskConvolution", "convolution"),
        ("conv2d_22_nchwc", "convolution"),
        ("sm90_xmma_gemm_f16f16_f16f32_tn_n_tilesize128x128", "matrix product"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT", "matrix product"),
        ("ampere_fp16_s16816gemm_fp16_128x128", "matrix product"),
        ("aten::addmm", "matrix product"),
        ("MatMul", "matrix product"),
        ("LayerNormalization", "normalisation"),
        ("RowwiseMomentsCUDAKernel", "normalisation"),
        ("triton_red_fused_native_group_norm_7", "normalisation"),
        ("Reformatting CopyNode for Input Tensor 0", "copy"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        ("aten::convert_element", "copy"),
        ("Transpose", "copy"),
        ("Gather", "copy"),
        ("PWN(/mid/Sigmoid, /mid/Mul)", "pointwise"),
        ("vectorized_elementwise_kernel<4, silu>", "pointwise"),
        ("triton_poi_fused_add_mul_3", "pointwise"),
        ("Add", "pointwise"),
        ("BiasAdd", "pointwise"),
        ("void biasSplitGeluKernel<__half, 1280, 256>", "pointwise"),
        ("BiasSplitGelu", "pointwise"),
        ("Split", "copy"),
        ("NhwcConv", "convolution"),
        ("SkipGroupNorm", "normalisation"),
        ("groupNormNHWCSumKernel<__half2>", "normalisation"),
        ("Squeeze_token_14", "other"),
    ],
)
def test_kinds_of_names_that_were_seen(text: str, kind: str) -> None:
    assert kind_of(text) == kind


def test_sums_by_kind() -> None:
    found = summarise(
        [Timed("a", 1.0, about="Softmax"), Timed("conv", 2.0), Timed("linear_3", 0.5, about="Add"), Timed("x", 4.0)], 2
    )
    assert found["total_ms"] == 7.5 and found["of"] == 4
    assert {k: v for k, v in found["kinds"].items() if v} == {
        "attention": 1.0,
        "convolution": 2.0,
        "pointwise": 0.5,
        "other": 4.0,
    }
    assert [layer["name"] for layer in found["layers"]] == ["x", "conv"]


def test_nodes_of_the_runs_after_the_warm_up() -> None:
    def node(name: str, dur: int) -> dict[str, Any]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur, "args": {"op_name": "Conv"}}

    events = [node("a", 9000)] * WARM + [node("a", 1000), node("a", 3000)] + [{"cat": "Session", "name": "run"}]
    events += [node("b", 5000)] * 2 * WARM + [node("b", 250)] * 4
    found = {one.name: one for one in events_to_nodes(events, 2)}
    assert (found["a"].ms, found["a"].calls, found["a"].about) == (2.0, 1.0, "Conv")
    assert (found["b"].ms, found["b"].calls) == (0.5, 2.0)


def test_kernels_of_a_trace() -> None:
    events = [
        {"cat": "kernel", "name": "k", "dur": 1500},
        {"cat": "kernel", "name": "k", "dur": 500},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD", "dur": 100},
        {"cat": "cpu_op", "name": "aten::mm", "dur": 9999},
    ]
    assert {(t.name, t.ms, t.calls) for t in events_to_kernels(events, 2)} == {
        ("k", 1.0, 1.0),
        ("Memcpy HtoD", 0.05, 0.5),
    }


def test_layers_by_tensorrts_profiler(bundle: Bundle) -> None:
    machine = Machine.create()
    machine.trt.layers = [{"Name": "node_17", "LayerType": "kgen", "TacticName": "_gemm_mha_v2"}]
    machine.trt.times = [("node_17", 2.0), ("Reformatting CopyNode", 0.5)]
    machine.build(bundle, "step", rows="2")
    session = machine.backend.open(bundle, "step")
    found = tensorrt_profile(session, step_feeds(bundle, machine.backend, 2), runs=4)
    assert {k: v for k, v in found["kinds"].items() if v} == {"attention": 2.0, "copy": 0.5}


def test_engines_of_an_edit_come_first(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """And together with the others there is one for every graph of an edit, built and compared."""
    rows = (1, 2, 3, 4)
    results: dict[str, Any] = {}

    def once(label: str, run: Any) -> Any:
        results[label] = run()
        return results[label]

    machine = Machine.create()
    monkeypatch.setattr(engines, "TensorRTBackend", lambda library: machine.backend)
    monkeypatch.setattr(engines, "load_library", lambda name: machine.backend.library)
    monkeypatch.setattr(engines, "build_bundle", partial(build_bundle, compile_engine=machine.trt.compile))
    for more in (False, True):
        engines.build_engines(bundle, rows, once, more)
    built = [engine for item in results.values() for engine in item["engines"]]
    assert {engine["graph"] for engine in built} == set(bundle.manifest.graphs) - {"step_recording"}
    assert all(engine["how"] == "built" and engine["parity"] for engine in built)
    first = {(w.graph, w.rows) for w in engines.wanted_engines(bundle, rows, more=False)}
    assert {("step", (1,)), ("step", (2,)), ("step", (3,)), ("record", (2,)), ("step_recorded", (2,))} <= first


def test_engines_of_tensorrt_rtx_are_built_anywhere(folders: tuple[Path, Path]) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    found = run(folders, "tensorrt-rtx-build")["tensorrt-rtx-build"]
    assert set(found) == {wanted.label for wanted in engines.wanted_engines(tiny(folders), (1, 2, 3), more=False)}
    built = [engine for item in found.values() for engine in item["engines"]]
    assert all(engine["how"] == "built" and engine["warnings"] == [] and engine["parity"] == [] for engine in built)


def tiny(folders: tuple[Path, Path]) -> Bundle:
    return Bundle.open(folders[0] / "bundle", verify=False)


def test_forms_for_cuda_are_checked_an_item_each(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of an edit; what was found of each goes into the results."""
    from freeprompt.engines.onnxruntime import cuda_check
    from tests.engines.onnxruntime.cpu_backend import CpuBackend

    monkeypatch.setattr(cuda_check, "_milliseconds", lambda session, feeds: 1.0)
    results: dict[str, Any] = {}
    engines.check_forms(bundle, CpuBackend(), lambda name, run: results.setdefault(name, run()))
    assert set(results) == set(bundle.manifest.graphs) - {"step_recording"}
    step = results["step"]
    assert (step["how"], step["refused"]) == ("checked", None)
    assert step["operators"]["GroupNorm"] > 0 and len(step["parity"]) == len(step["timings"]) == 3
    lines = list(report.cuda_form_table(json.loads(json.dumps({"cuda-build": results}))))
    assert any(
        line.startswith("  step: ") and "GroupNorm" in line and "3 ms, 3 by the fused form" in line for line in lines
    )
