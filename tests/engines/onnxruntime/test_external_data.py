"""Weights outside an ONNX file: found as the onnx package finds them, and nothing else is read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
from freeprompt.engines.onnxruntime.external_data import checked_snapshot, model_to_external
from tests.damage import copy_bundle, edit_manifest, rehash

Edit = Callable[[Any], Any]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def names_of(bundle: Bundle) -> list[str]:
    return [file for graph in bundle.manifest.graphs.values() for file in graph.files]


def by_onnx(model: Any) -> list[tuple[Any, ...]]:
    found = []
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in tensor.external_data}
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            found.append((tensor.name, dtype, tuple(tensor.dims), where["location"], int(where.get("offset", 0))))
    return found


def by_us(model: bytes) -> list[tuple[Any, ...]]:
    return [(t.name, t.dtype, t.shape, t.location, t.offset) for t in model_to_external(model, "g")]


def test_every_weight_of_every_graph_is_found(bundle: Bundle) -> None:
    for name in names_of(bundle):
        data = bundle.read(name)
        expected = by_onnx(onnx.ModelProto.FromString(data))
        assert by_us(data) == expected and expected


def test_damaged_files_are_refused_or_read_as_onnx_reads_them(bundle: Bundle) -> None:
    """Where onnx's own parser takes a file too, both must see the same weights: what is not seen is not checked."""
    data = bundle.read("text_encoder.fused.onnx")
    start = data.index(b"location")
    rng = np.random.default_rng(5)
    agreed = refused = 0
    for _ in range(3000):
        changed = bytearray(data)
        for at in rng.integers(start - 2000, start + 4000, int(rng.integers(1, 4))):
            changed[at % len(data)] ^= 1 << int(rng.integers(8))
        try:
            got = by_us(bytes(changed))
        except BackendError:
            refused += 1
            continue
        try:
            model = onnx.ModelProto.FromString(bytes(changed))
        except Exception:
            continue  # ONNX Runtime does not load it either
        where = [t.external_data for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        if not all(any(entry.key == "location" for entry in entries) for entries in where):
            continue  # nor this: test_descriptions_that_cannot_be
        agreed += 1
        assert got == by_onnx(model)
    assert agreed > 100 and refused > 100


def external(name: str = "w", location: str = "unet.weights", **more: str) -> Any:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "16", **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph_with(*initializers: Any, nodes: tuple[Any, ...] = (), **more: Any) -> Any:
    """A text encoder that adds ``w`` to nothing."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["texts", 77])
    out = helper.make_tensor_value_info("encoder_hidden_states", TensorProto.FLOAT, ["texts", 77, 32])
    zeros = numpy_helper.from_array(np.zeros((1, 77, 32), np.float32), "zeros")
    last = [
        helper.make_node("ReduceSum", ["w"], ["sum"], keepdims=0),
        helper.make_node("Add", ["zeros", "sum"], ["encoder_hidden_states"]),
    ]
    graph = helper.make_graph([*nodes, *last], "g", [ids], [out], [zeros, *initializers])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, **more)


def write(tiny_bundle: Path, folder: Path, model: bytes) -> Path:
    """A bundle whose text encoder is ``model``, with right hashes."""
    copy_bundle(tiny_bundle, folder)
    for form in ("", ".fused"):
        (folder / f"text_encoder{form}.onnx").write_bytes(model)
    edit_manifest(folder, lambda m: m["graphs"]["text_encoder"].update(known_answer=None))
    rehash(folder)
    return folder


def run(folder: Path) -> Any:
    session = OnnxRuntimeBackend("cpu", threads=1).open(Bundle.open(folder), "text_encoder")
    return session.run({"input_ids": np.zeros((1, 77), np.int32)})["encoder_hidden_states"].numpy()


def test_what_is_listed_is_read_from_the_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = write(tiny_bundle, tmp_path / "bundle", graph_with(external()).SerializeToString())
    want = np.fromfile(folder / "unet.weights", np.float32, 4).sum()
    np.testing.assert_allclose(run(folder), np.full((1, 77, 32), want), rtol=1e-6)


def test_weights_at_an_odd_place(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = write(tiny_bundle, tmp_path / "bundle", graph_with(external(offset="3")).SerializeToString())
    data = (folder / "unet.weights").read_bytes()
    want = np.frombuffer(data[3:19], np.float32).sum()
    np.testing.assert_allclose(run(folder), np.full((1, 77, 32), want), rtol=1e-6)


@pytest.mark.parametrize("location", ["secret.bin", "./secret.bin", "../secret.bin", "ABSOLUTE", "", "unet.weights/"])
def test_other_files_are_not_read(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    """Neither beside the bundle's files, nor in the current folder, nor elsewhere."""
    for place in (tmp_path, tmp_path / "here"):
        place.mkdir(exist_ok=True)
        np.ones(4, np.float32).tofile(place / "secret.bin")
    location = str(tmp_path / "secret.bin") if location == "ABSOLUTE" else location
    folder = write(tiny_bundle, tmp_path / "bundle", graph_with(external(location=location)).SerializeToString())
    np.ones(4, np.float32).tofile(folder / "secret.bin")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(BackendError, match="which the bundle does not list"):
        run(folder)
    with pytest.raises(BackendError, match="which the bundle does not list"):  # by path, as TensorRT reads
        checked_snapshot(Bundle.open(folder), "text_encoder").__enter__()


def constant() -> Any:
    return helper.make_node("Constant", [], ["w"], value=external("constant"))


def in_subgraph() -> Any:
    body = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["o"])],
        "body",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [4])],
        [external("inner")],
    )
    true = helper.make_node("Constant", [], ["true"], value=numpy_helper.from_array(np.array(True)))
    return (true, helper.make_node("If", ["true"], ["w"], then_branch=body, else_branch=body))


