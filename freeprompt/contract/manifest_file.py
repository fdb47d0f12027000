"""A manifest as JSON: written with a checksum of itself, and read without believing anything it says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from freeprompt.contract.errors import BundleError
from freeprompt.contract.manifest import FORMAT_VERSION, MANIFEST_NAME, Manifest, Sha256
from freeprompt.contract.manifest_check import contradiction
from freeprompt.contract.storage.strict_json import check_json


@dataclass(frozen=True)
class _Versioned:
    format_version: int


@dataclass(frozen=True)
class _Checksummed:
    manifest_sha256: Sha256


_NO_CHECKSUM = b"0" * 64
# Of a parser's message, which may quote all of a value.
_MESSAGE = 500


def manifest_to_json(manifest: Manifest) -> bytes:
    """Readable, deterministic JSON that begins with a checksum of itself.

    Every file has its SHA-256 in the manifest; ``manifest_sha256`` does the same for the manifest,
    where one flipped digit of a coefficient would otherwise be a slightly different model. It is the
    SHA-256 of the whole text with 64 zeros in its place.
    """
    text = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1)
    text = b'{\n "manifest_sha256": "' + _NO_CHECKSUM + b'",' + text[1:] + b"\n"
    return text.replace(_NO_CHECKSUM, hashlib.sha256(text).hexdigest().encode(), 1)


def manifest_from_json(data: bytes) -> Manifest:
    """Parse and check a manifest.

    Raises:
        BundleError: not JSON, another format version, a checksum that differs, a field missing,
            of a wrong type or out of range, a key twice, or values that contradict each other.
    """
    try:
        check_json(data)
        version = msgspec.json.decode(data, type=_Versioned).format_version
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{MANIFEST_NAME} has format version {version}, this freeprompt reads {FORMAT_VERSION}; "
                "export the checkpoint again, or install the version that wrote it"
            )
        sha256 = msgspec.json.decode(data, type=_Checksummed).manifest_sha256
        blanked = data.replace(sha256.encode(), _NO_CHECKSUM, 1)
        if hashlib.sha256(blanked).hexdigest() != sha256:
            raise BundleError(f"{MANIFEST_NAME} is damaged or was edited (its SHA-256 differs): copy the bundle again")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST_NAME} cannot be read: {str(error)[:_MESSAGE]}") from error
    problem = contradiction(manifest)
    if problem is not None:
        raise BundleError(f"{MANIFEST_NAME} contradicts itself: {problem}")
    return manifest
