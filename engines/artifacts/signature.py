"""Telling what this user built on this machine from what came from elsewhere."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import secrets
from dataclasses import Field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import msgspec

from freeprompt.contract.errors import BackendError, OutputError
from freeprompt.contract.files import atomic_path, open_regular
from freeprompt.engines.artifacts.lock import folder_lock

_SECRET_BYTES = 32
# Making it takes a moment; another process that holds the lock for longer hangs.
_LOCK_SECONDS = 30.0


class Signed(Protocol):
    """A frozen dataclass that says something of a file, with its signature."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def seal(self) -> str: ...


MetadataT = TypeVar("MetadataT", bound=Signed)


class Signature:
    """A secret of this user on this machine, by which an engine built here is told from one that was copied in.

    A TensorRT engine is code: loading a stranger's is running it. The metadata of an engine built here carries a keyed
    hash that nobody without the secret can make. So does a note on a graph's form for CUDA: what it says of parity was
    measured here.

    Args:
        path: of the secret; None: freeprompt/engine-seal in the user's data folder.
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
            path = Path(home) / "freeprompt" / "engine-seal"
        self._path = path

    def apply(self, metadata: MetadataT) -> MetadataT:
        """The metadata with its signature. Makes the secret if there is none yet.

        Raises:
            OutputError: the secret cannot be written, or what is there is a link, another user's, or open to others.
        """
        return replace(metadata, seal=self._sign(metadata, self._secret(create=True)))

    def holds(self, metadata: Signed) -> bool:
        """Whether this user signed the metadata as it is."""
        secret = self._secret(create=False)
        return bool(secret) and hmac.compare_digest(metadata.seal, self._sign(metadata, secret))

    def token(self, label: str) -> str:
        """A name that only this user's machine gives to ``label``: a folder that nobody else can have filled."""
        return hmac.new(self._secret(create=True), label.encode(), hashlib.sha256).hexdigest()[:16]

    def _sign(self, metadata: Signed, secret: bytes) -> str:
        content = msgspec.json.encode(replace(metadata, seal=""))
        return hmac.new(secret, content, hashlib.sha256).hexdigest()

    def _secret(self, create: bool) -> bytes:
        try:
            secret = self._read()
            if not secret and create:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with folder_lock(self._path.parent, self._path.name, _LOCK_SECONDS):
                    secret = self._read() or self._make()
            return secret
        except (OSError, OutputError, BackendError) as error:
            if not create:
                return b""
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise OutputError(f"cannot keep the key that signs engines at {self._path}: {reason}") from error

    def _read(self) -> bytes:
        """The secret, b"" if there is none yet. A file of another length is none: with an empty one anybody could sign.

        Raises:
            OSError: it cannot be read, or others may know it or may have made it.
        """
        try:
            with open_regular(self._path, follow_links=False) as file:
                found = os.fstat(file.fileno())
                if hasattr(os, "geteuid"):
                    if found.st_uid != os.geteuid():
                        raise OSError(errno.EPERM, "it belongs to another user; remove it")
                    if found.st_mode & 0o077:
                        raise OSError(errno.EPERM, "others may read or write it; remove it, or chmod 600 if none has")
                secret = file.read(_SECRET_BYTES + 1)
        except FileNotFoundError:
            return b""
        return secret if len(secret) == _SECRET_BYTES else b""

    def _make(self) -> bytes:
        secret = secrets.token_bytes(_SECRET_BYTES)
        self._path.unlink(missing_ok=True)
        with atomic_path(self._path, follow_links=False, mode=0o600) as temporary:
            temporary.write_bytes(secret)
        return secret
