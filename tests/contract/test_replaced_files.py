"""What is replaced: its permissions and links are kept, whatever its name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from freeprompt.cli.writing import check_outputs
from freeprompt.contract.errors import OutputError
from freeprompt.contract.files import atomic_folder, atomic_path, check_writable


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def umask() -> Iterator[int]:
    mask = 0o027
    before = os.umask(mask)
    yield mask
    os.umask(before)


@pytest.fixture
def old_bundle(tmp_path: Path) -> Path:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    return target


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, umask: int, mode: int) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    target.chmod(mode)
    with atomic_path(target) as path:
        assert path.stat().st_mode & 0o077 == 0, "more may be read of the new than of the old while it is written"
        path.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == mode


def test_a_replaced_folder_keeps_its_permissions(old_bundle: Path, umask: int) -> None:
    target = old_bundle
    target.chmod(0o710)
    with atomic_folder(target, overwrite=True) as folder:
        assert folder.stat().st_mode & 0o077 == 0
    assert target.stat().st_mode & 0o777 == 0o710


def test_a_file_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    real, link, missing = tmp_path / "there" / "real.png", tmp_path / "here" / "a.png", tmp_path / "here" / "b.png"
    real.write_bytes(b"old")
    link.symlink_to(real)
    missing.symlink_to("../there/made.png")
    for target in (link, missing):
        with atomic_path(target) as path:
            path.write_bytes(b"new")
            assert path.parent == real.parent, "a rename must stay on one file system"
        assert target.is_symlink() and target.read_bytes() == b"new"
    assert names(real.parent) == ["made.png", "real.png"]
    assert names(link.parent) == ["a.png", "b.png"]


def test_a_folder_is_written_through_a_link(old_bundle: Path, tmp_path: Path) -> None:
    target = old_bundle
    (tmp_path / "link").symlink_to(target)
    with atomic_folder(tmp_path / "link", overwrite=True) as folder:
        (folder / "new").write_bytes(b"new")
    assert names(target) == ["new"]
    assert (tmp_path / "link").is_symlink() and names(tmp_path) == ["bundle", "link"]


def test_links_can_be_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OutputError, match="it is a link"), atomic_path(tmp_path / "link", follow_links=False):
        pytest.fail("the block must not run")
    assert (tmp_path / "real").read_bytes() == b"old" and (tmp_path / "link").is_symlink()


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "loop"):
        with pytest.raises(OutputError, match="it exists and is not a file"), atomic_path(tmp_path / name):
            pytest.fail("the block must not run")
        with pytest.raises(OutputError, match="it exists and is not a file"):
            check_writable(tmp_path / name)
    assert names(tmp_path) == ["loop", "pipe"]


NAMES = ["x" * 245 + ".png", "x" * 251 + ".png", "ü" * 125 + ".png", "字" * 83 + ".png", "x" * 255, "y." + "x" * 253]


@pytest.mark.parametrize("name", NAMES)
def test_names_as_long_as_the_file_system_takes(tmp_path: Path, name: str) -> None:
    assert len(os.fsencode(name)) >= 249
    target = tmp_path / name
    check_writable(target)
    if target.suffix == ".png":
        check_outputs([target])
    for content in (b"one", b"two"):
        with atomic_path(target) as path:
            path.write_bytes(content)
            assert path.suffix in (target.suffix, "")
        assert target.read_bytes() == content
    target.unlink()
    for inside in ("one", "two"):
        with atomic_folder(target, overwrite=True) as folder:
            (folder / inside).write_bytes(b"")
        assert names(target) == [inside]
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["x" * 256, "a\0b", "\ud800"], ids=["long", "NUL", "surrogate"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="cannot write"), atomic_path(tmp_path / name):
        pytest.fail("the block must not run")
    with pytest.raises(OutputError, match="cannot write"), atomic_folder(tmp_path / name):
        pytest.fail("the block must not run")
    with pytest.raises(OutputError, match="cannot write"):
        check_writable(tmp_path / name)
    assert names(tmp_path) == []
