"""The files of an open bundle: opened once, and read from there ever after, whatever is put in their place."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import stat
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from freeprompt.contract.errors import BundleError, OutputError
from freeprompt.contract.manifest import MANIFEST_NAME, FileSpec

# Files are kept in memory up to this many bytes altogether, so that they are read and hashed once: graphs, tokenizer,
# and small weights. Larger weights are read anew, and hashed anew, for each graph that is loaded.
KEPT_BYTES = 64 << 20
_CHUNK = 1 << 20
# No link in the last component, no waiting for the writer of a pipe; each where the system has it.
_FLAGS = os.O_RDONLY
for _name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
    _FLAGS |= getattr(os, _name, 0)


class BundleFiles:
    """Every file of a bundle, by the path that the manifest gives it.

    A file that is replaced, cut or written to after it was opened is never used: what was kept is used, or what the
    open file holds, compared with the manifest's hash before it is given out. Memory that is given out is private,
    unlike a mapped file, so that nothing can change it or take it away.

    A copy is the same object; pickled, it is opened again where it is unpickled.

    Args:
        folder: of the bundle.
        specs: what the manifest says of each file.
        verify: compare hashes; False: sizes only.

    Raises:
        BundleError: a file is missing, no plain file, not inside the folder, or not what the manifest says.
        OSError: it cannot be read.
    """

    def __init__(self, folder: Path, specs: tuple[FileSpec, ...], verify: bool) -> None:
        self._folder, self._verify = folder, verify
        self._specs = {spec.path: spec for spec in specs}
        self._lock = threading.Lock()
        self._room = KEPT_BYTES
        self._kept: dict[str, mmap.mmap] = {}
        # What is not kept is shared by those who use it at the same time.
        self._shared: weakref.WeakValueDictionary[str, mmap.mmap] = weakref.WeakValueDictionary()
        self._open: dict[str, int] = {}
        self._finalizer = weakref.finalize(self, _close, self._open)
        try:
            for spec in specs:
                self._open[spec.path] = open_file(folder, spec)
                if verify:
                    self._check(spec)
        except BaseException:
            self._finalizer()
            raise

    def read(self, name: str) -> bytes:
        """A copy of a whole file. Raises BundleError as ``view`` does."""
        return bytes(self.view(name))

    def view(self, name: str) -> memoryview:
        """A whole file in memory, read-only; large ones are freed when nobody uses them any more.

        Raises:
            BundleError: the bundle has no such file, it cannot be read, or it was changed since the bundle was opened.
        """
        if name not in self._specs:
            raise BundleError(f"the bundle has no file {name!r}; {MANIFEST_NAME} lists {', '.join(self._specs)}")
        spec = self._specs[name]
        with self._lock:
            memory = self._kept.get(name)
            if memory is None:
                memory = self._shared.get(name)
            if memory is None:
                memory = self._load(spec)
        return memoryview(memory)[: spec.bytes].toreadonly()

    @contextlib.contextmanager
    def snapshot(self, names: tuple[str, ...]) -> Iterator[Path]:
        """A private folder with copies of these files, for libraries that read by path; removed afterwards.

        Raises:
            BundleError: as ``view`` does.
            OutputError: the disk for temporary files is full, or cannot be written.
        """
        with contextlib.ExitStack() as stack:
            try:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="freeprompt-")))
                for name in names:
                    path = folder / PurePosixPath(name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(self.view(name))
            except OSError as error:
                raise OutputError(f"cannot copy the bundle's files to {tempfile.gettempdir()}: {error}") from error
            yield folder

    def _check(self, spec: FileSpec) -> None:
        """Compare the hash, and keep the file if there is room."""
        if spec.bytes <= self._room:
            self._load(spec)
            return
        digest = hashlib.sha256()
        with memoryview(bytearray(_CHUNK)) as scratch:
            for at in range(0, spec.bytes, _CHUNK):
                part = scratch[: min(_CHUNK, spec.bytes - at)]
                _read_part(self._open[spec.path], spec, part, at)
                digest.update(part)
        _compare(spec, digest.hexdigest())

    def _load(self, spec: FileSpec) -> mmap.mmap:
        digest = hashlib.sha256()
        try:
            memory = _private_memory(spec.bytes)
            with memoryview(memory) as whole:
                for at in range(0, spec.bytes, _CHUNK):
                    part = whole[at : min(at + _CHUNK, spec.bytes)]
                    _read_part(self._open[spec.path], spec, part, at)
                    if self._verify:
                        # Of the very memory that is used from now on, not of the file.
                        digest.update(part)
                    part.release()
        except OSError as error:
            raise BundleError(f"cannot read {spec.path}: {error.strerror or error}") from error
        if self._verify:
            _compare(spec, digest.hexdigest())
        if spec.bytes <= self._room:
            self._room -= spec.bytes
            self._kept[spec.path] = memory
            os.close(self._open.pop(spec.path))
        else:
            self._shared[spec.path] = memory
        return memory

    def __copy__(self) -> BundleFiles:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> BundleFiles:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return BundleFiles, (self._folder, tuple(self._specs.values()), self._verify)


def open_file(folder: Path, spec: FileSpec) -> int:
    """A descriptor of a file of that size within a folder.

    Raises:
        BundleError: it is missing, no plain file, outside the folder, or of another size.
        OSError: it cannot be opened.
    """
    relative = PurePosixPath(spec.path)
    if relative.is_absolute() or not relative.parts or ".." in relative.parts or "\\" in spec.path or ":" in spec.path:
        raise BundleError(f"{MANIFEST_NAME} names {spec.path!r}, which is not inside the bundle")
    path = folder / relative
    if not path.is_file():
        raise BundleError(f"{spec.path} is missing from the bundle at {folder}")
    resolved = path.resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise BundleError(f"{spec.path} is a link to outside the bundle")
    # The links are followed already: one that appears now is none that was looked at.
    descriptor = os.open(resolved, _FLAGS)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"{spec.path} is missing from the bundle at {folder}: what is there is no plain file")
        if found.st_size != spec.bytes:
            raise BundleError(
                f"{spec.path} has {found.st_size} bytes, the manifest says {spec.bytes}: copy the bundle again"
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _read_part(descriptor: int, spec: FileSpec, part: memoryview, at: int) -> None:
    """Fill ``part`` from byte ``at`` on. Raises BundleError if the file ends before."""
    done = 0
    while done < len(part):
        count = _read_at(descriptor, part[done:], at + done)
        if not count:
            place = at + done
            raise BundleError(f"{spec.path} was cut to {place} bytes while the bundle was open: copy the bundle again")
        done += count


def _read_at(descriptor: int, part: memoryview, at: int) -> int:
    """Read what there is, without the descriptor's own place where the system can: a forked process shares it."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [part], at)
    os.lseek(descriptor, at, os.SEEK_SET)
    data = os.read(descriptor, len(part))
    part[: len(data)] = data
    return len(data)


def _compare(spec: FileSpec, sha256: str) -> None:
    if sha256 != spec.sha256:
        raise BundleError(f"{spec.path} is damaged (its SHA-256 differs): copy the bundle again")


def _private_memory(size: int) -> mmap.mmap:
    """Memory that begins at a page, as a mapped file does; it is freed with the last view of it."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, max(1, size))


def _close(descriptors: dict[str, int]) -> None:
    while descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptors.popitem()[1])
