"""Saved inversions: one safetensors file, checked as a whole before anything in it is believed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from freeprompt.engines.session import HostArray, NumpyArray
from freeprompt.errors import InversionError
from freeprompt.files import atomic_path
from freeprompt.runtime.inversion import Inversion
from freeprompt.runtime.plan import RecordPass
from freeprompt.runtime.recording import MODES

FORMAT = 1
_KEY = "freeprompt.inversion"
_DIGEST = "sha256"
_TRAJECTORY = "trajectory"

Natural = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]


@dataclass(frozen=True)
class _SavedPass:
    mode: str
    levels: tuple[Natural, ...]
    timesteps: tuple[Natural, ...]


@dataclass(frozen=True)
class _Header:
    format: int
    steps: Natural
    prompt: str
    bundle_sha256: str
    passes: tuple[_SavedPass, ...]


def save_inversion(inversion: Inversion, path: Path, records: bool) -> None:
    """Write ``path`` whole or not at all. Raises OutputError."""
    tensors: dict[str, NumpyArray] = {_TRAJECTORY: np.ascontiguousarray(inversion.trajectory)}
    passes: list[_SavedPass] = []
    for mode, record in inversion.records.items() if records else ():
        for made, rows in zip(record.passes, record.rows):
            for name, array in rows.items():
                tensors[f"{len(passes)}/{name}"] = np.ascontiguousarray(array.numpy())
            passes.append(_SavedPass(mode, made.levels, made.timesteps))
    header = msgspec.json.encode(
        _Header(FORMAT, inversion.steps, inversion.prompt, inversion.bundle_sha256, tuple(passes))
    ).decode()
    metadata = {_KEY: header, _DIGEST: _digest(header, tensors)}
    with atomic_path(path) as temporary:
        # The library would write an error of its own class for a full disk; bytes written here raise OSError.
        temporary.write_bytes(safetensors.numpy.save(tensors, metadata))


def load_inversion(path: Path) -> Inversion:
    """Read ``path`` and check it. Raises InversionError."""
    try:
        data = path.read_bytes()
        tensors = safetensors.numpy.load(data)
        metadata = _metadata(data)
        header = msgspec.json.decode(metadata[_KEY], type=_Header)
    except OSError as error:
        raise InversionError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, msgspec.MsgspecError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise InversionError(f"{path} is not a saved inversion, or is damaged: {error}") from error
    if header.format != FORMAT:
        raise InversionError(f"{path} has format {header.format}, this freeprompt reads {FORMAT}: invert again")
    if metadata.get(_DIGEST) != _digest(metadata[_KEY], tensors):
        raise InversionError(f"{path} is damaged (its SHA-256 differs): copy it again, or invert again")
    return _to_inversion(header, tensors, path)


def _to_inversion(header: _Header, tensors: dict[str, NumpyArray], path: Path) -> Inversion:
    try:
        trajectory = tensors.pop(_TRAJECTORY)
        if trajectory.dtype != np.float32:
            raise ValueError(f"the trajectory is {trajectory.dtype}, not float32")
        trajectory.setflags(write=False)
        inversion = Inversion.from_trajectory(header.steps, header.prompt, header.bundle_sha256, trajectory)
        for number, saved in enumerate(header.passes):
            if saved.mode not in MODES or len(saved.levels) != len(saved.timesteps):
                raise ValueError(f"record pass {number} contradicts itself")
            prefix = f"{number}/"
            rows = {n[len(prefix) :]: HostArray(t) for n, t in tensors.items() if n.startswith(prefix)}
            inversion.records[saved.mode].append(RecordPass(saved.levels, saved.timesteps), rows)
    except (KeyError, ValueError) as error:
        raise InversionError(f"{path} is not a saved inversion: {error}") from error
    return inversion


def _metadata(data: bytes) -> dict[str, str]:
    """The library gives metadata for files only, and a file could change between two readings."""
    size = int.from_bytes(data[:8], "little")
    header: Any = msgspec.json.decode(data[8 : 8 + size])
    return msgspec.convert(header["__metadata__"], dict[str, str])


def _digest(header: str, tensors: dict[str, NumpyArray]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()
