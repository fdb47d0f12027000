"""What the contract says of graphs, against a bundle that was exported and against what engines do with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from freeprompt.contract import graphs
from freeprompt.contract.bundle import Bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def test_the_names_are_those_of_a_bundle(bundle: Bundle) -> None:
    """Literals: the names are part of the bundle's format, and no constant may change them."""
    names = ["record", "step", "step_recorded", "step_recording", "text_encoder", "vae_decoder", "vae_encoder"]
    assert sorted(bundle.manifest.graphs) == names
    assert sorted({*graphs.NEEDED_GRAPHS, *graphs.RECORDING_GRAPHS}) == names
    assert sorted(graphs.manifest_to_signatures(bundle.manifest)) == names


def test_recorded_rows_go_where_the_names_say(bundle: Bundle) -> None:
    recorded = {graphs.record_name(layer.number) for layer in bundle.manifest.layers if layer.recordable}
    takes, gives = set(), set()
    for name, spec in bundle.manifest.graphs.items():
        takes |= {name} if recorded <= {tensor.name for tensor in spec.inputs} else set()
        gives |= {name} if recorded <= {tensor.name for tensor in spec.outputs} else set()
    assert recorded
    assert takes == {graphs.STEP_RECORDED}
    assert gives == {graphs.STEP_RECORDING, graphs.RECORD}
    assert takes | gives == set(graphs.RECORDING_GRAPHS)


def test_graphs_of_the_unet_share_its_weights_and_no_other_has_them(bundle: Bundle) -> None:
    for name in bundle.manifest.graphs:
        shares = b"unet.weights" in bundle.read(bundle.graph_name(name, fused=False))
        assert shares == (name in graphs.UNET_GRAPHS) == (graphs.weights_owner(name) == "unet"), name


@pytest.mark.parametrize("graph", [*graphs.NEEDED_GRAPHS, *graphs.RECORDING_GRAPHS])
def test_padded_dimensions_are_first_axes(bundle: Bundle, graph: str) -> None:
    """What is left of a buffer must lie at its end."""
    padded = set(graphs.padded_dimensions(graph))
    spec = bundle.manifest.graph(graph)
    assert all(not padded.intersection(tensor.shape[1:]) for tensor in (*spec.inputs, *spec.outputs))


def test_no_file_tells_graphs_apart_by_how_their_names_begin() -> None:
    sources = [path for room in ("freeprompt", "engines", "runtime", "export") for path in (ROOT / room).rglob("*.py")]
    assert [
        str(path) for path in sources if re.search(r"""startswith\(\(?["'](step|record["'])""", path.read_text())
    ] == []
