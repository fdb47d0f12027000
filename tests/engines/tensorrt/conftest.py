"""Bundles to build for real: TensorRT-RTX's builder needs no GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freeprompt.contract.bundle import Bundle
from freeprompt.engines.artifacts.bundle_copy import copy_bundle
from freeprompt.engines.tensorrt.building.bundle_build import BundleBuild, Outcome, build_bundle
from tests.conftest import ROOT, cached_folder
from tests.engines.conftest import SIZE
from tests.shapes import shapes_of

Build = Callable[..., list[Outcome]]


@pytest.fixture(scope="session")
def half_bundle(tiny_checkpoint: Path) -> Path:
    """The small bundle in float16."""
    sources = (ROOT / "export", ROOT / "tests" / "tiny.py", ROOT / "tests" / "engines" / "tensorrt" / "conftest.py")
    with cached_folder("half-bundle", *sources) as (folder, fill):
        if fill:
            from freeprompt.export.exporter import ExportSettings, export_checkpoint

            export_checkpoint(tiny_checkpoint, folder / "bundle", ExportSettings("float16"))
        name = folder.name.split(".")[0]
    return ROOT / "build" / "tests" / name / "bundle"


@pytest.fixture(scope="session")
def rtx() -> Any:
    """TensorRT-RTX, which has no wheels for some systems."""
    pytest.importorskip("tensorrt_rtx_bindings")
    pytest.importorskip("polygraphy")
    from freeprompt.engines.tensorrt.library import load_library

    return load_library("tensorrt-rtx")


@pytest.fixture(scope="session", params=["float32", "float16"])
def built_once(
    request: pytest.FixtureRequest, rtx: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, list[Outcome], Path]:
    """As ``built``, and the home of the user who built it."""
    source = request.getfixturevalue("tiny_bundle" if request.param == "float32" else "half_bundle")
    folder = tmp_path_factory.mktemp("rtx")
    bundle = copy_bundle(Bundle.open(source, verify=False), folder / "bundle")
    wanted = BundleBuild(shapes_of(bundle.manifest, SIZE, rows="2"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(folder / "home"))
        return bundle, list(build_bundle(bundle, wanted, rtx, None)), folder / "home"


@pytest.fixture
def built(
    built_once: tuple[Bundle, list[Outcome], Path], own_signature: None, monkeypatch: pytest.MonkeyPatch
) -> tuple[Bundle, list[Outcome]]:
    """A bundle with an engine of each graph, at exact shapes, built by the user who runs the test."""
    bundle, outcomes, home = built_once
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    return bundle, outcomes
