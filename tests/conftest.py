"""Shared fixtures. The small pipeline is exported once; the bundle is kept under build/ while export/ is unchanged."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

# Before any test imports onnxruntime: it turns the library's telemetry off.
import freeprompt  # noqa: F401

ROOT = Path(__file__).parents[1]
# On models this small threads that wait for each other cost far more than two threads gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Where it is set, Python holds nothing back that a stream does not take; users' processes do.
os.environ.pop("PYTHONUNBUFFERED", None)
# What runtimes have shown to compute right; not in the home of whoever runs the tests.
os.environ.setdefault("FREEPROMPT_CACHE", str(ROOT / "build" / "tests" / "cache"))
# A shell starts what it puts in the background with Ctrl-C ignored; tests that send one, to themselves or to a process
# they start, would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def cached_folder(name: str, *sources: Path) -> Iterator[tuple[Path, bool]]:
    """A folder under build/ named by the content of ``sources``; True if it has to be filled."""
    # What is made by one version is not what another makes.
    digest = hashlib.sha256(" ".join(map(version, ("torch", "transformers", "diffusers"))).encode())
    for source in sources:
        for path in [source] if source.is_file() else sorted(source.rglob("*.py")):
            digest.update(path.read_bytes())
    folder = ROOT / "build" / "tests" / f"{name}-{digest.hexdigest()[:16]}"
    if folder.exists():
        yield folder, False
        return
    # A name of its own: two test runs at once must not fill, or empty, the same folder.
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial, True
    with contextlib.suppress(OSError):  # the other run was first
        partial.rename(folder)
    shutil.rmtree(partial, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """A diffusers folder with the weights of ``tests.tiny.tiny_pipeline``."""
    with cached_folder("checkpoint", ROOT / "tests" / "tiny.py") as (folder, fill):
        if fill:
            # Imported here: PyTorch takes long to load, and the folder is usually there.
            from freeprompt.export.checkpoint.load import quiet
            from tests.tiny import tiny_pipeline

            with quiet():
                tiny_pipeline().save_pretrained(folder)
        name = folder.name.split(".")[0]
    return ROOT / "build" / "tests" / name


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """The bundle exported from ``tiny_checkpoint`` in float32 with every graph. Read-only: copy before changing it."""
    contract = (ROOT / "freeprompt" / "contract" / name for name in ("manifest.py", "graphs.py"))
    sources = (ROOT / "export", ROOT / "tests" / "tiny.py", *contract)
    with cached_folder("bundle", *sources) as (folder, fill):
        if fill:
            from freeprompt.export.exporter import export_checkpoint

            export_checkpoint(tiny_checkpoint, folder / "bundle")
        name = folder.name.split(".")[0]
    return ROOT / "build" / "tests" / name / "bundle"
