"""What a graph gives is compared with the manifest, whatever runs it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError
from freeprompt.contract.manifest import TensorSpec
from freeprompt.contract.session import HostArray, check_results
from freeprompt.engines.fake import FakeBackend
from freeprompt.runtime import stages
from freeprompt.runtime.sessions import Graphs
from tests.engines.conftest import Machine

SPECS = (
    TensorSpec("x", "float32", ("rows", 4, "tokens")),
    TensorSpec("y", "float16", ("tokens",)),
)
IDS = {"input_ids": np.zeros((2, 77), np.int32)}


def results(x: tuple[int, ...] = (2, 4, 9), y: tuple[int, ...] = (9,), dtype: Any = np.float32) -> dict[str, Any]:
    return {"x": HostArray(np.zeros(x, dtype)), "y": HostArray(np.zeros(y, np.float16))}


def test_results_that_fit() -> None:
    check_results("g", SPECS, results(), {"rows": 2})
    check_results("g", SPECS, results(), {})
    check_results("g", SPECS, results(), {"rows": 2, "tokens": 9, "other": 1})


@pytest.mark.parametrize(
    ("given", "sizes", "message"),
    [
        (
            results(x=(64, 4, 9)),
            {"rows": 2},
            "gave x as float32 of shape (64, 4, 9), the manifest says float32 [2,4,9]",
        ),
        (results(x=(2, 5, 9)), {"rows": 2}, "[2,4,9]"),
        (results(x=(2, 4)), {"rows": 2}, "gave x as float32 of shape (2, 4), the manifest says float32 [2,4,tokens]"),
        (results(x=(2, 4, 9, 1)), {"rows": 2}, "(2, 4, 9, 1)"),
        (results(dtype=np.float64), {"rows": 2}, "gave x as float64"),
        (results(y=(8,)), {"rows": 2}, "gave y as float16 of shape (8,), the manifest says float16 [9]"),
        ({"x": results()["x"]}, {}, "missing ['y'], new []"),
        ({**results(), "z": results()["y"]}, {}, "missing [], new ['z']"),
    ],
)
def test_results_that_do_not(given: dict[str, Any], sizes: dict[str, int], message: str) -> None:
    with pytest.raises(BackendError, match=re.escape(message)) as raised:
        check_results("g", SPECS, given, sizes)
    assert "graph g gave" in str(raised.value)


def with_output(bundle: Bundle, graph: str, shape: tuple[Any, ...]) -> Bundle:
    """A bundle whose manifest says another shape of the graph's one output."""
    spec = bundle.manifest.graph(graph)
    changed = replace(spec, outputs=(replace(spec.outputs[0], shape=shape),))
    return replace(bundle, manifest=replace(bundle.manifest, graphs={**bundle.manifest.graphs, graph: changed}))


def test_engines(machine: Machine, bundle: Bundle) -> None:
    machine.build(bundle, "text_encoder")
    assert machine.backend.open(bundle, "text_encoder").run(IDS)
    other = with_output(bundle, "text_encoder", ("texts", 77, 33))
    with pytest.raises(BackendError, match=r"the manifest says float32 \[2,77,33\]"):
        machine.backend.open(other, "text_encoder").run(IDS)


def test_the_fake_backend(bundle: Bundle) -> None:
    for name in bundle.manifest.graphs:
        spec = bundle.manifest.graph(name)
        feeds = {t.name: np.zeros([d if isinstance(d, int) else 8 for d in t.shape], t.dtype) for t in spec.inputs}
        assert FakeBackend().open(bundle, name).run(feeds)
    backend = FakeBackend(lambda graph, values: {"encoder_hidden_states": np.zeros((1, 77, 32), np.float32)})
    with pytest.raises(BackendError, match=r"\(1, 77, 32\), the manifest says float32 \[2,77,32\]"):
        backend.open(bundle, "text_encoder").run(IDS)


@pytest.mark.parametrize("size", [(64, 64), (32, 64), (2048, 64)])
def test_images_and_latents_of_another_scale(tiny_bundle: Path, size: tuple[int, int]) -> None:
    """Their sizes have names of their own on each side of the autoencoder; the model's scale ties them."""
    bundle = Bundle.open(tiny_bundle)
    scale = bundle.manifest.latents.scale
    image, latents = np.zeros((1, 3, 64, 64), np.float32), np.zeros((1, 4, 64 // scale, 64 // scale), np.float32)
    wrong = {
        "vae_decoder": {"image": np.zeros((1, 3, *size), np.float32)},
        "vae_encoder": {"latents": np.zeros((1, 4, size[0] // scale, size[1] // scale), np.float32)},
    }
    graphs = Graphs(bundle, FakeBackend(lambda graph, values: wrong[graph]))
    stage: Callable[[], Any]
    for stage in (lambda: stages.latents_to_image(graphs, latents), lambda: stages.image_to_latents(graphs, image)):
        if size == (64, 64):
            stage()
        else:
            with pytest.raises(BackendError, match=f"says {scale} pixels for each"):
                stage()
