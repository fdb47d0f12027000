"""Processes that are killed while they write: what they leave is removed by the next, and nothing else is."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from freeprompt.contract.files import atomic_folder, atomic_path, restore_folder
from freeprompt.contract.storage.temporary import Names, sweep

ROOT = Path(__file__).parents[2]
KILLS = 20


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def writer(folder: Path, code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has run ``code`` up to its ``ready()`` and is killed at the end."""
    script = f"""
import os, sys, time
from pathlib import Path
from freeprompt.contract import files
from freeprompt.contract.files import atomic_folder, atomic_path

def ready():
    print("ready", flush=True)

{textwrap.dedent(code)}
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as p:
        try:
            assert p.stdout is not None and p.stdout.readline() == b"ready\n"
            yield p
        finally:
            p.kill()


WRITES_A_FILE = """
with atomic_path(Path("out.png")) as path:
    path.write_bytes(b"half")
    ready()
    time.sleep(600)
"""
WRITES_A_FOLDER = """
with atomic_folder(Path("bundle"), overwrite=True) as path:
    (path / "sub").mkdir()
    (path / "sub" / "half").write_bytes(b"half")
    ready()
    time.sleep(600)
"""


def write_file(folder: Path) -> None:
    with atomic_path(folder / "out.png") as path:
        path.write_bytes(b"whole")


def write_folder(folder: Path) -> None:
    with atomic_folder(folder / "bundle", overwrite=True) as path:
        (path / "whole").write_bytes(b"whole")


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    for code, write, target in ((WRITES_A_FILE, write_file, "out.png"), (WRITES_A_FOLDER, write_folder, "bundle")):
        with writer(tmp_path, code) as first:
            (partial,) = names(tmp_path)
            write(tmp_path)
            assert names(tmp_path) == sorted([partial, target]), "it belongs to a living process"
            first.kill()
            first.wait()
            assert names(tmp_path) == sorted([partial, target])
            write(tmp_path)
            assert names(tmp_path) == [target]
        (tmp_path / target).rename(tmp_path.parent / target)


def test_only_what_has_exactly_such_a_name_and_kind_is_removed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_bytes(b"")
    digits = "0123456789abcdef"
    kept = [
        f".out-freeprompt-{digits}.jpg",
        f".out-freeprompt-{digits}.png.png",
        f".out-freeprompt-{digits[:-1]}.png",
        f".out-freeprompt-{digits.upper()}.png",
        f".out2-freeprompt-{digits}.png",
        f"out-freeprompt-{digits}.png",
        ".out-abcdefgh.png",
        f".bundle-freeprompt-{digits}x",
    ]
    for name in kept:
        (tmp_path / name).write_bytes(b"")
    for kind in (f".out-freeprompt-{digits}.png", f".bundle-freeprompt-{digits}"):
        (tmp_path / kind).symlink_to(elsewhere)
    os.mkfifo(tmp_path / ".out-freeprompt-0000000000000000.png")
    before = names(tmp_path)
    (tmp_path / ".out-freeprompt-1111111111111111.png").write_bytes(b"a leftover")
    (tmp_path / ".bundle-freeprompt-1111111111111111").mkdir()
    (tmp_path / ".bundle-freeprompt-1111111111111111" / "link").symlink_to(elsewhere)
    write_file(tmp_path)
    write_folder(tmp_path)
    assert names(tmp_path) == sorted([*before, "out.png", "bundle"])
    assert names(elsewhere) == ["kept"]


def test_another_users_leftovers_are_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leftover = tmp_path / ".out-freeprompt-0123456789abcdef.png"
    leftover.write_bytes(b"")
    monkeypatch.setattr(os, "geteuid", lambda: leftover.stat().st_uid + 1)
    write_file(tmp_path)
    assert names(tmp_path) == [leftover.name, "out.png"]


def test_without_locks_leftovers_stay_and_everything_else_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, and on some network file systems."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    leftover = tmp_path / ".out-freeprompt-0123456789abcdef.png"
    leftover.write_bytes(b"")
    for _ in range(2):
        write_file(tmp_path)
        write_folder(tmp_path)
    assert names(tmp_path) == [leftover.name, "bundle", "out.png"]


def test_a_name_taken_for_a_leftover_before_it_was_held_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making a temporary file and locking it lies a moment in which another writer may remove it."""
    opened, made = os.open, list[str]()

    def interfering(path: Path, flags: int, *args: int) -> int:
        descriptor = opened(path, flags, *args)
        if flags & os.O_EXCL and not made:
            made.append(Path(path).name)
            sweep(tmp_path, Names.of_file(tmp_path / "out.png"))
        return descriptor

    monkeypatch.setattr(os, "open", interfering)
    with atomic_path(tmp_path / "out.png") as path:
        assert made and path.name not in made
        path.write_bytes(b"whole")
    assert names(tmp_path) == ["out.png"]


