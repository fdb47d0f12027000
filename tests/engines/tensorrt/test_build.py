"""Building engines: what is built, what is kept, what is refused and why, on fakes."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, UsageError
from freeprompt.engines.artifacts.signature import Signature
from freeprompt.engines.shapes import Profile, Shapes, choose_profile
from freeprompt.engines.tensorrt.building.bundle_build import BundleBuild
from freeprompt.engines.tensorrt.building.progress import BuildProgress
from freeprompt.engines.tensorrt.building.request import BuilderSettings
from freeprompt.engines.tensorrt.engine import text_to_inspection
from freeprompt.engines.tensorrt.library import FLAVOURS, at_least, explain
from freeprompt.engines.tensorrt.metadata import metadata_from_json
from freeprompt.engines.tensorrt.store import EngineStore
from freeprompt.engines.tensorrt.store import Machine as Target
from freeprompt.runtime.plan.shapes import Batch
from tests.engines.conftest import SIZE, Machine
from tests.shapes import shapes_of

GRAPH = "text_encoder"  # the quickest


def refusals(machine: Machine, bundle: Bundle, trust: bool = False) -> list[str]:
    return [str(f.refused) for f in machine.store(bundle, trust).scan()]


def test_settings_reach_the_builder(bundle: Bundle) -> None:
    shapes = shapes_of(bundle.manifest, SIZE, rows="1")
    build = BundleBuild(shapes, graphs=(GRAPH,), workspace_bytes=1 << 22, optimization_level=5)
    machine = Machine.create()
    (outcome,) = machine.run(bundle, build)
    (request,) = machine.trt.requests
    assert request.settings == BuilderSettings(1 << 22, 5)
    assert request.backend == "tensorrt" and request.inputs == bundle.manifest.graph(GRAPH).inputs
    assert (outcome.metadata.workspace_bytes, outcome.metadata.optimization_level) == (1 << 22, 5)


def test_profiles_are_exact_by_default_and_a_range_on_request(bundle: Bundle) -> None:
    exact = shapes_of(bundle.manifest, (64, 64), (96, 64), rows="1,3").profiles("step")
    assert len(exact) == 4 and all(profile.is_static for profile in exact)
    assert exact[0].dims["rows"] == (1, 1, 1) and exact[2].dims["width"] == (24, 24, 24)
    (ranged,) = shapes_of(bundle.manifest, (64, 64), (96, 64), rows="1,3", ranged=True).profiles("step")
    assert ranged.dims["rows"] == (1, 1, 3) and ranged.dims["width"] == (16, 16, 24)
    assert ranged.bind({**{n: b for n, (_, b, _) in ranged.dims.items()}, "rows": 2}) is not None


def test_the_profile_with_the_least_waste_is_chosen() -> None:
    profiles = tuple(Profile({"rows": (2, 2, 2), "texts": (t, t, t)}) for t in (8, 4, 6))
    assert choose_profile(profiles, {"rows": 2, "texts": 3}) == (1, {"rows": 2, "texts": 4})
    assert choose_profile(profiles, {"rows": 2, "texts": 5}) == (2, {"rows": 2, "texts": 6})
    assert choose_profile(profiles, {"rows": 1, "texts": 3}) is None
    assert choose_profile(profiles, {"rows": 2, "texts": 9}) is None


@pytest.mark.parametrize("text", ["", "0", "3:4", "a", "1:0", "-1", "9999"])
def test_rows_that_cannot_be_used(text: str) -> None:
    with pytest.raises(UsageError):
        Batch.parse(text)


def test_rows_have_the_latents_of_an_edit() -> None:
    assert [Batch.parse(t).latents for t in ("1", "2", "3", "4", "5", "8", "4:4")] == [1, 1, 1, 2, 2, 4, 4]


def test_a_size_that_the_model_cannot_take(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="multiples of 8 pixels"):
        shapes_of(bundle.manifest, (60, 64), rows="1")


def test_what_was_built_is_kept_and_its_metadata_tells_all(bundle: Bundle) -> None:
    machine = Machine.create()
    machine.trt.layers = [{"Name": "_gemm_mha_v2_myl0_3"}, {"Name": "conv", "TacticName": "sm90_xmma"}]
    (first,) = machine.build(bundle, "step", rows="2")
    (second,) = machine.build(bundle, "step", rows="2")
    assert (first.how, second.how, machine.trt.builds) == ("built", "kept", 1)
    metadata = metadata_from_json(first.path.with_suffix(".json").read_bytes())
    assert metadata.tensorrt == "10.16.1.11" and metadata.capabilities == ("9.0",) and metadata.device == "Fake GPU"
    assert metadata.backend == "tensorrt" and metadata.peak_memory_bytes == 1 << 20
    assert metadata.fused_attention == 1 and metadata.layers == 2 and metadata.attention_layers == 8
    assert metadata.device_memory_bytes == 4096
    assert metadata.engine_bytes == first.path.stat().st_size
    assert len(metadata.parity) == 1 and metadata.parity[0].relative_l2 < 1e-5
    assert metadata.passed and Signature().holds(metadata)
    assert (bundle.engines / "tensorrt" / "timing-10.16.1.11-9.0.cache").read_bytes() == b"timings"


def test_an_engine_that_was_damaged_is_built_again(bundle: Bundle) -> None:
    machine = Machine.create()
    (first,) = machine.build(bundle, GRAPH)
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    (second,) = machine.build(bundle, GRAPH)
    assert second.how == "built" and first.path.read_bytes() == whole
    first.path.write_bytes(whole[:-1])
    (third,) = machine.build(bundle, GRAPH)
    assert third.how == "built" and first.path.read_bytes() == whole


def test_an_engine_that_is_wrong_is_not_kept(bundle: Bundle) -> None:
    machine = Machine.create()
    machine.trt.distort = lambda values: values * 1.01
    with pytest.raises(BackendError, match=r"is wrong: it differs from ONNX Runtime by 1\.0e-02.*1e-03 is allowed"):
        machine.build(bundle, GRAPH)
    machine.trt.distort = lambda values: values * np.float32(np.nan)
    with pytest.raises(BackendError, match="not finite"):
        machine.build(bundle, GRAPH)
    assert not list((bundle.engines / "tensorrt").glob("*.engine"))


def test_no_reason_is_a_reason() -> None:
    assert explain([]) == "it gave no reason"


def test_without_a_gpu_there_is_nothing_to_build_on(bundle: Bundle) -> None:
    machine = Machine.create()
    build = BundleBuild(shapes_of(bundle.manifest, SIZE, rows="1"), graphs=(GRAPH,))
    with pytest.raises(UsageError, match=r"TensorRT 10\.16\.1\.11 builds on the GPU that runs the engines"):
        machine.run(bundle, build, gpu=False)


def test_engines_of_another_machine_are_refused(bundle: Bundle) -> None:
    machine = Machine.create()
    machine.build(bundle, GRAPH)

    def reason(target: Target | None) -> str:
        (found,) = EngineStore(bundle, machine.backend.library.flavour, target).scan()
        return str(found.refused)

    assert reason(machine.backend.machine) == "None"
    assert reason(Target("10.3.0", "9.0")) == "built with TensorRT 10.16.1.11, this is 10.3.0"
    assert reason(Target("10.16.1.11", "8.7")) == "built for compute capability 9.0, this GPU has 8.7"
    assert reason(None) == "TensorRT or the GPU cannot be used here"


def test_engines_that_were_changed_are_refused(bundle: Bundle) -> None:
    machine = Machine.create()
    (outcome,) = machine.build(bundle, GRAPH)
    metadata, engine = outcome.path.with_suffix(".json"), outcome.path.read_bytes()
    text = metadata.read_text()
    outcome.path.write_bytes(engine[:-1] + b" ")
    with pytest.raises(BackendError, match="damaged or was replaced"):
        machine.backend.open(bundle, GRAPH)
    outcome.path.write_bytes(engine + b" ")
    assert "its metadata says" in refusals(machine, bundle)[0]
    outcome.path.write_bytes(engine)
    worse = json.loads(text)
    worse["parity"][0]["relative_l2"] = 0.5
    metadata.write_text(json.dumps(worse))
    assert "failed parity" in refusals(machine, bundle)[0]
    metadata.write_text(text.replace("Fake GPU", "Other GPU"))
    assert "not built by this user" in refusals(machine, bundle)[0]
    metadata.write_text("{")
    assert "cannot be read" in refusals(machine, bundle)[0]
    metadata.unlink()
    assert "no metadata" in refusals(machine, bundle)[0]
    with pytest.raises(
        BackendError, match=r"no TensorRT engine of graph text_encoder can be used here.*freeprompt build"
    ):
        machine.backend.open(bundle, GRAPH)


def test_an_engine_is_read_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was hashed is what is loaded, not what lies there a moment later."""
    machine = Machine.create()
    (outcome,) = machine.build(bundle, GRAPH)
    store = machine.store(bundle)
    (found,) = store.usable(GRAPH)
    engine, opened = outcome.path.read_bytes(), os.open
    other = tmp_path / "other"
    other.write_bytes(engine[::-1])

    def open_and_replace(path: Any, *args: Any, **settings: Any) -> int:
        descriptor = opened(path, *args, **settings)
        if path == outcome.path and other.exists():
            other.replace(outcome.path)
        return descriptor

    monkeypatch.setattr(os, "open", open_and_replace)
    assert store.read(found) == engine
    with pytest.raises(BackendError, match="damaged or was replaced"):
        store.read(found)


