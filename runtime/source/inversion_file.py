"""Saved inversions: one safetensors file, checked as a whole before anything in it is believed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from freeprompt.contract.errors import InversionError
from freeprompt.contract.files import atomic_path, open_regular
from freeprompt.contract.session import HostArray, NumpyArray
from freeprompt.contract.storage.strict_json import check_json
from freeprompt.runtime.plan.plan import RecordPass
from freeprompt.runtime.plan.records import EXACT, FROM_INVERSION
from freeprompt.runtime.source.contents import Contents
from freeprompt.runtime.source.recording import Record

FORMAT = 1
_KEY = "freeprompt.inversion"
_DIGEST = "sha256"
_TRAJECTORY = "trajectory"
# A trajectory is some megabytes; what is recorded besides is bounded by ``Limits.record_bytes``, 2 GiB if not chosen.
MAX_FILE_BYTES = 16 << 30
# Some thousands of tensors, at about 100 bytes each.
MAX_HEADER_BYTES = 16 << 20

Mode = Annotated[str, msgspec.Meta(pattern=rf"^({EXACT}|{FROM_INVERSION})\Z")]
Steps = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
Timestep = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


@dataclass(frozen=True)
class _SavedPass:
    mode: Mode
    levels: tuple[Steps, ...]
    timesteps: tuple[Timestep, ...]


@dataclass(frozen=True)
class _Header:
    format: int
    steps: Steps
    prompt: str
    bundle_sha256: str
    passes: tuple[_SavedPass, ...]


@dataclass(frozen=True)
class _Tensor:
    """What a safetensors file says of a tensor."""

    dtype: Literal["F16", "F32"]
    shape: tuple[Natural, ...]
    data_offsets: tuple[Natural, Natural]


def write_inversion(contents: Contents, path: Path) -> None:
    """Write ``path`` whole or not at all. Raises OutputError."""
    tensors: dict[str, NumpyArray] = {_TRAJECTORY: np.ascontiguousarray(contents.trajectory)}
    passes: list[_SavedPass] = []
    for mode, record in contents.records.items():
        for made, rows in zip(record.passes, record.rows):
            for name, array in rows.items():
                tensors[f"{len(passes)}/{name}"] = np.ascontiguousarray(array.numpy())
            passes.append(_SavedPass(mode, made.levels, made.timesteps))
    header = msgspec.json.encode(
        _Header(FORMAT, contents.steps, contents.prompt, contents.bundle_sha256, tuple(passes))
    ).decode()
    metadata = {_KEY: header, _DIGEST: _digest(header, tensors)}
    with atomic_path(path) as temporary:
        # The library would write an error of its own class for a full disk; bytes written here raise OSError.
        temporary.write_bytes(safetensors.numpy.save(tensors, metadata))


def read_inversion(path: Path) -> Contents:
    """Read ``path`` and check it, as far as that needs no bundle. Raises InversionError."""
    try:
        with open_regular(path, MAX_FILE_BYTES) as file:
            data = _read(file)
        metadata = _metadata(data)
        tensors = safetensors.numpy.load(data)
        del data
        check_json(metadata[_KEY].encode())
        header = msgspec.json.decode(metadata[_KEY], type=_Header)
    except OSError as error:
        raise InversionError(f"cannot read {path}: {error.strerror or error}") from error
    except (
        SafetensorError,
        msgspec.MsgspecError,
        KeyError,
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise InversionError(f"{path} is not a saved inversion, or is damaged: {str(error)[:500]}") from error
    if header.format != FORMAT:
        raise InversionError(f"{path} has format {header.format}, this freeprompt reads {FORMAT}: invert again")
    if metadata.get(_DIGEST) != _digest(metadata[_KEY], tensors):
        raise InversionError(f"{path} is damaged (its SHA-256 differs): copy it again, or invert again")
    try:
        return _to_contents(header, tensors)
    except (KeyError, ValueError) as error:
        raise InversionError(f"{path} is not a saved inversion: {error}") from error


def _to_contents(header: _Header, tensors: dict[str, NumpyArray]) -> Contents:
    trajectory = tensors.pop(_TRAJECTORY)
    if trajectory.dtype != np.float32 or not trajectory.size or not np.isfinite(trajectory).all():
        raise ValueError("the trajectory must be finite float32 latents")
    trajectory.setflags(write=False)
    records = {EXACT: Record(), FROM_INVERSION: Record()}
    contents = Contents(header.steps, header.prompt, header.bundle_sha256, trajectory, records)
    for number, saved in enumerate(header.passes):
        record = records[saved.mode]
        levels = set(saved.levels)
        if not len(levels) == len(saved.levels) == len(saved.timesteps) or levels & record.levels:
            raise ValueError(f"record pass {number} has no level for each timestep, or one twice")
        if not levels or max(levels) > header.steps:
            raise ValueError(f"record pass {number} has levels that {header.steps} steps do not have")
        prefix = f"{number}/"
        rows = {name: tensors.pop(name) for name in sorted(tensors) if name.startswith(prefix)}
        for name, row in rows.items():
            if row.ndim != 3 or len(row) != len(levels) or not row.size or not np.isfinite(row).all():
                raise ValueError(f"{name} must be finite rows [{len(levels)}, N, C], and has shape {row.shape}")
        if not rows:
            raise ValueError(f"record pass {number} has no rows")
        named = {name.removeprefix(prefix): HostArray(row) for name, row in rows.items()}
        record.append(RecordPass(saved.levels, saved.timesteps), named)
    if tensors:
        raise ValueError(f"it has tensors that belong to nothing: {sorted(tensors)[0][:60]!r}")
    return contents


def _read(file: BinaryIO) -> bytes:
    """All of a file whose header says that it is so large.

    Raises:
        ValueError: it is not.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > min(size, MAX_HEADER_BYTES):
        raise ValueError("it has no header of safetensors")
    tensors = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
    offsets = (msgspec.json.decode(raw, type=_Tensor).data_offsets for name, raw in tensors.items() if name[:2] != "__")
    described = 8 + length + sum(end - begin for begin, end in offsets)
    if described != size:
        raise ValueError(f"it has {size} bytes, its header describes {described}")
    file.seek(0)
    data = file.read(size + 1)
    if len(data) != size:
        raise ValueError("it changed while it was read")
    return data


def _metadata(data: bytes) -> dict[str, str]:
    """The library gives metadata for files only, and a file could change between two readings."""
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    check_json(header)
    return msgspec.convert(msgspec.json.decode(header)["__metadata__"], dict[str, str])


def _digest(header: str, tensors: dict[str, NumpyArray]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).data)
    return digest.hexdigest()
