"""The kernels that TensorRT-RTX compiled for an engine on this machine, kept beside it: the second start is fast.

They are code, like the engine: what this user has not signed is not loaded.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from freeprompt.contract.errors import BackendError, OutputError
from freeprompt.contract.files import read_regular
from freeprompt.engines.artifacts.metadata import decode_metadata, encode_metadata, read_metadata, save_with_metadata
from freeprompt.engines.artifacts.signature import Signature

RUNTIME_CACHE_VERSION = 1
# The library's own advice is to stay below 100 MB.
MAX_RUNTIME_CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class RuntimeCacheMetadata:
    """What kernels were compiled of and for; ``seal`` as of an engine."""

    engine_sha256: str
    tensorrt: str
    device: str
    sha256: str
    bytes: int
    seal: str = ""
    version: int = RUNTIME_CACHE_VERSION


class RuntimeCache:
    """The kept kernels of one engine on one kind of GPU.

    Args:
        engine: path of the engine.
        engine_sha256: of it.
        tensorrt: version of the library.
        device: name of the GPU.
        signature: for tests; None: the user's.
    """

    def __init__(
        self, engine: Path, engine_sha256: str, tensorrt: str, device: str, signature: Signature | None = None
    ) -> None:
        name = re.sub(r"[^a-z0-9]+", "-", f"{device} {tensorrt}".lower()).strip("-")
        self.path = engine.with_name(f"{engine.stem}.{name}.runtime_cache")
        self._known = (engine_sha256, tensorrt, device)
        self._signature = signature or Signature()
        self._saved = ""

    def read(self) -> bytes:
        """The kernels; b"" where there are none that may be used. Which fit is for the library to say."""
        try:
            metadata = decode_metadata(read_metadata(self.path), RuntimeCacheMetadata, RUNTIME_CACHE_VERSION)
            if (metadata.engine_sha256, metadata.tensorrt, metadata.device) != self._known:
                return b""
            if metadata.bytes > MAX_RUNTIME_CACHE_BYTES or not self._signature.holds(metadata):
                return b""
            data = read_regular(self.path, metadata.bytes, follow_links=False)
        except (BackendError, OSError):
            return b""
        if hashlib.sha256(data).hexdigest() != metadata.sha256:
            return b""
        self._saved = metadata.sha256
        return data

    def save(self, data: bytes) -> None:
        """Keep the kernels, if they are others than those that are kept. What cannot be written costs time only."""
        digest = hashlib.sha256(data).hexdigest()
        if digest == self._saved or not data or len(data) > MAX_RUNTIME_CACHE_BYTES:
            return
        metadata = RuntimeCacheMetadata(*self._known, digest, len(data))
        with suppress(OutputError):
            save_with_metadata(self.path, data, encode_metadata(self._signature.apply(metadata)))
            self._saved = digest
