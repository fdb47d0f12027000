"""Telling what this user built on this machine from what came from elsewhere."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import Field, replace
from pathlib import Path
from typing import Any, ClassVar, Optional, Protocol, TypeVar

import msgspec

from freeprompt.errors import OutputError


class Sealed(Protocol):
    """A frozen dataclass that says something of a file, with its seal."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def seal(self) -> str: ...


RecordT = TypeVar("RecordT", bound=Sealed)


class Seal:
    """A secret of this user on this machine, by which an engine built here is told from one that was copied in.

    A TensorRT engine is code: loading a stranger's is running it. The sidecar of an engine built here carries a keyed
    hash that nobody without the secret can make. So does that of a graph prepared for CUDA: what is said there of its
    parity was measured here.

    Args:
        path: of the secret; None: freeprompt/engine-seal in the user's data folder.
    """

    def __init__(self, path: Optional[Path] = None) -> None:
        if path is None:
            home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
            path = Path(home) / "freeprompt" / "engine-seal"
        self._path = path

    def apply(self, record: RecordT) -> RecordT:
        """The record with its seal. Makes the secret if there is none yet.

        Raises:
            OutputError: the secret cannot be written.
        """
        return replace(record, seal=self._sign(record, self._secret(create=True)))

    def holds(self, record: Sealed) -> bool:
        """Whether this user sealed the record as it is."""
        secret = self._secret(create=False)
        return bool(secret) and hmac.compare_digest(record.seal, self._sign(record, secret))

    def token(self, label: str) -> str:
        """A name that only this user's machine gives to ``label``: a folder that nobody else can have filled."""
        return hmac.new(self._secret(create=True), label.encode(), hashlib.sha256).hexdigest()[:16]

    def _sign(self, record: Sealed, secret: bytes) -> str:
        content = msgspec.json.encode(replace(record, seal=""))
        return hmac.new(secret, content, hashlib.sha256).hexdigest()

    def _secret(self, create: bool) -> bytes:
        try:
            if create and not self._path.exists():
                self._path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                handle = os.open(self._path, flags, 0o600)
                with os.fdopen(handle, "wb") as file:
                    file.write(secrets.token_bytes(32))
            return self._path.read_bytes()
        except FileExistsError:  # another process made it in between
            return self._path.read_bytes()
        except OSError as error:
            if not create:
                return b""
            raise OutputError(f"cannot keep the engines' seal at {self._path}: {error}") from error
