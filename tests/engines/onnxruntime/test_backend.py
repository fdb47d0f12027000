"""The ONNX Runtime backend refuses what does not fit, and translates what the library says."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, BundleError, UsageError
from freeprompt.engines.onnxruntime import library
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
from freeprompt.engines.select import create_backend
from tests.damage import Json, copy_bundle, edit_manifest, rehash
from tests.engines.onnxruntime.test_external_data import write

Feeds = dict[str, Any]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Any:
    return OnnxRuntimeBackend("cpu", threads=1).open(bundle, "text_encoder")


def test_runs(session: Any) -> None:
    out = session.run({"input_ids": np.zeros((2, 77), np.int32)})
    assert list(out) == ["encoder_hidden_states"]
    assert out["encoder_hidden_states"].shape == (2, 77, 32)
    assert np.isfinite(out["encoder_hidden_states"].numpy()).all()


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"missing \['input_ids'\]"),
        ({"ids": np.zeros((1, 77), np.int32)}, r"missing \['input_ids'\], unknown \['ids'\]"),
        ({"input_ids": np.zeros((1, 77), np.int32), "more": np.zeros(1)}, r"unknown \['more'\]"),
        ({"input_ids": np.zeros((1, 77), np.int64)}, "input_ids is int64, expected int32"),
        ({"input_ids": np.zeros((1, 76), np.int32)}, r"has shape \(1, 76\)"),
        ({"input_ids": np.zeros((77,), np.int32)}, r"has shape \(77,\)"),
        ({"input_ids": np.zeros((0, 77), np.int32)}, r"has shape \(0, 77\)"),
    ],
)
def test_feeds_that_do_not_fit(session: Any, feeds: Feeds, message: str) -> None:
    with pytest.raises(BackendError, match=f"graph text_encoder: .*{message}"):
        session.run(feeds)


def test_failure_within_the_library(session: Any) -> None:
    with pytest.raises(BackendError, match="text_encoder"):
        session.run({"input_ids": np.full((1, 77), 10**6, np.int32)})


def test_named_dimensions_belong_together(bundle: Bundle) -> None:
    """Two inputs that share a name for a dimension must have it in the same size."""
    step = OnnxRuntimeBackend("cpu", threads=1).open(bundle, "step")
    feeds: Feeds = {
        spec.name: np.zeros(
            [d if isinstance(d, int) else {"height": 4, "width": 4}.get(d, 1) for d in spec.shape], spec.dtype
        )
        for spec in bundle.manifest.graph("step").inputs
    }
    assert step.run(feeds)["next_latents"].shape == (1, 4, 4, 4)
    with pytest.raises(BackendError, match=r"row_text has shape \(2,\).*rows=1"):
        step.run({**feeds, "row_text": np.zeros(2, np.int32)})


def test_upload_is_a_copy(bundle: Bundle) -> None:
    values = np.zeros(3, np.float32)
    array = OnnxRuntimeBackend("cpu").upload(values)
    values[:] = 1.0
    assert (array.numpy() == 0.0).all() and array.shape == (3,) and array.nbytes == 12


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "torch"])
def test_unknown_backend(name: str) -> None:
    with pytest.raises(UsageError, match="unknown backend"):
        create_backend(name)


def test_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match="onnxruntime-gpu"):
        create_backend("cuda")


def fails(message: str) -> Any:
    def fail(*args: Any) -> Any:
        raise RuntimeError(message)

    return fail


# As onnxruntime-gpu 1.31.1 wrote it on a machine with a driver's library and no device.
NO_DEVICE = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 [...] CUDA failure 100: no CUDA-capable device "
    "is detected ; GPU=-1 ; hostname=x ; file=/onnxruntime_src/cuda_execution_provider.cc ; line=290 ; expr=cudaSet"
)
MISSING = "Failed to load libcublas.so.13: cannot open shared object file\nFailed to load libcurand.so.10: no such file"


@pytest.mark.parametrize(
    ("said", "driver", "problem"),
    [
        (
            MISSING,
            True,
            "cannot find libcublas.so.13, libcurand.so.10; install them with pip",
        ),
        ("", False, "there is no NVIDIA driver: libcuda.so.1 cannot be loaded"),
        ("", True, "cannot use CUDA: no CUDA-capable device is detected; check the driver"),
    ],
)
def test_why_cuda_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], said: str, driver: bool, problem: str
) -> None:
    """What the library prints is not left on the terminal."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: sys.stdout.write(said), raising=False)
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", fails(NO_DEVICE))
    monkeypatch.setattr(library, "_has_driver", lambda: driver)
    assert problem in str(library.cuda_problem())
    assert capfd.readouterr() == ("", "")


def test_reasons_without_places_in_the_librarys_source() -> None:
    """As onnxruntime-gpu 1.31.1 writes them."""
    place = "/onnxruntime_src/onnxruntime/python/state.cc:729 void onnxruntime::Register(Options&, const Providers&) "
    assert library._reason(RuntimeError(f"{place}Please install TensorRT.")) == "Please install TensorRT."
    assert library._reason(RuntimeError("something (else) is wrong")) == "something (else) is wrong"


def test_cuda_that_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", lambda *args: None)
    assert library.cuda_problem() is None


