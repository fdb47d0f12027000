"""Sizes that engines are built for against those that runs feed, seen by a backend that computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from freeprompt import Editor
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import UsageError
from freeprompt.engines.fake import FakeBackend
from freeprompt.engines.shapes import Shapes, choose_profile
from freeprompt.runtime.plan.limits import Limits
from freeprompt.runtime.plan.shapes import Batch, batches_to_sizes, joined, usual_sizes

PICTURE = np.zeros((64, 64, 3), np.uint8)
IN_BETWEEN = {"height": 16, "width": 16}
# What `freeprompt build` built engines of the tests' model for when their rows were written down as 1,2,3.
DEFAULT = {
    "record": [{**IN_BETWEEN, "latents": 4, "texts": 6, "rows": 4}],
    "step": [
        {**IN_BETWEEN, "latents": 1, "pinned": 1, "texts": 3, "rows": 1},
        {**IN_BETWEEN, "latents": 1, "pinned": 1, "texts": 4, "rows": 2},
        {**IN_BETWEEN, "latents": 1, "pinned": 1, "texts": 5, "rows": 3},
    ],
    "step_recorded": [
        {
            **IN_BETWEEN,
            **{"latents": 1, "pinned": 1, "texts": 4, "rows": 2, "record_rows": 4, "tokens_0": 256, "tokens_1": 64},
        }
    ],
    "step_recording": [{**IN_BETWEEN, "latents": 1, "pinned": 1, "texts": 3, "rows": 1}],
    "text_encoder": [{"texts": 5}],
    "vae_decoder": [{"images": 1, "height": 16, "width": 16}],
    "vae_encoder": [{"images": 1, "image_height": 64, "image_width": 64}],
}
# A fed size, and the most that is built for it, where that may be more: see the module's own words.
SLACK: Mapping[str, Callable[[Mapping[str, int]], int]] = {
    "texts": lambda fed: fed.get("rows", 3) + 2,
    "pinned": lambda fed: fed["latents"],
    "record_rows": lambda fed: 4,
}


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle, verify=False)


def run_everything(bundle: Bundle, prompts: int, limits: Limits | None = None) -> dict[str, list[dict[str, int]]]:
    """The sizes of the named dimensions of everything that is fed, by graph."""
    backend = FakeBackend()
    editor = Editor(bundle, backend, limits)
    targets = [f"target {number}" for number in range(prompts)]
    for mode in ("none", "exact", "inversion"):
        inversion = editor.invert(PICTURE, 10, record=mode)
        for _ in range(2):
            editor.edit(inversion, targets, record=mode, negative_prompt="ugly")
    editor.edit(editor.generate("source", steps=10), targets)
    seen: dict[str, list[dict[str, int]]] = {}
    for call in backend.calls:
        sizes: dict[str, int] = {}
        for spec in bundle.manifest.graphs[call.graph].inputs:
            sizes.update((n, s) for n, s in zip(spec.shape, call.feeds[spec.name].shape) if isinstance(n, str))
        known = seen.setdefault(call.graph, [])
        if sizes not in known:
            known.append(sizes)
    return seen


def check(fed: dict[str, list[dict[str, int]]], shapes: Shapes) -> None:
    """Everything fed is served, by a profile that is larger in what is said only; and no profile is for nothing."""
    assert fed.keys() == shapes.sizes.keys()
    for graph, all_sizes in fed.items():
        profiles = shapes.profiles(graph)
        used = set()
        for sizes in all_sizes:
            chosen = choose_profile(profiles, sizes)
            assert chosen is not None, (graph, sizes)
            used.add(chosen[0])
            for name, size in chosen[1].items():
                most = SLACK[name](sizes) if name in SLACK else sizes[name]
                if graph == "record":
                    most = {"rows": 4, "latents": 4, "texts": 6}.get(name, most)
                assert sizes[name] <= size <= most, (graph, name)
        assert used == set(range(len(profiles))), graph


def test_the_default_is_what_was_written_down_before(bundle: Bundle) -> None:
    assert usual_sizes(bundle.manifest, [(16, 16)]) == DEFAULT
    batches = [Batch(1, 1), Batch(2, 1), Batch(3, 1)]
    assert batches_to_sizes(bundle.manifest, batches, (16, 16)) == DEFAULT


def test_the_default_is_what_runs_with_one_prompt_feed(bundle: Bundle) -> None:
    check(run_everything(bundle, 1), Shapes(usual_sizes(bundle.manifest, [(16, 16)])))


@pytest.mark.parametrize(("prompts", "rows", "step"), [(2, 8, [1, 2, 4, 5]), (3, 5, [1, 2, 4, 5, 3])])
def test_chunks_of_many_prompts_are_built_for(bundle: Bundle, prompts: int, rows: int, step: list[int]) -> None:
    """Of three prompts and five rows: two beside the source, then one; recorded two, then one."""
    limits = Limits(rows=rows)
    sizes = usual_sizes(bundle.manifest, [(16, 16)], [prompts], limits=limits)
    assert {each["rows"] for each in sizes["step"]} == set(step)
    fed = run_everything(bundle, prompts, limits)
    for graph, all_sizes in fed.items():
        for one in all_sizes:
            assert choose_profile(Shapes(sizes).profiles(graph), one) is not None, (graph, one)


def test_a_record_pass_has_room_for_the_texts_of_many_prompts(bundle: Bundle) -> None:
    """It is given all texts of the edit that it is made for: seven prompts, the empty one and a negative one."""
    limits = Limits(rows=14)
    sizes = usual_sizes(bundle.manifest, [(16, 16)], [7], ["exact"], limits)
    assert [each["texts"] for each in sizes["record"]] == [9]
    for graph, fed in run_everything(bundle, 7, limits).items():
        if graph in ("record", "step_recorded"):
            exact = [one for one in fed if one.get("record_rows") != 1]
            assert all(choose_profile(Shapes(sizes).profiles(graph), one) for one in exact)


@pytest.mark.parametrize(
    ("mode", "graphs"),
    [
        ("none", {"step"}),
        ("exact", {"step", "step_recorded", "record"}),
        ("inversion", {"step", "step_recorded", "step_recording"}),
    ],
)
def test_a_mode_asks_for_its_graphs_only(bundle: Bundle, mode: str, graphs: set[str]) -> None:
    sizes = usual_sizes(bundle.manifest, [(16, 16)], modes=[mode])
    assert sizes.keys() == graphs | {"text_encoder", "vae_encoder", "vae_decoder"}
    missing = {"record", "step_recording"} - graphs
    with pytest.raises(UsageError, match="nothing that is built for runs graph"):
        Shapes(sizes).profiles(min(missing))


def test_sizes_are_joined_without_repetition(bundle: Bundle) -> None:
    one, both = (usual_sizes(bundle.manifest, sizes) for sizes in ([(16, 16)], [(16, 16), (16, 24), (16, 16)]))
    assert len(both["step"]) == 2 * len(one["step"])
    assert both["text_encoder"] == one["text_encoder"]
    assert joined([one, one]) == one


def test_what_cannot_be_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="prompts"):
        usual_sizes(bundle.manifest, [(16, 16)], [1000])
    with pytest.raises(UsageError, match="unknown record mode"):
        usual_sizes(bundle.manifest, [(16, 16)], modes=["twice"])
