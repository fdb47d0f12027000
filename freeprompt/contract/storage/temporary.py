"""Temporary names beside a target: held while they are written, and removed by the next writer if that was killed.

Whether a process is still at work is told by a lock that ends with it, not by a number or an age: what can be locked is
nobody's. Where there are no such locks (Windows, some network file systems) leftovers stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from freeprompt.contract.storage.locks import is_at, try_lock

# Of a file's name, in bytes, on every file system in use.
_NAME_BYTES = 255
# A writer chooses its format by the suffix; what is longer than this is no format's.
_SUFFIX_BYTES = 32
_RANDOM_DIGITS = 16
_ATTEMPTS = 100


@dataclass(frozen=True)
class Names:
    """Names of one kind for one target: ``prefix``, 16 random hexadecimal digits, ``suffix``."""

    prefix: str
    suffix: str

    @classmethod
    def of_file(cls, target: Path) -> Names:
        """``.out-freeprompt-0123456789abcdef.png`` for ``out.png``."""
        suffix = target.suffix if len(os.fsencode(target.suffix)) <= _SUFFIX_BYTES else ""
        return cls._of(target, target.stem, "-freeprompt-", suffix)

    @classmethod
    def of_folder(cls, target: Path) -> Names:
        """As ``of_file``, of a whole name."""
        return cls._of(target, target.name, "-freeprompt-", "")

    @classmethod
    def of_old(cls, target: Path) -> Names:
        """For a folder that is moved aside."""
        return cls._of(target, target.name, "-freeprompt-old-", "")

    @classmethod
    def _of(cls, target: Path, stem: str, mark: str, suffix: str) -> Names:
        room = _NAME_BYTES - len(f".{mark}") - _RANDOM_DIGITS - len(os.fsencode(suffix))
        if len(os.fsencode(stem)) > room:
            # Cut between characters, and told from other targets that begin alike.
            digest = "-" + hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
            while len(os.fsencode(stem)) > room - len(digest):
                stem = stem[:-1]
            stem += digest
        return cls(f".{stem}{mark}", suffix)

    def fresh(self) -> str:
        """A new name."""
        return self.prefix + secrets.token_hex(_RANDOM_DIGITS // 2) + self.suffix

    def found_in(self, folder: Path) -> list[Path]:
        """What has such a name in a folder that may not be there."""
        pattern = re.compile(f"{re.escape(self.prefix)}[0-9a-f]{{{_RANDOM_DIGITS}}}{re.escape(self.suffix)}")
        try:
            with os.scandir(folder) as entries:
                return [folder / entry.name for entry in entries if pattern.fullmatch(entry.name)]
        except OSError:  # a folder that may be written and not be listed
            return []


@dataclass
class Temporary:
    """A file or folder that this process is writing; ``descriptor`` holds it, where it can be held."""

    path: Path
    descriptor: int | None = None

    @classmethod
    def file(cls, folder: Path, names: Names, mode: int) -> Temporary:
        """A new empty file. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        for path in _fresh_paths(folder, names):
            with contextlib.suppress(FileExistsError):
                made = cls(path, os.open(path, flags, mode))
                if made._hold():
                    return made
        raise AssertionError

    @classmethod
    def folder(cls, folder: Path, names: Names, mode: int) -> Temporary:
        """A new empty folder. Raises OSError."""
        for path in _fresh_paths(folder, names):
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode)
                made = cls(path)
                with contextlib.suppress(OSError):  # on Windows a folder cannot be opened; below: it is gone already
                    made.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
                if made._hold():
                    return made
        raise AssertionError

    def close(self) -> None:
        """Let go of it."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def remove(self) -> None:
        """Remove it, if it is still there under this name, and let go of it."""
        _remove(self.path)
        self.close()

    def _hold(self) -> bool:
        """Lock it. False: in the moment before that, another process took it for a leftover and removes it."""
        if self.descriptor is None:
            return self.path.exists()
        held = try_lock(self.descriptor)
        if held and is_at(self.path, self.descriptor):
            return True
        self.close()  # an open file could not be renamed on Windows
        return held is None


def sweep(folder: Path, *kinds: Names) -> None:
    """Remove leftovers of these names: this user's own files and folders that no living process holds."""
    for path in (path for names in kinds for path in names.found_in(folder)):
        with claimed(path) as is_left:
            if is_left:
                _remove(path)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold what another process may have left at ``path``.

    Gives True if it is held now: a file or folder of this user's, no link, that no living process holds.
    """
    descriptor = None
    try:
        descriptor = _open_own(path)
        yield descriptor is not None and try_lock(descriptor) is True and is_at(path, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open_own(path: Path) -> int | None:
    if not hasattr(os, "O_NOFOLLOW") or not hasattr(os, "geteuid"):
        return None
    try:
        found = path.lstat()
        is_file, is_folder = stat.S_ISREG(found.st_mode), stat.S_ISDIR(found.st_mode)
        if found.st_uid != os.geteuid() or not (is_file or is_folder):
            return None
        return os.open(path, (os.O_RDWR if is_file else os.O_RDONLY) | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None


def _fresh_paths(folder: Path, names: Names) -> Iterator[Path]:
    for _ in range(_ATTEMPTS):
        yield folder / names.fresh()
    raise FileExistsError(f"no free temporary name {names.prefix}* in {folder}")


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except OSError:  # a folder; rmtree follows no links
        shutil.rmtree(path, ignore_errors=True)
