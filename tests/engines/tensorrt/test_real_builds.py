"""TensorRT-RTX itself on the graphs of a bundle: every one is built, and what it refuses is said."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx
import pytest

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, OutputError
from freeprompt.engines.shapes import Profile
from freeprompt.engines.tensorrt.building.bundle_build import EACH, BundleBuild, Outcome, build_bundle
from freeprompt.engines.tensorrt.building.process import build_in_child
from freeprompt.engines.tensorrt.building.request import BuilderSettings, BuildRequest, Built
from freeprompt.engines.tensorrt.engine import Engine
from freeprompt.engines.tensorrt.library import FLAVOURS
from freeprompt.engines.tensorrt.rtx import compute_capabilities
from freeprompt.engines.tensorrt.store import EngineStore
from tests.engines.conftest import SIZE
from tests.shapes import shapes_of

GRAPH = "text_encoder"
TEXTS = Profile({"texts": (2, 2, 2)})


def build_text_encoder(bundle: Bundle, folder: Path, path: Path | None = None, **settings: Any) -> Built:
    model = path or bundle.graph_path(GRAPH)
    inputs = bundle.manifest.graph(GRAPH).inputs
    wanted = BuilderSettings(**settings)
    return build_in_child(BuildRequest("tensorrt-rtx", str(model), str(folder / "engine"), inputs, (TEXTS,), wanted))


def test_every_graph_is_built_and_nothing_is_warned_of(built: tuple[Bundle, list[Outcome]], rtx: Any) -> None:
    bundle, outcomes = built
    assert [outcome.metadata.graph for outcome in outcomes] == list(bundle.manifest.graphs)
    for outcome in outcomes:
        metadata, data = outcome.metadata, outcome.path.read_bytes()
        assert outcome.how == "built" and data.startswith(b"vtrt")
        assert metadata.engine_bytes == len(data)
        assert metadata.engine_sha256 == hashlib.sha256(data).hexdigest()
        assert (metadata.tensorrt, metadata.targets) == (rtx.version, "portable")
        assert metadata.warnings == ()
        assert metadata.build_seconds > 0 and metadata.peak_memory_bytes > 1 << 20
        assert metadata.parity == () and metadata.device == ""
    peaks = {outcome.metadata.graph: outcome.metadata.peak_memory_bytes for outcome in outcomes}
    assert peaks["text_encoder"] < peaks["step"], "of the process that built it, and not of the one that asked"
    assert {path.suffix for path in outcomes[0].path.parent.iterdir()} <= {".engine", ".json", ".lock", ""}


def test_what_was_built_is_not_built_again(built: tuple[Bundle, list[Outcome]], rtx: Any) -> None:
    bundle, outcomes = built

    def never(request: BuildRequest, progress: Any) -> Built:
        raise AssertionError(f"{request.model} is there")

    again = build_bundle(
        bundle, BundleBuild(shapes_of(bundle.manifest, SIZE, rows="2")), rtx, None, compile_engine=never
    )
    assert [(o.how, o.path) for o in again] == [("kept", o.path) for o in outcomes]


@pytest.mark.parametrize(
    ("graph", "rows", "sizes"),
    [
        ("step_recorded", "2,4", [SIZE]),
        ("vae_decoder", "1", [SIZE, (96, 96)]),
        # What the compiler cannot do, and is not asked for.
        ("step", "1", [SIZE, (96, 96)]),
    ],
)
def test_ranges_of_shapes(
    built: tuple[Bundle, list[Outcome]], rtx: Any, graph: str, rows: str, sizes: list[tuple[int, int]]
) -> None:
    bundle, _ = built
    shapes = shapes_of(bundle.manifest, *sizes, rows=rows, ranged=True)
    (outcome,) = build_bundle(bundle, BundleBuild(shapes, graphs=(graph,)), rtx, None)
    (profile,) = outcome.metadata.profiles
    assert not profile.is_static and outcome.metadata.warnings == ()


def test_shapes_that_are_fixed_and_shapes_that_share(built: tuple[Bundle, list[Outcome]], rtx: Any) -> None:
    bundle, _ = built
    shapes = shapes_of(bundle.manifest, SIZE, (96, 64), rows="1")
    (shared,) = build_bundle(bundle, BundleBuild(shapes, graphs=("vae_decoder",)), rtx, None)
    each = list(build_bundle(bundle, BundleBuild(shapes, EACH, graphs=("vae_decoder",)), rtx, None))
    assert len(shared.metadata.profiles) == 2 and not shared.metadata.baked
    assert len(each) == 2 and all(o.metadata.baked and o.metadata.warnings == () for o in each)


def test_targets_are_those_of_the_library(rtx: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    known = compute_capabilities(rtx)
    flavour = FLAVOURS["tensorrt-rtx"]
    assert {name.rstrip("+") for name in flavour.portable} <= set(known) and "7.5" in known
    bundle = Bundle.open(tiny_bundle, verify=False)
    for targets in (("8.6",), ("8.6", "8.9", "12.0")):
        built = build_text_encoder(bundle, tmp_path, compute_capabilities=targets)
        assert built.warnings == () and (tmp_path / "engine").stat().st_size > 1 << 20


def test_turing_has_no_float32_products(rtx: Any, tiny_bundle: Path, half_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"FP32 GEMM is not supported on Turing \(sm75\), and node node_MatMul_\d+"):
        build_text_encoder(Bundle.open(tiny_bundle, verify=False), tmp_path, compute_capabilities=("7.5",))
    assert not (tmp_path / "engine").exists()
    build_text_encoder(Bundle.open(half_bundle, verify=False), tmp_path, compute_capabilities=("7.5",))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("operator", r"node (\S+) \(Nonsense\): .*Plugin not found"),
        ("axis", r"node (\S+) \(Softmax\): .*Axis must be in the range"),
        ("shape", r"node (\S+) \(MatMul\): Invalid Node.*last dimension of input0 = 32"),
        ("file", "Failed to parse the ONNX model"),
    ],
)
def test_a_graph_that_cannot_be_built_names_the_node(
    rtx: Any, tiny_bundle: Path, tmp_path: Path, harm: str, said: str
) -> None:
    bundle = Bundle.open(tiny_bundle, verify=False)
    model = onnx.load(bundle.graph_path(GRAPH))
    path = tmp_path / "text_encoder.onnx"
    kind = {"axis": "Softmax"}.get(harm, "MatMul")
    node = next(node for node in model.graph.node if node.op_type == kind)
    if harm == "operator":
        node.op_type = "Nonsense"
    elif harm == "axis":
        next(a for a in node.attribute if a.name == "axis").i = 9
    elif harm == "shape":
        node.input[1] = node.input[0]
    onnx.save(model, path)
    if harm == "file":
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BackendError, match=rf"TensorRT-RTX \S+ cannot take text_encoder\.onnx: .*{said}") as caught:
        build_text_encoder(bundle, tmp_path, path)
    assert harm == "file" or node.name in str(caught.value)
    assert not (tmp_path / "engine").exists()


def test_weights_that_are_not_there(rtx: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle, verify=False)
    path = tmp_path / "text_encoder.onnx"
    path.write_bytes(bundle.read("text_encoder.onnx"))
    with pytest.raises(BackendError, match="cannot take text_encoder"):
        build_text_encoder(bundle, tmp_path, path)


def test_an_engine_that_cannot_be_written(rtx: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write the engine of text_encoder: No such file"):
        build_text_encoder(Bundle.open(tiny_bundle, verify=False), tmp_path / "gone")


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has a GPU")
def test_an_engine_is_not_loaded_without_a_gpu(built: tuple[Bundle, list[Outcome]], rtx: Any) -> None:
    _, outcomes = built
    data = outcomes[-1].path.read_bytes()
    for harmed in (b"engine", bytes(100)):
        with pytest.raises(BackendError, match=r"TensorRT-RTX \S+ refuses the engine: it is damaged"):
            Engine(rtx, harmed)
    with pytest.raises(BackendError, match=r"could not load the engine: there is no GPU that it can use"):
        Engine(rtx, data)


@pytest.mark.parametrize("harm", ["cut", "flipped", "another graph's", "metadata"])
def test_an_engine_that_was_changed_is_built_again(rtx: Any, built: tuple[Bundle, list[Outcome]], harm: str) -> None:
    bundle, outcomes = built
    wanted = BundleBuild(shapes_of(bundle.manifest, SIZE, rows="2"), graphs=(GRAPH,))
    path = next(o.path for o in outcomes if o.metadata.graph == GRAPH)
    other = next(o.path for o in outcomes if o.metadata.graph == "vae_decoder")
    data, metadata = path.read_bytes(), path.with_suffix(".json")
    store = EngineStore(bundle, FLAVOURS["tensorrt-rtx"], None)
    if harm == "cut":
        path.write_bytes(data[:-100])
        assert "its metadata says" in str(store.scan(GRAPH)[0].refused)
    elif harm == "flipped":
        path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    elif harm == "another graph's":
        path.write_bytes(other.read_bytes())
        metadata.write_bytes(other.with_suffix(".json").read_bytes())
        assert "belongs to another engine" in str(next(f for f in store.scan() if f.path == path).refused)
    else:
        metadata.write_text(metadata.read_text().replace('"optimization_level": 3', '"optimization_level": 4'))
    (outcome,) = build_bundle(bundle, wanted, rtx, None)
    assert outcome.how == "built" and outcome.path == path
    assert outcome.metadata.engine_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