def test_no_provider_is_exchanged_for_another(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would run a session whose provider has failed on the CPU from then on, and say so with print."""
    opened: list[Any] = []

    class Session(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            opened.append(self)

    monkeypatch.setattr(ort, "InferenceSession", Session)
    OnnxRuntimeBackend("cpu").open(bundle, "text_encoder")
    (session,) = opened
    assert session._enable_fallback is False


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one(threads: int) -> None:
    with pytest.raises(BackendError, match="threads must be at least 1"):
        OnnxRuntimeBackend("cpu", threads)


def test_no_such_graph(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no graph 'none'"):
        OnnxRuntimeBackend("cpu").open(bundle, "none")


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\x08\x09" * 100])
def test_a_file_that_is_no_graph(tiny_bundle: Path, tmp_path: Path, data: bytes) -> None:
    folder = copy_bundle(tiny_bundle, tmp_path / "bundle")
    for file in Bundle.open(folder).manifest.graph("text_encoder").files:
        (folder / file).write_bytes(data)
    rehash(folder)
    with pytest.raises(BackendError, match="text_encoder"):
        OnnxRuntimeBackend("cpu").open(Bundle.open(folder), "text_encoder")


def text_encoder(
    output: str = "encoder_hidden_states", kind: int = TensorProto.FLOAT, tiles: Any = (1, 1, 32)
) -> bytes:
    """A graph that repeats the ids to its output; ``tiles`` says how often along each axis."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["texts", 77])
    out = helper.make_tensor_value_info(output, kind, ["a", "b", "c"][: len(tiles)])
    axes = numpy_helper.from_array(np.array(range(2, len(tiles))), "axes")
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["cast"], to=kind),
        helper.make_node("Unsqueeze", ["cast", "axes"], ["wide"]) if len(tiles) > 2 else None,
        helper.make_node("Tile", ["wide" if len(tiles) > 2 else "cast", "tiles"], [output]),
    ]
    constants = [axes, numpy_helper.from_array(np.array(tiles), "tiles")]
    graph = helper.make_graph([node for node in nodes if node], "g", [ids], [out], constants)
    model: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    ).SerializeToString()
    return model


def test_outputs_that_are_the_manifests(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = write(tiny_bundle, tmp_path / "bundle", text_encoder())
    session = OnnxRuntimeBackend("cpu", threads=1).open(Bundle.open(folder), "text_encoder")
    got = session.run({"input_ids": np.ones((2, 77), np.int32)})["encoder_hidden_states"]
    np.testing.assert_array_equal(got.numpy(), np.ones((2, 77, 32), np.float32))


@pytest.mark.parametrize(
    "model",
    [
        lambda: text_encoder("hidden_states"),
        lambda: text_encoder(kind=TensorProto.DOUBLE),
        lambda: text_encoder(kind=TensorProto.FLOAT16),
        lambda: text_encoder(tiles=(1, 32)),
    ],
    ids=["name", "dtype", "precision", "rank"],
)
def test_outputs_that_are_others_are_refused_when_a_graph_is_opened(
    tiny_bundle: Path, tmp_path: Path, model: Callable[[], bytes]
) -> None:
    folder = write(tiny_bundle, tmp_path / "bundle", model())
    with pytest.raises(BackendError, match=r"graph text_encoder has outputs .*the manifest says"):
        OnnxRuntimeBackend("cpu").open(Bundle.open(folder), "text_encoder")


@pytest.mark.parametrize("tiles", [(1, 1, 31), (2, 1, 32), (1, 32, 32), (0, 1, 32)])
def test_results_of_other_shapes_are_refused(tiny_bundle: Path, tmp_path: Path, tiles: tuple[int, ...]) -> None:
    folder = write(tiny_bundle, tmp_path / "bundle", text_encoder(tiles=tiles))
    session = OnnxRuntimeBackend("cpu", threads=1).open(Bundle.open(folder), "text_encoder")
    shape = tuple(size * tile for size, tile in zip((2, 77, 1), tiles))
    message = re.escape(f"gave encoder_hidden_states as float32 of shape {shape}, the manifest says float32 [2,77,32]")
    with pytest.raises(BackendError, match=message):
        session.run({"input_ids": np.ones((2, 77), np.int32)})


@pytest.mark.parametrize(
    "said",
    [
        "[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 99",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc",
        "CUDA error: out of memory",
    ],
)
def test_what_to_do_where_memory_is_short(said: str) -> None:
    """On a CPU nobody can close programs on the GPU."""
    on_cpu = str(library.failure("step", RuntimeError(said), on_cpu=True))
    assert "this machine has not enough memory" in on_cpu and "close other programs" in on_cpu
    assert "GPU" not in on_cpu
    assert "the GPU has not enough memory" in str(library.failure("step", RuntimeError(said)))
    assert "not enough memory" in str(library.failure("step", MemoryError(), on_cpu=True))
    assert "memory" not in str(library.failure("step", RuntimeError("other"), on_cpu=True))


def test_a_cpu_without_memory_is_told_of_no_gpu(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def run(self, *args: Any) -> Any:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1099511627776")

    monkeypatch.setattr(session, "_session", Full())
    with pytest.raises(BackendError, match="this machine has not enough memory"):
        session.run({"input_ids": np.zeros((1, 77), np.int32)})


def another_graph(manifest: Json) -> None:
    encoder, decoder = (manifest["graphs"][name]["fused"] for name in ("vae_encoder", "vae_decoder"))
    encoder["file"], decoder["file"] = decoder["file"], encoder["file"]


def test_manifest_that_describes_another_graph(tiny_bundle: Path, tmp_path: Path) -> None:
    """What a manifest says of a graph is compared with the model's constants; here each is that of the other's file."""
    folder = copy_bundle(tiny_bundle, tmp_path / "bundle")
    edit_manifest(folder, another_graph)
    with pytest.raises(BackendError, match=r"graph vae_encoder has inputs .*the manifest says"):
        OnnxRuntimeBackend("cpu").open(Bundle.open(folder), "vae_encoder")
