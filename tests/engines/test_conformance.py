"""What the comparison of types with a library finds, on a library that is written out here."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from tests.engines import conformance

DRAW = "draw(self: lib.Pen, color: lib.Color = <Color.RED: 0>, width: int, *, dash: bool = False) -> None\n\nDraws."
MOVE = (
    "move(*args, **kwargs)\n1. move(self: lib.Pen, to: Tuple[int, int]) -> bool\n2. move(self: lib.Pen, x: int, y: int)"
)


def member(doc: str = "", settable: bool = False, parameters: Any = None) -> dict[str, Any]:
    return {"doc": doc, "settable": settable, "parameters": parameters}


MEMBERS = {
    "draw": member(DRAW),
    "move": member(MOVE),
    "lift": member(parameters=[["self", False, False], ["height", True, False], ["slow", True, True]]),
    "size": member(),
    "ink": member(settable=True),
    "RED": member(),
    "__init__": member("__init__(self: lib.Pen, name: str) -> None\n"),
}
LIBRARY = {"Pen": {**member(), "members": MEMBERS}}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("ink: int", None),
        ("RED: ClassVar[int]", None),
        ("size: int", "Pen.size cannot be set"),
        ("colour: int", "Pen.colour does not exist"),
        ("size = property(lambda self: 3)", None),
        ("length = property(lambda self: 3)", "Pen.length does not exist"),
        ("def erase(self) -> None: ...", "Pen.erase does not exist"),
        ("def draw(self, color, width, *, dash=False): ...", None),
        ("def draw(self, width, color, /): ...", "Pen.draw does not take"),
        ("def draw(self, color, /): ...", "Pen.draw does not take"),
        ("def draw(self, color, width, dash, /): ...", "Pen.draw does not take"),
        ("def draw(self, color, width=1): ...", "Pen.draw does not take"),
        ("def move(self, x, y, /): ...", None),
        ("def move(self, to, /): ...", None),
        ("def move(self, x, /): ...", "Pen.move does not take"),
        ("def lift(self): ...", None),
        ("def lift(self, height, *, slow): ...", None),
        ("def lift(self, height, slow, /): ...", "Pen.lift does not take"),
        ("def lift(self, depth): ...", "Pen.lift does not take"),
    ],
)
def test_members(line: str, complaint: str | None) -> None:
    found = problems(f"class Pen(Protocol):\n    {line}")
    assert len(found) == (complaint is not None)
    assert all(text.startswith(str(complaint)) for text in found)


def test_modules_and_classes() -> None:
    assert problems("class Brush(Protocol): ...") == ["Brush does not exist"]
    assert problems("class Module(Protocol):\n    def Pen(self, name, /): ...") == []
    (found,) = problems("class Module(Protocol):\n    def Pen(self, name, color, /): ...")
    assert found.startswith("Module.Pen does not take")
    assert problems("class _Own(Protocol):\n    ink: int") == []


def problems(source: str) -> list[str]:
    types = ModuleType("types_of_the_library")
    exec(f"from __future__ import annotations\nfrom typing import ClassVar, Protocol\n{source}", vars(types))
    return conformance.problems(types, ("Module",), LIBRARY)
