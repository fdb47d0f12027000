"""Engines of TensorRT-RTX where they are loaded, on fakes: what is refused, checked at first, and kept for later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, OutputError, UsageError
from freeprompt.engines.comparison import seeded_inputs
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
from freeprompt.engines.tensorrt.building.bundle_build import BundleBuild, Outcome
from freeprompt.engines.tensorrt.library import FLAVOURS
from freeprompt.engines.tensorrt.rtx import text_to_capabilities
from freeprompt.engines.tensorrt.runtime_cache import RuntimeCache
from tests.engines.conftest import SIZE, Machine
from tests.shapes import shapes_of

GRAPH = "text_encoder"
VERSION = "1.7.1.116"


@pytest.fixture(autouse=True)
def own_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEPROMPT_CACHE", str(tmp_path / "notes"))


def gpu(version: str = VERSION, capability: tuple[int, int] = (8, 6)) -> Machine:
    return Machine.create(version, "tensorrt-rtx", capability=capability)


def build(bundle: Bundle, machine: Machine | None = None, **settings: Any) -> Outcome:
    """One engine, as on a machine without a GPU unless one is given."""
    build = BundleBuild(shapes_of(bundle.manifest, SIZE, rows="1"), graphs=(GRAPH,), **settings)
    (outcome,) = (machine or gpu()).run(bundle, build, gpu=machine is not None)
    return outcome


def encode(machine: Machine, bundle: Bundle) -> Any:
    inputs = dict(seeded_inputs(bundle.manifest, GRAPH, {"texts": 1}))
    session = machine.backend.open(bundle, GRAPH)
    return session.run(inputs)["encoder_hidden_states"].numpy()


def notes(tmp_path: Path) -> list[Path]:
    """Those of engines; ONNX Runtime, with which they are compared, has shown its known answer too."""
    return [path for path in (tmp_path / "notes").rglob("*.json") if "TensorRT" in path.read_text()]


def test_an_engine_is_checked_where_it_is_first_loaded(bundle: Bundle, tmp_path: Path) -> None:
    outcome = build(bundle)
    assert outcome.metadata.parity == () and not outcome.metadata.device
    assert notes(tmp_path) == []
    machine = gpu()
    inputs = dict(seeded_inputs(bundle.manifest, GRAPH, {"texts": 1}))
    cpu = OnnxRuntimeBackend("cpu", 1, fused=False).open(bundle, GRAPH).run(inputs)["encoder_hidden_states"].numpy()
    np.testing.assert_allclose(encode(machine, bundle), cpu, rtol=1e-4, atol=1e-5)
    (note,) = notes(tmp_path)
    known = json.loads(note.read_text())
    assert known["runner"] == f"TensorRT-RTX {VERSION} on Fake GPU (8.6)"
    assert outcome.metadata.engine_sha256 in known["build"] and known["relative_l2"] < 1e-5
    # Once on each machine: what would be wrong now is not looked at again.
    machine.trt.distort = lambda values: values * 1.01
    encode(machine, bundle)


def test_an_engine_that_is_wrong_here_is_not_used(bundle: Bundle, tmp_path: Path) -> None:
    """It may be right on another GPU, for which other kernels are compiled: it stays, and is asked again."""
    outcome = build(bundle)
    machine = gpu()
    machine.trt.distort = lambda values: values * 1.01
    for _ in range(2):
        with pytest.raises(BackendError, match=r"graph text_encoder is wrong: it differs.*1\.0e-02.*It is not used"):
            machine.backend.open(bundle, GRAPH)
    assert notes(tmp_path) == [] and outcome.path.exists()
    encode(gpu(capability=(12, 0)), bundle)


def test_what_is_built_on_a_gpu_is_checked_at_once(bundle: Bundle, tmp_path: Path) -> None:
    machine = gpu()
    outcome = build(bundle, machine)
    assert outcome.metadata.passed and outcome.metadata.device == "Fake GPU" and outcome.metadata.capabilities == ()
    assert len(notes(tmp_path)) == 1
    machine.trt.distort = lambda values: values * 1.01
    machine.backend.open(bundle, GRAPH)
    assert build(bundle, machine).how == "kept"


def test_a_build_on_the_gpu_checks_what_was_built_without(bundle: Bundle, tmp_path: Path) -> None:
    build(bundle)
    machine = gpu()
    assert build(bundle, machine).how == "kept"
    assert len(notes(tmp_path)) == 1
    later = gpu()
    encode(later, bundle)
    assert (machine.trt.compiled, later.trt.compiled) == (1, 0), "and its kernels are kept"
    wrong = gpu(capability=(8, 9))
    wrong.trt.distort = lambda values: values * 1.01
    with pytest.raises(BackendError, match="is wrong"):
        build(bundle, wrong)


@pytest.mark.parametrize(
    ("capability", "targets", "runs"),
    [
        ((8, 0), (), True),
        ((8, 6), (), True),
        ((8, 9), (), True),
        ((12, 0), (), True),
        ((12, 1), (), True),
        ((7, 5), (), False),
        ((8, 7), (), False),
        ((9, 0), (), False),
        ((8, 6), ("8.6", "12.0"), True),
        ((12, 0), ("8.6", "12.0"), True),
        ((8, 9), ("8.6", "12.0"), False),
        ((12, 1), ("8.6", "12.0"), False),
    ],
)
def test_the_gpus_that_an_engine_is_for(
    bundle: Bundle, capability: tuple[int, int], targets: tuple[str, ...], runs: bool
) -> None:
    build(bundle, compute_capabilities=targets)
    (found,) = gpu(capability=capability).store(bundle).scan()
    if runs:
        assert found.refused is None
    else:
        listed = ", ".join(targets) or "8.0, 8.6, 8.9, 12.0+"
        here = f"{capability[0]}.{capability[1]}"
        assert found.refused == f"built for compute capability {listed}, this GPU has {here}"


def test_engines_of_other_versions_and_libraries(bundle: Bundle, tmp_path: Path) -> None:
    outcome = build(bundle)
    (found,) = gpu("1.6.1.120").store(bundle).scan()
    assert found.refused == f"built with TensorRT-RTX {VERSION}, this is 1.6.1.120"
    with pytest.raises(BackendError, match=r"no TensorRT-RTX engine of graph text_encoder.*--backend tensorrt-rtx'"):
        gpu("1.6.1.120").backend.open(bundle, GRAPH)
    other = bundle.engines / "tensorrt"
    other.mkdir()
    for path in (outcome.path, outcome.path.with_suffix(".json")):
        (other / path.name).write_bytes(path.read_bytes())
    (found,) = Machine.create().store(bundle).scan()
    assert found.refused == "it was built by tensorrt-rtx, not by tensorrt"


@pytest.mark.parametrize(
    ("diagnostics", "said"),
    [
        (1, "built by another version"),
        (2, "not built for this GPU"),
        (4, "driver is too old"),
        (16, "too little memory"),
        (32, "damaged"),
        (1 | 2, "another version.*not built for this GPU"),
        (64, "could not load the engine"),
    ],
)
def test_what_the_library_says_before_it_loads(bundle: Bundle, diagnostics: int, said: str) -> None:
    build(bundle)
    machine = gpu()
    machine.trt.diagnostics = diagnostics
    with pytest.raises(BackendError, match=said):
        machine.backend.open(bundle, GRAPH)


def test_kernels_are_compiled_once_and_kept_beside_the_engine(bundle: Bundle) -> None:
    outcome = build(bundle)
    first, second, other = gpu(), gpu(), gpu("1.7.1.117")
    encode(first, bundle)
    cache = outcome.path.with_name(f"{outcome.path.stem}.fake-gpu-1-7-1-116.runtime_cache")
    assert first.trt.compiled == 1
    assert cache.read_bytes() == b"kernels"
    encode(second, bundle)
    assert second.trt.compiled == 0
    assert other.trt.compiled == 0 and [f.path for f in first.store(bundle).scan()] == [outcome.path]


@pytest.mark.parametrize("harm", ["bytes", "signature", "engine", "metadata", "link", "gone"])
def test_kernels_that_were_changed_are_not_loaded(
    bundle: Bundle, harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are code as engines are."""
    outcome = build(bundle)
    encode(gpu(), bundle)
    (cache,) = outcome.path.parent.glob("*.runtime_cache")
    metadata = cache.with_suffix(".json")
    if harm == "bytes":
        cache.write_bytes(b"kernelz")
    elif harm == "signature":
        metadata.write_text(metadata.read_text().replace("Fake GPU", "Other GPU"))
    elif harm == "engine":
        pass
    elif harm == "metadata":
        metadata.write_text("{")
    elif harm == "link":
        cache.rename(tmp_path / "kernels")
        cache.symlink_to(tmp_path / "kernels")
    else:
        cache.unlink()
    sha256 = "0" * 64 if harm == "engine" else outcome.metadata.engine_sha256
    found = RuntimeCache(outcome.path, sha256, VERSION, "Fake GPU")
    assert found.path == cache and found.read() == b""
    if harm in ("bytes", "metadata", "gone"):
        machine = gpu()
        encode(machine, bundle)
        assert machine.trt.compiled == 1 and found.read() == b"kernels", "compiled anew, and kept"