KILLED_BETWEEN_THE_RENAMES = """
files.exchange = lambda one, other: False
replace = Path.replace

def stopping(self, to):
    if Path(to) == Path.cwd() / "bundle":
        ready()
        time.sleep(600)
    return replace(self, to)

Path.replace = stopping
with atomic_folder(Path("bundle"), overwrite=True) as path:
    (path / "new").write_bytes(b"new")
"""


def test_a_folder_moved_aside_by_a_killed_process_is_put_back(tmp_path: Path) -> None:
    """Where the system cannot exchange two names."""
    target = tmp_path / "bundle"
    write_folder(tmp_path)
    with writer(tmp_path, KILLED_BETWEEN_THE_RENAMES):
        assert not target.exists()
        assert not restore_folder(target), "a living process is about to put the new in its place"
    assert restore_folder(target) and names(target) == ["whole"]
    assert not restore_folder(target)
    with writer(tmp_path, KILLED_BETWEEN_THE_RENAMES):
        assert not target.exists()
    with contextlib.suppress(ZeroDivisionError), atomic_folder(target, overwrite=True):
        assert names(target) == ["whole"]
        _ = 1 / 0
    assert names(tmp_path) == ["bundle"] and names(target) == ["whole"]


def test_a_folder_is_there_at_every_moment_of_its_replacement(tmp_path: Path) -> None:
    code = """
ready()
while True:
    with atomic_folder(Path("bundle"), overwrite=True) as path:
        (path / "whole").write_bytes(b"whole")
"""
    write_folder(tmp_path)
    changes, last = 0, 0
    with writer(tmp_path, code):
        end = time.monotonic() + 10
        while changes < 200 and time.monotonic() < end:
            now = (tmp_path / "bundle").stat().st_ino  # not there: FileNotFoundError
            changes, last = changes + (now != last), now
    assert changes > 1, "it was not replaced while it was looked at"


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """Whole, the old or the new, whenever the kill comes; and one write later nothing else is there."""
    code = """
ready()
number = 0
while True:
    number = (number + 1) % 10
    with atomic_path(Path("out.png")) as path, path.open("wb") as file:
        for _ in range(64):
            file.write(b"%d" % number * 4096)
    with atomic_folder(Path("bundle"), overwrite=True) as path:
        for name in ("a", "b", "c"):
            (path / name).write_bytes(b"%d" % number * 4096)
"""
    rng, left = random.Random(1), 0
    write_file(tmp_path)
    for kill in range(KILLS):
        with writer(tmp_path, code) as process:
            time.sleep(rng.uniform(0.0, 0.05))
            process.send_signal(signal.SIGKILL)
        file = (tmp_path / "out.png").read_bytes()
        assert file == b"whole" or file == file[:1] * (64 * 4096), kill
        if (tmp_path / "bundle").exists():
            contents = {(tmp_path / "bundle" / name).read_bytes() for name in ("a", "b", "c")}
            assert len(contents) == 1 and len(contents.pop()) == 4096, kill
        left += len(names(tmp_path)) > 2
    assert left > KILLS // 4, "no kill came in the middle"
    write_file(tmp_path)
    write_folder(tmp_path)
    assert names(tmp_path) == ["bundle", "out.png"]