def test_an_engine_that_is_no_plain_file(bundle: Bundle) -> None:
    machine = Machine.create()
    (outcome,) = machine.build(bundle, GRAPH)
    store = machine.store(bundle)
    (found,) = store.usable(GRAPH)
    outcome.path.unlink()
    outcome.path.mkdir()
    with pytest.raises(BackendError, match="cannot be read"):
        store.read(found)


def test_an_engine_is_built_from_the_graph_that_was_checked(bundle: Bundle) -> None:
    """The library reads by path: a copy of what the bundle held when it was opened."""
    machine, opened = Machine.create(), Bundle.open(bundle.path)
    for name in ("text_encoder.onnx", "text_encoder.fused.onnx", "text_encoder.weights"):
        (bundle.path / name).write_bytes(b"something else")
    (outcome,) = machine.build(opened, GRAPH)
    assert outcome.metadata.passed


def test_a_changed_graph_makes_its_engines_stale(bundle: Bundle, tmp_path: Path) -> None:
    machine = Machine.create()
    machine.build(bundle, GRAPH)
    before = bundle.graph_sha256(GRAPH)
    weights = next(f for f in bundle.manifest.files if f.path == "text_encoder.weights")
    files = tuple(replace(f, sha256="0" * 64) if f is weights else f for f in bundle.manifest.files)
    changed = replace(bundle, manifest=replace(bundle.manifest, files=files))
    assert changed.graph_sha256(GRAPH) != before, "weights in a file of their own count"
    assert changed.graph_sha256("step") == bundle.graph_sha256("step")
    assert "another version of the graph" in refusals(machine, changed)[0]


