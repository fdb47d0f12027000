"""Manifests made by hand, whose checksum is right: a clean error, or a bundle that can be used; never anything else.

``tests/contract/test_bundle_fuzz.py`` runs some on real graphs; here every place is tried, on a backend without a
model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from freeprompt import Editor
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BundleError, FreePromptError
from freeprompt.contract.manifest import Manifest
from freeprompt.contract.manifest_file import manifest_from_json
from freeprompt.editor import demo_bundle
from freeprompt.engines.fake import FakeBackend
from freeprompt.runtime.inputs.prompt import prompts_to_ids
from tests.damage import Json, seal
from tests.nasty import MARKER, NASTY, NO_NUMBERS, Place, places, with_second_key, with_value, without

PICTURE = np.kron(np.arange(16).reshape(4, 4) * 16, np.ones((16, 16))).astype(np.uint8)
# Of the nasty values so many are tried at each place, others at each.
TRIED = 6


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(demo_bundle(), verify=False)


@pytest.fixture(scope="module")
def original() -> Json:
    """The demo's manifest with a schedule of a few timesteps, which is most of the text otherwise."""
    manifest: Json = json.loads((demo_bundle() / "manifest.json").read_bytes())
    manifest["scheduler"]["alphas_cumprod"] = manifest["scheduler"]["alphas_cumprod"][::80]
    manifest["manifest_sha256"] = "0" * 64
    return manifest


def use(bundle: Bundle, manifest: Manifest) -> None:
    """Everything that an edit does, but for the arithmetic of the graphs."""
    editor = Editor(replace(bundle, manifest=manifest), FakeBackend())
    inversion = editor.invert(PICTURE, 2, record="auto")
    for mode in ("auto", "none"):
        editor.plan("a cat", steps=2, record=mode)
        latents = editor.edit_latents(inversion, "a cat", record=mode, replace_fraction=1.0)
    editor.plan("a cat", inversion=inversion)
    editor.decode(latents)
    editor.synthesize("a cat", "a dog", steps=1)


def outcome(bundle: Bundle, text: str) -> str:
    """ "refused", "used", or "failed" cleanly while it was used. Anything else is raised."""
    try:
        manifest = manifest_from_json(seal(text))
    except BundleError as error:
        assert str(error).startswith("manifest.json") and len(str(error)) < 5000
        return "refused"
    try:
        use(bundle, manifest)
    except FreePromptError as error:
        assert str(error) and len(str(error)) < 5000
        return "failed"
    return "used"


def outcome_of_value(bundle: Bundle, original: Json, place: Place, value: Any) -> str:
    try:
        return outcome(bundle, json.dumps(with_value(original, place, value)))
    except Exception as error:
        raise AssertionError(f"{place} = {value!r:.100}") from error


def test_the_original_is_used(bundle: Bundle, original: Json) -> None:
    assert outcome(bundle, json.dumps(original)) == "used"


def test_every_place_with_values_that_do_not_belong_there(bundle: Bundle, original: Json) -> None:
    rng = np.random.default_rng(1)
    count = {"refused": 0, "failed": 0, "used": 0}
    for place in places(original):
        chosen = [NASTY[i] for i in rng.choice(len(NASTY), TRIED, replace=False)]
        for value in chosen:
            count[outcome_of_value(bundle, original, place, value)] += 1
        count[outcome(bundle, json.dumps(without(original, place)))] += 1
    assert sum(count.values()) > 3000
    assert count["refused"] > 0.8 * sum(count.values())
    assert count["failed"] < 20, "what cannot be used is told when the bundle is opened"