def in_function() -> Any:
    opset = [helper.make_opsetid("", 18)]
    function = helper.make_function("own", "F", [], ["w"], [constant()], opset)
    model = graph_with(nodes=(helper.make_node("F", [], ["w"], domain="own"),), functions=[function])
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


@pytest.mark.parametrize(
    "model",
    [
        lambda: graph_with(nodes=(constant(),)),
        lambda: graph_with(nodes=in_subgraph()),
        in_function,
        lambda: graph_with(nodes=(constant(),), doc_string="location"),
    ],
)
def test_only_weights_of_the_graph_itself_may_be_elsewhere(
    tiny_bundle: Path, tmp_path: Path, model: Callable[[], Any]
) -> None:
    folder = write(tiny_bundle, tmp_path / "bundle", model().SerializeToString())
    with pytest.raises(BackendError, match="data in other files that is no weight of the graph itself"):
        run(folder)


def noted(**more: Any) -> bytes:
    result: bytes = graph_with(external(**more)).SerializeToString()
    return result


def kind(number: int) -> bytes:
    tensor = external()
    tensor.data_type = number
    result: bytes = graph_with(tensor).SerializeToString()
    return result


def dims(*sizes: int) -> bytes:
    tensor = external()
    del tensor.dims[:]
    tensor.dims.extend(sizes)
    result: bytes = graph_with(tensor).SerializeToString()
    return result


def without_mark() -> bytes:
    tensor = external()
    tensor.ClearField("data_location")
    result: bytes = graph_with(tensor).SerializeToString()
    return result


def nowhere() -> bytes:
    tensor = external()
    tensor.external_data[0].key = "locatioo"
    result: bytes = graph_with(tensor).SerializeToString()
    return result


def twice() -> bytes:
    tensor = external()
    tensor.external_data.add(key="location", value="/etc/passwd")
    result: bytes = graph_with(tensor).SerializeToString()
    return result


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (functools.partial(noted, offset="-1"), "offset '-1'"),
        (functools.partial(noted, offset="1e3"), "offset '1e3'"),
        (functools.partial(noted, offset=str(1 << 62)), "beyond the end of unet.weights"),
        (functools.partial(noted, length="12"), "takes 12 bytes, its shape 16"),
        (functools.partial(noted, prepacked_0="x|0;4;"), "in a way that is not known"),
        (functools.partial(kind, TensorProto.STRING), "element type 8"),
        (functools.partial(kind, 99), "element type 99"),
        (functools.partial(dims, -4), "shape"),
        (functools.partial(dims, 1 << 40, 1 << 40), "its shape"),
        (without_mark, "in a way that is not known"),
        (nowhere, "cannot load graph"),
        (twice, "says twice where it is"),
        (lambda: b"", "cannot load graph"),
        (lambda: b"\x08\x09" * 100, "cannot load graph"),
        (lambda: b"\x3b", "wire type 3"),
        (lambda: b"\x3a\xff\xff\xff\xff\x7f", "does not end"),
        (lambda: b"\x3a\x05abc", "does not end"),
        (lambda: b"\x1c\0\0\0ORTM" + b"\0" * 40, "graph text_encoder"),
    ],
)
def test_descriptions_that_cannot_be(
    tiny_bundle: Path, tmp_path: Path, model: Callable[[], bytes], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        run(write(tiny_bundle, tmp_path / "bundle", model()))


def test_compiled_parts_are_not_run(tiny_bundle: Path, tmp_path: Path) -> None:
    """A provider would load an engine from them."""
    node = helper.make_node("EPContext", [], ["w"], domain="com.microsoft", ep_cache_context="e", embed_mode=1)
    with pytest.raises(BackendError, match="compiled parts"):
        run(write(tiny_bundle, tmp_path / "bundle", graph_with(nodes=(node,)).SerializeToString()))
