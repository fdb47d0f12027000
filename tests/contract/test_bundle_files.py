"""What was checked is what is used: whatever happens to a bundle's folder after it was opened."""

from __future__ import annotations

import copy
import gc
import hashlib
import os
import pickle
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from freeprompt import Editor
from freeprompt.contract import bundle_files
from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BundleError, OutputError
from freeprompt.engines.onnxruntime import weights
from freeprompt.engines.onnxruntime.backend import OnnxRuntimeBackend
from tests.damage import copy_bundle, edit_manifest, read_manifest

PICTURE = np.kron(np.arange(16).reshape(4, 4) * 16, np.ones((16, 16))).astype(np.uint8)
GRAPHS = ("text_encoder", "vae_encoder", "step", "record", "step_recorded", "vae_decoder")


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    return copy_bundle(tiny_bundle, tmp_path / "bundle")


@pytest.fixture(params=["kept", "read again"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether files are kept in memory, as of a small bundle, or read when they are used, as of a large one."""
    if request.param != "kept":
        monkeypatch.setattr(bundle_files, "KEPT_BYTES", 0)
        monkeypatch.setattr(weights, "KEPT_BYTES", 0)
    return bool(request.param == "kept")


def edit(bundle: Bundle) -> Any:
    """Opens every graph that an edit uses."""
    editor = Editor(bundle, OnnxRuntimeBackend("cpu", threads=1))
    inversion = editor.invert(PICTURE, 1)
    return np.asarray(editor.edit(inversion, "a red cat", replace_fraction=1.0)[0])


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path) -> Any:
    return edit(Bundle.open(tiny_bundle))


def files_of(folder: Path) -> list[Path]:
    return [folder / file["path"] for file in read_manifest(folder)["files"]]


def replace_files(folder: Path) -> None:
    """As ``cp`` of another export beside and a rename, file by file."""
    for path in files_of(folder):
        other = path.with_name("other")
        other.write_bytes(path.read_bytes()[::-1])
        other.replace(path)


def replace_folder(folder: Path) -> None:
    folder.rename(folder.with_name("old"))
    folder.mkdir()


def overwrite(folder: Path) -> None:
    """As ``cp`` of another export over it: the same files, other bytes."""
    for path in files_of(folder):
        with path.open("r+b") as file:
            data = file.read()
            file.seek(0)
            file.write(data[::-1])


def cut(folder: Path) -> None:
    for path in files_of(folder):
        os.truncate(path, 1)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("change", [replace_files, replace_folder, shutil.rmtree])
def test_another_bundle_at_its_place_is_not_used(
    folder: Path, expected: Any, kept: bool, change: Callable[[Path], None], verify: bool
) -> None:
    bundle = Bundle.open(folder, verify)
    hashes = [bundle.graph_sha256(graph) for graph in GRAPHS]
    change(folder)
    np.testing.assert_array_equal(edit(bundle), expected)
    assert [bundle.graph_sha256(graph) for graph in GRAPHS] == hashes


@pytest.mark.parametrize("change", [overwrite, cut])
def test_files_that_are_written_to_are_kept_or_refused(
    folder: Path, expected: Any, kept: bool, change: Callable[[Path], None]
) -> None:
    bundle = Bundle.open(folder)
    change(folder)
    if kept:
        np.testing.assert_array_equal(edit(bundle), expected)
    else:
        for path in files_of(folder):
            with pytest.raises(BundleError, match=f"{path.name} (is damaged|was cut to 1 bytes)"):
                bundle.read(path.name)
        with pytest.raises(BundleError):
            edit(bundle)


@pytest.mark.parametrize("change", [overwrite, cut])
def test_an_open_session_does_not_see_its_files_any_more(
    folder: Path, expected: Any, kept: bool, change: Callable[[Path], None]
) -> None:
    """A mapped file that is cut takes the process down with the next page that is read."""
    editor = Editor(Bundle.open(folder), OnnxRuntimeBackend("cpu", threads=1))
    for graph in GRAPHS:
        assert editor.pipeline.graphs[graph].inputs
    editor.pipeline.embed(("", "a red cat"))
    change(folder)
    inversion = editor.invert(PICTURE, 1)
    got = editor.edit(inversion, "a red cat", replace_fraction=1.0)[0]
    np.testing.assert_array_equal(np.asarray(got), expected)


@pytest.mark.skipif(
    not hasattr(ort.SessionOptions, "add_external_initializers_from_files_in_memory"),
    reason="this onnxruntime cannot copy weights from memory",
)
def test_weights_that_the_library_copies_are_used_without_the_memory(
    folder: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large weights are not held beside the library's own copy of them; where it cannot copy they are."""
    monkeypatch.setattr(bundle_files, "KEPT_BYTES", 0)
    monkeypatch.setattr(weights, "KEPT_BYTES", 0)
    bundle = Bundle.open(folder)
    session: Any = OnnxRuntimeBackend("cpu", threads=1).open(bundle, "vae_decoder")
    assert session._session.freeprompt_memory == ()
    assert not bundle.files._shared, "freed"
    np.testing.assert_array_equal(edit(bundle), expected)


def test_weights_that_the_library_refers_to_are_shared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_files, "KEPT_BYTES", 0)
    bundle = Bundle.open(folder)
    backend = OnnxRuntimeBackend("cpu", threads=1)
    sessions: list[Any] = [backend.open(bundle, graph) for graph in ("step", "record")]
    held = [session._session.freeprompt_memory[0].obj for session in sessions]
    assert held[0] is held[1]
    memory = weakref.ref(held[0])
    del held, sessions
    gc.collect()
    assert memory() is None


def test_each_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so hashed once, since it is while it is read; however many graphs share its weights."""
    read, read_at = [0], bundle_files._read_at

    def counting_read(descriptor: int, part: memoryview, at: int) -> int:
        count = read_at(descriptor, part, at)
        read[0] += count
        return count

    monkeypatch.setattr(bundle_files, "_read_at", counting_read)
    bundle = Bundle.open(folder)
    edit(bundle)
    total = sum(path.stat().st_size for path in files_of(folder))
    assert read == [total]


def test_a_relative_path_is_that_of_where_it_was_opened(
    folder: Path, expected: Any, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    bundle = Bundle.open("bundle", verify=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(edit(bundle), expected)
    assert bundle.path == folder
    assert bundle.engines == folder / "engines"


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_descriptors_are_closed_with_the_last_copy(folder: Path, kept: bool) -> None:
    before = open_descriptors()
    for verify in (True, False):
        bundle = Bundle.open(folder, verify)
        other = replace(bundle, sha256="0" * 64)
        assert open_descriptors() == before + (0 if kept and verify else len(bundle.manifest.files))
        del bundle
        assert other.read("tokenizer.json")
        del other
        gc.collect()
        assert open_descriptors() == before
    (folder / "unet.weights").unlink()
    with pytest.raises(BundleError):
        Bundle.open(folder)
    gc.collect()
    assert open_descriptors() == before


def test_copies_are_of_the_same_version_and_pickles_are_opened_again(folder: Path, expected: Any, kept: bool) -> None:
    bundle = Bundle.open(folder)
    pickled = pickle.dumps(bundle)
    again: Bundle = pickle.loads(pickled)  # noqa: S301  (the test's own)
    assert again == bundle and again.files is not bundle.files
    np.testing.assert_array_equal(edit(again), expected)
    replace_files(folder)
    for one in (copy.copy(bundle), copy.deepcopy(bundle)):
        assert one == bundle
        np.testing.assert_array_equal(edit(one), expected)
    with pytest.raises(BundleError, match="is damaged"):
        pickle.loads(pickled)  # noqa: S301


def test_what_is_no_plain_file(folder: Path) -> None:
    """A pipe without a writer would be waited for."""
    (folder / "step.onnx").unlink()
    os.mkfifo(folder / "step.onnx")
    with pytest.raises(BundleError, match=r"step\.onnx is missing"):
        Bundle.open(folder)


def test_a_name_that_the_manifest_does_not_list(folder: Path) -> None:
    (folder / "more").write_bytes(b"x")
    with pytest.raises(BundleError, match="has no file 'more'"):
        Bundle.open(folder).read("more")


def test_empty_files(folder: Path) -> None:
    (folder / "notes.txt").write_bytes(b"")
    empty = {"path": "notes.txt", "bytes": 0, "sha256": hashlib.sha256().hexdigest()}
    edit_manifest(folder, lambda manifest: manifest["files"].append(empty))
    assert Bundle.open(folder).read("notes.txt") == b""


def test_snapshots_are_private_whole_and_removed(folder: Path, kept: bool) -> None:
    bundle = Bundle.open(folder)
    whole = {path.name: path.read_bytes() for path in files_of(folder)}
    replace_files(folder)
    with bundle.graph_snapshot("record", fused=True) as made:
        found = {path.name: path.read_bytes() for path in made.iterdir()}
        assert found == {name: whole[name] for name in ("record.fused.onnx", "unet.weights")}
        assert made.stat().st_mode & 0o777 == 0o700
    assert not made.exists()


def test_a_snapshot_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(folder)
    monkeypatch.setattr("tempfile.tempdir", str(folder / "none"))
    with pytest.raises(OutputError, match=r"cannot copy the bundle's files to .*none"), bundle.graph_snapshot("step"):
        pass
