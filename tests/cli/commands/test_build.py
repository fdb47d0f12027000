"""``freeprompt build``: which shapes its options come to. What is built of them: tests/engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from freeprompt.engines.shapes import Shapes
from tests.cli.runner import Outcome, assert_fails, call

Capture = pytest.CaptureFixture[str]
STAGES = {"text_encoder", "vae_encoder", "vae_decoder"}


class Built:
    """Stands for what builds: keeps what it is asked for."""

    shapes: Shapes
    graphs: tuple[str, ...] = ()

    def __call__(self, bundle: Any, shapes: Shapes, backend: Any, graphs: tuple[str, ...], *rest: Any) -> Iterator[Any]:
        self.shapes, self.graphs = shapes, graphs
        return iter(())

    def rows(self, graph: str) -> list[tuple[int, ...]]:
        """(rows, latents) of each profile."""
        return [(p.dims["rows"][2], p.dims["latents"][2]) for p in self.shapes.profiles(graph)]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Built:
    built = Built()
    monkeypatch.setattr("freeprompt.engines.select.create_backend", lambda name: None)
    monkeypatch.setattr("freeprompt.engines.warm.warm_bundle", built)
    return built


def build(capsys: Capture, bundle: Path, *options: object) -> Outcome:
    return call(capsys, "build", bundle, "--backend", "ort:tensorrt", "-q", *options)


@pytest.mark.parametrize(
    ("options", "step", "recorded"),
    [
        ((), [(1, 1), (2, 1), (3, 1)], [(2, 1)]),
        (("--prompts", 1, "--record", "none", "--record", "exact"), [(1, 1), (2, 1), (3, 1)], [(2, 1)]),
        # Three beside the source in eight rows, then the one that is left; recorded, all four.
        (("--prompts", 4), [(1, 1), (2, 1), (3, 1), (6, 3), (7, 3), (8, 4)], [(8, 4)]),
        (("--prompts", "1,2"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)], [(2, 1), (4, 2)]),
        (("--prompts", 2, "--max-rows", 3), [(1, 1), (2, 1), (3, 1)], [(2, 1)]),
        (("--rows", "1,2,3"), [(1, 1), (2, 1), (3, 1)], [(2, 1)]),
        (("--rows", "4:4"), [(4, 4)], [(4, 4)]),
    ],
)
def test_batches_of_the_options(
    tiny_bundle: Path,
    capsys: Capture,
    built: Built,
    options: tuple[object, ...],
    step: list[tuple[int, int]],
    recorded: list[tuple[int, int]],
) -> None:
    outcome = build(capsys, tiny_bundle, *options)
    assert outcome.code == 0, outcome.err
    assert built.rows("step") == step
    assert built.rows("step_recorded") == recorded


def test_a_mode_leaves_the_graphs_of_others_out(tiny_bundle: Path, capsys: Capture, built: Built) -> None:
    assert build(capsys, tiny_bundle, "--record", "none").code == 0
    assert set(built.shapes.sizes) == STAGES | {"step"}
    built.graphs = ("untouched",)
    outcome = build(capsys, tiny_bundle, "--record", "none", "--graph", "record")
    assert_fails(outcome, 2, "nothing that is built for runs graph 'record'")
    assert built.graphs == ("untouched",), "told before anything is built"


def test_sizes_and_recorded_rows(tiny_bundle: Path, capsys: Capture, built: Built) -> None:
    assert build(capsys, tiny_bundle, "--size", "64x64", "--size", "96x64", "--record-rows", 2).code == 0
    assert [p.dims["width"][2] for p in built.shapes.profiles("step")] == [16] * 3 + [24] * 3
    assert [p.dims["record_rows"][2] for p in built.shapes.profiles("step_recorded")] == [2, 2]
    assert built.rows("record") == [(2, 2)] * 2


@pytest.mark.parametrize("option", [("--prompts", 2), ("--record", "none"), ("--max-rows", 4)])
def test_rows_are_chosen_or_found(tiny_bundle: Path, capsys: Capture, option: tuple[object, ...]) -> None:
    assert_fails(build(capsys, tiny_bundle, "--rows", 2, *option), 2, f"{option[0]} would find them: leave one out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--prompts", "0"), "--prompts"),
        (("--prompts", "1,"), "--prompts"),
        (("--prompts", 300), "300 prompts are more than the limit of 256"),
        (("--size", "60x64"), "multiples of 8 pixels"),
        (("--max-rows", 2), "must be a whole number from 3 on"),
        (("--rows", "3:4"), "latents from 1 to the rows"),
    ],
)
def test_what_cannot_be_built_for(tiny_bundle: Path, capsys: Capture, options: tuple[object, ...], words: str) -> None:
    assert_fails(build(capsys, tiny_bundle, *options), 2, words)
