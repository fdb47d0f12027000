"""Values that a file made by hand may hold anywhere, and where in a JSON document they can be put."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 5, 7, 64, 255, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 62, 1 << 63),
    *(1 << 64, -(1 << 63), 10**30, 0.0, -0.0, 0.5, 1.0, -1.5, 5e-324, 1e-300, 1e308, -1e308),
    *("", " ", "x", "../x", "/etc/passwd", "a\\b", "a\nb", "a\0b", "\x1b[2J", "\u202ex", "\ud800", "𐍈", "é" * 300),
    *("x" * 5000, "float16", "int64", "rows", "latents", "record_01", "step.onnx", "STEP.onnx", "manifest.json"),
    *("Manifest.JSON", "engines/x", "unet.weights", "tokenizer.json", "0" * 64, "v_prediction"),
    *([], {}, [[]], [0], [-1], {"x": []}, [1] * 100),
)
# What JSON numbers can say and no number can be; put in place of a marker, since writers refuse them.
NO_NUMBERS = ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" * 5000, "01", "+1", ".5", "0x10")
MARKER = "@marker@"

Place = tuple[Any, ...]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Paths of everything below; of a list the first two items and the last."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*at, key))
    elif isinstance(value, list):
        for index in sorted({0, 1, len(value) - 1} & set(range(len(value)))):
            yield from places(value[index], (*at, index))


def with_value(document: Any, place: Place, value: Any) -> Any:
    """A copy with another value at a place."""
    changed = copy.deepcopy(document)
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    return changed


def without(document: Any, place: Place) -> Any:
    """A copy without what is at a place."""
    changed = copy.deepcopy(document)
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    del parent[place[-1]]
    return changed


def with_second_key(document: Any, place: Place) -> str:
    """As JSON, with what is at a place in an object there twice."""
    text = json.dumps(with_value(document, place, MARKER))
    key, marker = json.dumps(place[-1]), json.dumps(MARKER)
    assert text.count(f"{key}: {marker}") == 1, place
    value: Any = document
    for part in place:
        value = value[part]
    one = f"{key}: {json.dumps(value)}"
    return text.replace(f"{key}: {marker}", f"{one}, {one}")