def test_a_place_with_every_value(bundle: Bundle, original: Json) -> None:
    """Where a number decides how much is computed or held."""
    decisive: list[Place] = [
        *(("latents", name) for name in original["latents"]),
        *(("text", name) for name in original["text"]),
        *(("layers", 4, name) for name in original["layers"][4]),
        *(("scheduler", name) for name in original["scheduler"]),
        *(("scheduler", "alphas_cumprod", at) for at in (0, 1, -1)),
        *(("files", 0, name) for name in original["files"][0]),
        *(("graphs", "step", name) for name in original["graphs"]["step"]),
        *((name,) for name in original if name != "manifest_sha256"),
    ]
    for place in decisive:
        for value in NASTY:
            outcome_of_value(bundle, original, place, value)


def test_numbers_that_are_none(bundle: Bundle, original: Json) -> None:
    numbers: list[Place] = [
        ("format_version",),
        ("opset",),
        ("latents", "scaling_factor"),
        ("latents", "height"),
        ("scheduler", "alphas_cumprod", 0),
        ("scheduler", "steps_offset"),
        ("layers", 0, "level"),
        ("graphs", "step", "macs"),
        ("graphs", "step", "parity_threshold"),
        ("graphs", "step", "parity", 0, "relative_l2"),
        ("files", 0, "bytes"),
        ("text", "pad_token_id"),
    ]
    for place in numbers:
        text = json.dumps(with_value(original, place, MARKER))
        for number in NO_NUMBERS:
            assert outcome(bundle, text.replace(json.dumps(MARKER), number)) == "refused", (place, number)


def test_keys_that_are_there_twice(original: Json) -> None:
    """A reader that takes the first and one that takes the last would see two models."""
    tried = 0
    for place in places(original):
        if isinstance(place[-1], str) and place[-1] != "manifest_sha256":
            with pytest.raises(BundleError, match="is there twice"):
                manifest_from_json(seal(with_second_key(original, place)))
            tried += 1
    assert tried > 300


def test_ids_that_are_too_large_for_a_graph(bundle: Bundle) -> None:
    class Tokenizer:
        def encode(self, prompt: str) -> Any:
            class Encoding:
                ids = (0, (1 << 32) - 1)

            return Encoding

    with pytest.raises(BundleError, match="id 4294967295"):
        prompts_to_ids(Tokenizer(), bundle.manifest.text, ("a",))  # type: ignore[arg-type]


def edit(*place: Any, to: Any) -> Callable[[Json], Any]:
    return lambda manifest: with_value(manifest, place, to)


def renamed(old: str, new: str) -> Callable[[Json], Json]:
    """A file under another name, wherever it is named."""

    def change(manifest: Json) -> Json:
        changed: Json = json.loads(json.dumps(manifest).replace(json.dumps(old), json.dumps(new)))
        return changed

    return change


def with_graph(name: str) -> Callable[[Json], Json]:
    """One that is like another, with a file of its own."""

    def change(manifest: Json) -> Json:
        files = [*manifest["files"], {**manifest["files"][0], "path": "other.onnx"}]
        like = {**manifest["graphs"]["step"], "file": "other.onnx", "fused": None, "cuda": None}
        return {**manifest, "files": files, "graphs": {**manifest["graphs"], name: like}}

    return change


def without_input(graph: str, name: str) -> Callable[[Json], Any]:
    def change(manifest: Json) -> Any:
        inputs = [tensor for tensor in manifest["graphs"][graph]["inputs"] if tensor["name"] != name]
        return with_value(manifest, ("graphs", graph, "inputs"), inputs)

    return change


def all_layers(**values: Any) -> Callable[[Json], Json]:
    def change(manifest: Json) -> Json:
        return {**manifest, "layers": [{**layer, **values} for layer in manifest["layers"]]}

    return change


