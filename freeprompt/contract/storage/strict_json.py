"""JSON that says everything once: parsers that take the last of two equal keys would read what others do not."""

from __future__ import annotations

import json
from typing import Any


def check_json(data: bytes) -> None:
    """Refuse what parsers disagree about. The size of ``data`` is the caller's to bound.

    Raises:
        ValueError: not JSON, a key twice in one object, or a number that is infinite or none.
        RecursionError: nested too deeply.
    """
    json.loads(data, object_pairs_hook=_to_object, parse_constant=_refuse_number, parse_float=_to_float)


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set[str]()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {key[:60]!r} is there twice")
    return found


def _refuse_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _to_float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:60]} is too large for a number")
    return number