def test_kernels_that_cannot_be_kept_cost_time_only(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    build(bundle)

    def full(*arguments: Any) -> None:
        raise OutputError("no space left")

    monkeypatch.setattr("freeprompt.engines.tensorrt.runtime_cache.save_with_metadata", full)
    encode(gpu(), bundle)
    assert not list((bundle.engines / "tensorrt-rtx").glob("*.runtime_cache"))


def test_engines_from_elsewhere_are_adopted_with_or_without_a_gpu(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(bundle)
    for user, with_gpu in (("second", False), ("third", True)):
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / user))
        machine = gpu()
        with pytest.raises(BackendError, match=r"not built by this user.*--backend tensorrt-rtx --trust"):
            machine.backend.open(bundle, GRAPH)
        shapes = shapes_of(bundle.manifest, SIZE, rows="1")
        trusting = BundleBuild(shapes, graphs=(GRAPH,), trust=True)
        assert [o.how for o in machine.run(bundle, trusting, gpu=with_gpu)] == ["adopted", "kept"]
        encode(machine, bundle)


def test_targets_by_name() -> None:
    library = gpu().backend.library
    assert text_to_capabilities(library, "sm120,sm86, SM_86,8.6") == ("8.6", "12.0")
    for text in ("sm99x", "", "sm90", "86,", "sm8", "portable"):
        with pytest.raises(UsageError, match=r"TensorRT-RTX 1\.7\.1\.116 cannot build for .*sm75, sm86, sm120"):
            text_to_capabilities(library, text)
    with pytest.raises(UsageError, match="it builds for the GPU of this machine only"):
        text_to_capabilities(Machine.create().backend.library, "sm86")


def test_targets_are_part_of_what_an_engine_is(bundle: Bundle) -> None:
    names = {build(bundle, compute_capabilities=t).path.name for t in ((), ("8.6",), ("8.6", "12.0"))}
    assert len(names) == 3
    assert FLAVOURS["tensorrt-rtx"].portable[-1] == "12.0+"