def test_engines_from_elsewhere_are_loaded_only_when_adopted(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine.create()
    machine.build(bundle, GRAPH)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another user"))
    assert "not built by this user" in refusals(machine, bundle)[0]
    with pytest.raises(BackendError, match="--trust"):
        machine.backend.open(bundle, GRAPH)
    assert refusals(machine, bundle, trust=True) == ["None"]
    build = BundleBuild(shapes_of(bundle.manifest, SIZE, rows="1,2,3"), graphs=(GRAPH,), trust=True)
    how = [outcome.how for outcome in machine.run(bundle, build)]
    assert how == ["adopted", "kept"]
    assert refusals(machine, bundle) == ["None"]
    machine.backend.open(bundle, GRAPH)


def test_a_second_build_waits_for_the_first(bundle: Bundle) -> None:
    store = EngineStore(bundle, FLAVOURS["tensorrt"], None)
    order: list[str] = []

    def second() -> None:
        with EngineStore(bundle, FLAVOURS["tensorrt"], None).lock("x", waiting=order.append):
            order.append("second")

    with store.lock("x"):
        thread = threading.Thread(target=second)
        thread.start()
        with pytest.raises(BackendError, match="another process"), store.lock("x", timeout=0.3):
            pass
        time.sleep(0.1)
        order.append("first")
    thread.join(timeout=30)
    assert order == ["another process is building x; waiting for it", "first", "second"]


@pytest.mark.parametrize(
    ("layers", "count", "fused"),
    [
        ([], 0, 0),
        (["_gemm_mha_v2_myl0_1", "conv"], 2, 1),
        ([{"Name": "x", "TacticName": "fmha_v2_flash_attention_fp16_64_40"}, {"Name": "y"}], 2, 1),
        ([{"Name": "{ForeignNode[a...b]}", "LayerType": "Myelin"}], 1, None),
        ([{"Name": "softmax"}, {"Name": "matmul"}], 2, 0),
    ],
)
def test_counting_fused_attention(layers: list[Any], count: int, fused: int | None) -> None:
    found = text_to_inspection(json.dumps({"Layers": layers}))
    assert (found.layers, found.fused_attention) == (count, fused)


def test_an_inspector_that_says_nothing_is_an_error() -> None:
    with pytest.raises(BackendError, match="inspector"):
        text_to_inspection("")


def test_lost_fusion_is_told(bundle: Bundle) -> None:
    machine = Machine.create()
    lines: list[str] = []
    machine.trt.layers = [{"Name": "softmax"}]
    build = BundleBuild(shapes_of(bundle.manifest, SIZE, rows="1"), graphs=("step",))
    machine.run(bundle, build, lines.append)
    assert "step: only 0 fused attention kernels for 8 attention layers; expect it to be slow" in lines


def test_progress_estimates_what_is_left() -> None:
    lines: list[str] = []
    clock = iter([0.0, 1.0, 10.0, 20.0])
    progress = BuildProgress("building step", lines.append, lambda: next(clock))
    progress.begin("all", None, 4)
    progress.begin("tactics", "all", 2)
    progress.step("tactics", 0)  # at 1 s: too soon for a line
    progress.step("tactics", 1)
    progress.end("tactics")
    progress.step("all", 1)
    assert lines == [
        "building step: 25 % after 10 s, about 30 s left",
        "building step: 50 % after 20 s, about 20 s left",
    ]


def test_versions_are_compared_as_numbers() -> None:
    class Library:
        __version__ = "10.16.1.11"

    assert at_least(Library, "10.3") and at_least(Library, "9.8") and not at_least(Library, "11.0")


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UsageError):
        BuilderSettings(workspace_bytes=5)
    with pytest.raises(UsageError):
        BuilderSettings(optimization_level=6)
    with pytest.raises(UsageError):
        BundleBuild(Shapes({}), engines="speed")
