"""Files and folders are whole or absent, whatever interrupts the writing."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from freeprompt.contract import files
from freeprompt.contract.errors import FreePromptError, OutputError
from freeprompt.contract.files import atomic_folder, atomic_path, file_to_sha256, read_regular

INTERRUPTIONS = [KeyboardInterrupt(), ValueError("bug"), SystemExit(3), FreePromptError("known")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def umask() -> Iterator[int]:
    mask = 0o027
    before = os.umask(mask)
    yield mask
    os.umask(before)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_over_chunk_borders(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    assert file_to_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_file_is_whole_and_alone(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    with atomic_path(target) as path:
        assert path.parent == tmp_path and path.suffix == ".png"
        path.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["out.png"]


@pytest.mark.parametrize("interruption", INTERRUPTIONS, ids=lambda e: type(e).__name__)
def test_interrupted_file_leaves_the_old(tmp_path: Path, interruption: BaseException) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    with pytest.raises(type(interruption)) as raised, atomic_path(target) as path:
        path.write_bytes(b"half")
        raise interruption
    assert raised.value is interruption
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["out.png"]


def test_file_permissions_follow_umask(tmp_path: Path, umask: int) -> None:
    with atomic_path(tmp_path / "out.npy") as path:
        path.write_bytes(b"x")
    assert (tmp_path / "out.npy").stat().st_mode & 0o777 == 0o666 & ~umask
    assert os.umask(umask) == umask, "the process's mask was changed"


def test_folder_permissions_follow_umask(tmp_path: Path, umask: int) -> None:
    with atomic_folder(tmp_path / "bundle"):
        pass
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o777 & ~umask


def test_full_disk_names_the_file(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    message = r"out\.bin.*No space left"
    with pytest.raises(OutputError, match=message) as raised, atomic_path(target) as path:
        path.write_bytes(b"some of it")
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"the rest")
    cause = raised.value.__cause__
    assert isinstance(cause, OSError) and cause.errno == errno.ENOSPC
    assert names(tmp_path) == []


def test_full_disk_while_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OutputError, match="No space left"), atomic_path(tmp_path / "x") as path:
        path.write_bytes(b"x")
    with pytest.raises(OutputError, match="No space left"), atomic_folder(tmp_path / "y") as path:
        (path / "x").write_bytes(b"x")
    assert names(tmp_path) == []


def test_file_in_no_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"none/out\.png: No such file or directory"),
        atomic_path(tmp_path / "none" / "out.png"),
    ):
        pytest.fail("the block must not run")


def test_file_where_a_folder_is(tmp_path: Path) -> None:
    (tmp_path / "out.png").mkdir()
    with pytest.raises(OutputError, match="Is a directory"), atomic_path(tmp_path / "out.png") as p:
        p.write_bytes(b"x")
    assert names(tmp_path) == ["out.png"]


def test_folder_whose_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OutputError, match="cannot write"), atomic_folder(tmp_path / "file" / "b"):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["file"]


def test_folder_is_whole_and_alone(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_bytes(b"x")
        assert not target.exists()
    assert (target / "sub" / "file").read_bytes() == b"x"
    assert names(tmp_path / "deep") == ["bundle"]


def test_existing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "old").write_bytes(b"old")
    with (
        pytest.raises(OutputError, match="bundle exists already"),
        atomic_folder(tmp_path / "bundle"),
    ):
        pytest.fail("the block must not run")
    assert names(tmp_path / "bundle") == ["old"]


def old_bundle(folder: Path) -> Path:
    target = folder / "bundle"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    return target


def test_overwriting_replaces_everything(tmp_path: Path) -> None:
    target = old_bundle(tmp_path)
    with atomic_folder(target, overwrite=True) as folder:
        (folder / "new").write_bytes(b"new")
        assert names(target) == ["old"], "the old is whole until the new is"
    assert names(target) == ["new"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("interruption", INTERRUPTIONS, ids=lambda e: type(e).__name__)
def test_interrupted_overwriting_keeps_the_old(tmp_path: Path, interruption: BaseException) -> None:
    target = old_bundle(tmp_path)
    with pytest.raises(type(interruption)), atomic_folder(target, overwrite=True) as folder:
        (folder / "new").write_bytes(b"half")
        raise interruption
    assert (target / "old").read_bytes() == b"old"
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize(
    "interruption",
    [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()],
    ids=["disk", "^C"],
)
def test_overwriting_failing_at_the_last_rename_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    """Where the system cannot exchange two names."""
    target = old_bundle(tmp_path)
    replace = Path.replace
    failures = [interruption]
    monkeypatch.setattr(files, "exchange", lambda one, other: False)

    def failing(self: Path, to: Path) -> Path:
        # The first rename moves the old away; the one that puts the new in its place fails, once.
        if Path(to) == target and failures:
            raise failures.pop()
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises((OutputError, KeyboardInterrupt)), atomic_folder(target, True) as folder:
        (folder / "new").write_bytes(b"new")
    assert not failures
    assert names(target) == ["old"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize(
    "interruption",
    [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()],
    ids=["disk", "^C"],
)
def test_overwriting_failing_at_the_exchange_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    target = old_bundle(tmp_path)

    def failing(one: Path, other: Path) -> bool:
        raise interruption

    monkeypatch.setattr(files, "exchange", failing)
    with pytest.raises((OutputError, KeyboardInterrupt)), atomic_folder(target, True) as folder:
        (folder / "new").write_bytes(b"new")
    assert names(target) == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_a_file_is_not_overwritten_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(b"mine")
    with (
        pytest.raises(OutputError, match="bundle exists and is not a folder"),
        atomic_folder(tmp_path / "bundle", True),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "bundle").read_bytes() == b"mine"


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, int]] = []
    sync, replace = os.fsync, Path.replace

    def recorded_sync(descriptor: int) -> None:
        events.append(("sync", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def recorded_replace(self: Path, to: Path) -> Path:
        events.append(("rename", self.stat().st_ino))
        return replace(self, to)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    parent = tmp_path.stat().st_ino
    with atomic_path(tmp_path / "file") as path:
        path.write_bytes(b"x")
    file = (tmp_path / "file").stat().st_ino
    assert events == [("sync", file), ("rename", file), ("sync", parent)]
    events.clear()
    with atomic_folder(tmp_path / "bundle") as folder:
        (folder / "sub").mkdir()
        (folder / "a").write_bytes(b"a")
        (folder / "sub" / "b").write_bytes(b"b")
    made = {("sync", (tmp_path / "bundle" / name).stat().st_ino) for name in ("", "a", "sub", "sub/b")}
    top = (tmp_path / "bundle").stat().st_ino
    assert set(events[:-2]) == made and events[-2:] == [("rename", top), ("sync", parent)]


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    file, link, pipe = tmp_path / "file", tmp_path / "link", tmp_path / "pipe"
    file.write_bytes(b"12345")
    link.symlink_to("file")
    os.mkfifo(pipe)
    assert read_regular(file, 5) == read_regular(link, 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_regular(file, 4)
    with pytest.raises(OSError, match="it is a link"):
        read_regular(link, 5, follow_links=False)
    for special in (pipe, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            read_regular(special, 1 << 30)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path, 5)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none", 5)
