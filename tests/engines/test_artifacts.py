"""The files beside a bundle's engines: nothing is followed out of the bundle, or emptied, or believed unseen."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError, OutputError
from freeprompt.engines.artifacts.lock import folder_lock
from freeprompt.engines.artifacts.metadata import (
    MAX_METADATA_BYTES,
    decode_metadata,
    make_folder,
    read_metadata,
    save_with_metadata,
)
from freeprompt.engines.artifacts.signature import Signature
from freeprompt.engines.onnxruntime.cuda_notes import CudaNotes
from freeprompt.engines.onnxruntime.provider import tensorrt_options
from freeprompt.engines.tensorrt.library import FLAVOURS
from freeprompt.engines.tensorrt.store import EngineStore

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Noted:
    """What metadata might say."""

    version: int
    text: str
    seal: str = ""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file of the user's that nothing here may change."""
    path = tmp_path / "outside"
    path.write_bytes(b"precious")
    return path


def test_a_lock_file_is_not_followed_and_not_emptied(tmp_path: Path, outside: Path) -> None:
    (tmp_path / ".x.lock").symlink_to(outside)
    with pytest.raises(OutputError, match=r"\.x\.lock: it is a link"), folder_lock(tmp_path, "x"):
        pytest.fail("the block must not run")
    assert outside.read_bytes() == b"precious"
    (tmp_path / ".y.lock").write_bytes(b"what was there")
    with folder_lock(tmp_path, "y"):
        pass
    assert (tmp_path / ".y.lock").read_bytes() == b"what was there"
    os.mkfifo(tmp_path / ".z.lock")
    (tmp_path / ".d.lock").mkdir()
    for name in ("z", "d"):
        with pytest.raises(OutputError, match="cannot lock"), folder_lock(tmp_path, name):
            pytest.fail("the block must not run")


def test_a_lock_in_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot lock"), folder_lock(tmp_path / "none", "x"):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("linked", ["engines", "engines/tensorrt"])
def test_nothing_is_written_through_a_linked_engines_folder(bundle: Bundle, tmp_path: Path, linked: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (bundle.path / linked).parent.mkdir(exist_ok=True)
    (bundle.path / linked).symlink_to(elsewhere)
    with pytest.raises(OutputError, match="is a link"), EngineStore(bundle, FLAVOURS["tensorrt"], None).lock("x"):
        pytest.fail("the block must not run")
    with pytest.raises(OutputError, match="is a link"):
        save_with_metadata(bundle.engines / "tensorrt" / "a.engine", b"engine", b"{}")
    if linked == "engines":
        with pytest.raises(OutputError, match="is a link"), CudaNotes(bundle, "1.32", "").lock("step"):
            pytest.fail("the block must not run")
        with pytest.raises(OutputError, match="is a link"):
            tensorrt_options(bundle)
    assert list(elsewhere.iterdir()) == []


def test_engines_and_metadata_are_not_written_through_links(bundle: Bundle, outside: Path) -> None:
    folder = bundle.engines / "tensorrt"
    make_folder(folder)
    (folder / "a.engine").symlink_to(outside)
    with pytest.raises(OutputError, match="it is a link"):
        save_with_metadata(folder / "a.engine", b"engine", b"{}")
    (folder / "b.json").symlink_to(outside)
    save_with_metadata(folder / "b.engine", b"engine", b"{}")  # in the link's place
    assert not (folder / "b.json").is_symlink() and (folder / "b.json").read_bytes() == b"{}"
    (folder / "c.json").mkdir()
    with pytest.raises(OutputError, match=r"cannot replace .*c\.json"):
        save_with_metadata(folder / "c.engine", b"engine", b"{}")
    assert outside.read_bytes() == b"precious"


def test_metadata_that_are_no_files_of_their_own_are_refused(tmp_path: Path, outside: Path) -> None:
    for name in ("link", "pipe", "zero", "large", "none", "engine"):
        (tmp_path / f"{name}.engine").write_bytes(b"engine")
    (tmp_path / "link.json").symlink_to(outside)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(MAX_METADATA_BYTES + 1)
    (tmp_path / "engine.engine").unlink()
    (tmp_path / "engine.engine").symlink_to(outside)
    (tmp_path / "engine.json").write_bytes(b"{}")
    for name, message in [
        ("link", "it is a link"),
        ("pipe", "not a regular file"),
        ("zero", "it is a link"),
        ("large", "larger than"),
        ("none", "it has no metadata"),
        ("engine", "it is a link"),
    ]:
        with pytest.raises(BackendError, match=message):
            read_metadata(tmp_path / f"{name}.engine")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"version": 1, "text": "a", "text": "b"}', "'text' is there twice"),
        (b'{"version": 2, "version": 1, "text": "a"}', "'version' is there twice"),
        (b'{"version": 1, "text": "a", "more": NaN}', "NaN is not a number"),
        (b'{"version": 1, "text": "a", "more": 1e999}', "too large for a number"),
        (b"[" * 100_000, "cannot be read"),
        (b"\xff", "cannot be read"),
    ],
)
def test_metadata_that_parsers_disagree_about(data: bytes, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        decode_metadata(data, Noted, 1)


def test_a_seal_of_another_length_is_made_anew(tmp_path: Path) -> None:
    """With an empty secret everybody's signature would be the same."""
    path, noted = tmp_path / "data" / "engine-seal", Noted(1, "built here")
    path.parent.mkdir()
    signatures = set[str]()
    for content in (b"", b"x" * 31, b"x" * 33):
        path.write_bytes(content)
        path.chmod(0o600)
        assert not Signature(path).holds(Noted(1, "built here", signatures.pop() if signatures else ""))
        signed = Signature(path).apply(noted)
        assert Signature(path).holds(signed) and len(path.read_bytes()) == 32
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert signed.seal not in signatures
        signatures.add(signed.seal)


def test_a_seal_that_may_be_anothers_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, noted = tmp_path / "engine-seal", Noted(1, "built here")
    signed = Signature(path).apply(noted)
    assert Signature(path).holds(signed)
    secret = path.read_bytes()
    for mode in (0o640, 0o604, 0o620, 0o666):
        path.chmod(mode)
        assert not Signature(path).holds(signed)
        with pytest.raises(OutputError, match="others may read or write it"):
            Signature(path).apply(noted)
    path.chmod(0o600)
    path.rename(tmp_path / "other")
    path.symlink_to("other")
    assert not Signature(path).holds(signed)
    with pytest.raises(OutputError, match="it is a link"):
        Signature(path).apply(noted)
    path.unlink()
    os.mkfifo(path)
    assert not Signature(path).holds(signed)
    with pytest.raises(OutputError, match="not a regular file"):
        Signature(path).apply(noted)
    path.unlink()
    (tmp_path / "other").rename(path)
    assert Signature(path).holds(signed) and path.read_bytes() == secret
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert not Signature(path).holds(signed)
    with pytest.raises(OutputError, match="belongs to another user"):
        Signature(path).apply(noted)


def test_processes_that_make_the_secret_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / "data" / "engine-seal"
    code = (
        "import sys, pathlib; from freeprompt.engines.artifacts.signature import Signature; "
        "print(Signature(pathlib.Path(sys.argv[1])).token('x'))"
    )
    command = [sys.executable, "-c", code, str(path)]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    tokens = {process.communicate(timeout=300)[0] for process in started}
    assert len(tokens) == 1 and len(tokens.pop().strip()) == 16
