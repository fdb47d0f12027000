"""Weights that an ONNX file leaves to other files: which there are, and whether those are the bundle's.

A library that is given a path reads whatever a graph names, in the bundle or not.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.errors import BackendError

# ONNX's numbers for element types (TensorProto.DataType), as far as NumPy has them.
_DTYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool"},
    **{10: "float16", 11: "float64", 12: "uint32", 13: "uint64"},
}
_KEY = b"location"
_LENGTH_DELIMITED = 2
_EXTERNAL = 1


@dataclass(frozen=True)
class ExternalTensor:
    """A weight that an ONNX file says is in another: ``location``, as the file names it, from byte ``offset`` on."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    location: str
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def check_external(bundle: Bundle, model: bytes, graph: str) -> tuple[ExternalTensor, ...]:
    """The weights of an ONNX file that are in other files, if these are files of the bundle.

    Args:
        model: the ONNX file.
        graph: its name, for messages.

    Raises:
        BackendError: it is no ONNX file, names data that the bundle does not list, or holds compiled code.
    """
    tensors = model_to_external(model, graph)
    if b"EPContext" in model:
        # What a provider compiled for itself: an engine, which is code.
        raise BackendError(
            f"graph {graph} has compiled parts (EPContext), which are not run; export the checkpoint again"
        )
    sizes = {spec.path: spec.bytes for spec in bundle.manifest.files}
    for tensor in tensors:
        if tensor.location not in sizes:
            raise BackendError(
                f"graph {graph} takes {tensor.name!r} from {tensor.location!r}, which the bundle does not list; "
                "export the checkpoint again"
            )
        if tensor.offset + tensor.nbytes > sizes[tensor.location]:
            raise BackendError(f"graph {graph} takes {tensor.name!r} from beyond the end of {tensor.location}")
    return tensors


@contextlib.contextmanager
def checked_snapshot(bundle: Bundle, graph: str, fused: bool = False) -> Iterator[Path]:
    """A private copy of a graph's ONNX file beside one of its weights, for libraries that read them by path.

    Raises:
        BackendError: as ``check_external`` does.
        BundleError: there is no such graph, or a file was changed since the bundle was opened.
        OutputError: the copies cannot be written.
    """
    name = bundle.graph_name(graph, fused)
    check_external(bundle, bundle.read(name), graph)
    with bundle.graph_snapshot(graph, fused) as folder:
        yield folder / name


def model_to_external(model: bytes, graph: str) -> tuple[ExternalTensor, ...]:
    """The initializers of an ONNX file that are in other files, in their order.

    Reads what it needs of ONNX's protocol buffer, since the onnx package is not there at run time.

    Args:
        graph: its name, for messages.

    Raises:
        BackendError: no ONNX file, a weight's description cannot be used, or something that is no initializer of the
            graph itself is in another file.
    """
    found: list[ExternalTensor] = []
    try:
        for number, main in _fields(model, 0, len(model)):
            if number == 7 and isinstance(main, slice):  # ModelProto.graph
                for field, place in _fields(model, main.start, main.stop):
                    # GraphProto.initializer; most small ones are within the file.
                    if field == 5 and isinstance(place, slice) and model.find(_KEY, place.start, place.stop) >= 0:
                        tensor = _read_tensor(model, place)
                        if tensor is not None:
                            found.append(tensor)
    except (ValueError, IndexError) as error:
        raise BackendError(f"graph {graph} is no ONNX file that can be read: {error}") from error
    # Subgraphs, constants and functions may hold tensors. Each that is in another file says so by an entry with this
    # key, whose length stands before it (8, in one byte or ending in a byte of 0).
    if model.count(b"\x08" + _KEY) + model.count(b"\x00" + _KEY) != len(found):
        raise BackendError(f"graph {graph} has data in other files that is no weight of the graph itself")
    return tuple(found)


def _read_tensor(data: bytes, place: slice) -> ExternalTensor | None:
    """A TensorProto; None: its values are within it."""
    name, dims, kind, location, entries = "", list[int](), 0, 0, dict[str, str]()
    for number, value in _fields(data, place.start, place.stop):
        if number == 1:
            dims += _packed(data, value) if isinstance(value, slice) else [value]
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and isinstance(value, slice):
            name = data[value].decode()
        elif number == 13 and isinstance(value, slice):
            key, text = _read_entry(data, value)
            if key in entries:
                raise ValueError(f"{name!r} says twice where it is")
            entries[key] = text
        elif number == 14 and isinstance(value, int):
            location = value
    if not entries and location != _EXTERNAL:
        return None
    if location != _EXTERNAL or not {"location"} <= entries.keys() <= {"location", "offset", "length", "checksum"}:
        raise ValueError(f"{name!r} is said to be in another file in a way that is not known: {sorted(entries)}")
    if kind not in _DTYPES or any(dim >= 1 << 63 for dim in dims):
        raise ValueError(f"{name!r} has element type {kind} and shape {dims}")
    numbers = [entries.get(key, "0") for key in ("offset", "length")]
    if not all(text.isascii() and text.isdigit() and len(text) < 20 for text in numbers):
        raise ValueError(f"{name!r} is at offset {numbers[0]!r} with length {numbers[1]!r}")
    tensor = ExternalTensor(name, np.dtype(_DTYPES[kind]), tuple(dims), entries["location"], int(numbers[0]))
    if "length" in entries and int(numbers[1]) != tensor.nbytes:
        raise ValueError(f"{name!r} takes {numbers[1]} bytes, its shape {tensor.nbytes}")
    return tensor


def _read_entry(data: bytes, place: slice) -> tuple[str, str]:
    """A StringStringEntryProto."""
    entry = data[place]
    # As every writer puts it: key and value, each a tag, a length of one byte, and the text.
    middle = 2 + entry[1]
    if (
        entry[0] == 0x0A
        and entry[1] < 128
        and entry[middle : middle + 2] == bytes((0x12, len(entry) - middle - 2 & 127))
    ):
        key, text = entry[2:middle], entry[middle + 2 :]
        if len(text) < 128:
            return key.decode(), text.decode()
    parts = {n: data[v].decode() for n, v in _fields(data, place.start, place.stop) if isinstance(v, slice)}
    return parts.get(1, ""), parts.get(2, "")


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int | slice]]:
    """Numbers and values of a message's fields: whole numbers, or the place of what has a length.

    Raises:
        ValueError, IndexError: not a message.
    """
    # Thousands of fields: what is one byte, and most is, is read in place.
    while at < end:
        tag, at = data[at], at + 1
        if tag > 127:
            tag, at = _varint(data, at - 1, 5)
            tag &= 0xFFFFFFFF
        wire = tag & 7
        if wire == _LENGTH_DELIMITED:
            size, at = data[at], at + 1
            if size > 127:
                size, at = _varint(data, at - 1, 5)
            if at + size > end:
                raise ValueError(f"a field that does not end, at byte {at}")
            yield tag >> 3, slice(at, at + size)
            at += size
        elif wire == 0:
            value, at = _varint(data, at, 10)
            yield tag >> 3, value
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of wire type {wire} at byte {at}")
    if at != end:
        raise ValueError(f"a field that does not end, at byte {end}")


def _varint(data: bytes, at: int, longest: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    value = 0
    for place in range(longest):
        byte = data[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at + place + 1
    raise ValueError(f"a number that does not end, at byte {at}")


def _packed(data: bytes, place: slice) -> list[int]:
    found, at = list[int](), place.start
    while at < place.stop:
        value, at = _varint(data, at, 10)
        found.append(value)
    return found