INPUT = ("graphs", "step", "inputs", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((lambda m, g=g: without(m, ("graphs", g)), f"no graph {g}") for g in ("text_encoder", "vae_encoder", "step")),
        (lambda m: without(m, ("graphs", "step_recorded")), "no graph step_recorded"),
        (all_layers(recordable=False), "no layer is recordable"),
        (without_input("step", "latents"), "graph step has the inputs pinned_latents"),
        (without_input("text_encoder", "input_ids"), "graph text_encoder has the inputs "),
        (edit(*INPUT, "name", to="pinned_latents"), "graph step has the inputs pinned_latents, pinned_latents"),
        (edit(*INPUT, "dtype", to="float16"), r"graph step has latents\[.*\] float16"),
        (edit(*INPUT, "shape", 0, to="rows"), r"graph step has latents\[rows,"),
        (edit(*INPUT, "shape", 0, to=0), r"graph step has latents\[0,"),
        (edit(*INPUT, "shape", 1, to=-4), r"graph step has latents\[latents,-4"),
        (edit(*INPUT, "shape", 1, to=10**30), r"graph step has latents\[latents,1000000"),
        (edit("graphs", "record", "outputs", 0, "shape", 2, to=31), "graph record has record_01"),
        (edit("precision", to="float16"), "record_01"),
        (with_graph("../x"), "'../x' cannot be a graph's name"),
        (with_graph("x" * 300), "cannot be a graph's name"),
        (edit("layers", 0, "level", to=1 << 62), "layer 1 is at level"),
        (edit("layers", 0, "level", to=4), "layer 1 is at level 4"),
        (edit("layers", 0, "level", to=1), "layer 1 has 256 tokens, level 1 has 64"),
        (edit("layers", 0, "tokens", to=255), "layer 1 has 255 tokens"),
        (edit("layers", 0, "heads", to=3), "layer 1 has 32 channels for 3 heads"),
        (edit("cross_layers", to=1 << 20), "more than 1024 attention layers"),
        (edit("latents", "scaling_factor", to=-1.5), "scaling_factor is -1.5"),
        (edit("latents", "scaling_factor", to=5e-324), "scaling_factor is"),
        (edit("scheduler", "alphas_cumprod", to=[0.5, 1e-300, 0.0]), "falls below"),
        (edit("scheduler", "alphas_cumprod", to=[1 - i / (1 << 17) for i in range((1 << 16) + 1)]), "65537 timesteps"),
        (edit("tokenizer", to="unet.weights"), "unet.weights cannot be a tokenizer"),
        (edit("tokenizer", to="step.onnx"), "step.onnx is used for two things"),
        (edit("graphs", "step", "file", to="record.onnx"), "record.onnx is used for two things"),
        (renamed("record.onnx", "STEP.ONNX"), "listed twice"),
        (renamed("record.onnx", "manifest.json"), "manifest.json cannot be a file of the model"),
        (renamed("record.onnx", "Manifest.json"), "Manifest.json cannot be a file of the model"),
        (renamed("record.onnx", "engines/x.onnx"), "engines/x.onnx cannot be a file of the model"),
        *(
            (renamed("record.onnx", path), "not inside the bundle")
            for path in ("", ".", "./record.onnx", "a//record.onnx", "a/../record.onnx", "/a", "a\\b", "C:x", "a/")
        ),
        (renamed("record.onnx", "x" * 256), "too long for a file"),
        (renamed("record.onnx", "a\0b"), "cannot be printed"),
        (renamed("record.onnx", "\u202exnno.drocer"), "cannot be printed"),
        (edit("model", to="\x1b[2Jx"), "cannot be printed"),
        (edit("layers", 0, "name", to="a\nb"), "cannot be printed"),
        (edit("producer", to="x" * 5000), "or too many"),
    ],
)
def test_contradictions(original: Json, change: Callable[[Json], Any], message: str) -> None:
    with pytest.raises(BundleError, match=message) as raised:
        manifest_from_json(seal(json.dumps(change(original))))
    assert str(raised.value).startswith("manifest.json") and str(raised.value).isprintable()


def test_notes_may_say_anything(bundle: Bundle, original: Json) -> None:
    assert outcome(bundle, json.dumps({**original, "notes": {"a\n": "\x1b[2J" + "x" * 5000}})) == "used"
