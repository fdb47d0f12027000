"""Which names of a foreign library our source uses, and how, read off its syntax tree for one version of the library.

The library is untyped for mypy. What stands for it in our source goes by fixed variable names (``TYPES``); code under
``if at_least(trt, "10.3")`` counts from that version on, its ``else`` before.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODULE = ""
TYPES = {
    "trt": MODULE,
    "network": "INetworkDefinition",
    "entry": "ITensor",
    "config": "IBuilderConfig",
    "jit_config": "IRuntimeConfig",
    "compiled": "IRuntimeCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}


@dataclass(frozen=True)
class Use:
    """One use. ``owner`` is a class, or "" for the module; ``arguments`` is None where it is not called."""

    owner: str
    name: str
    line: int
    arguments: int | None = None
    keywords: tuple[str, ...] = ()
    is_set: bool = False

    def __str__(self) -> str:
        return f"line {self.line}: {self.owner + '.' if self.owner else ''}{self.name}"


def find_uses(source: str, version: str) -> list[Use]:
    """Uses in code that runs with this version of the library."""
    finder = _Finder(numbers(version))
    finder.visit(ast.parse(source))
    return finder.uses


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


class _Finder(ast.NodeVisitor):
    def __init__(self, version: tuple[int, ...]) -> None:
        self.version = version
        self.uses: list[Use] = []
        self.aliases: dict[str, str] = {}

    def visit_If(self, node: ast.If) -> None:
        wanted = self._condition(node.test)
        if wanted is None:
            self.generic_visit(node)
            return
        for statement in node.body if wanted else node.orelse:
            self.visit(statement)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        wanted = self._condition(node.test)
        if wanted is None:
            self.generic_visit(node)
        else:
            self.visit(node.body if wanted else node.orelse)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        kind = self._type(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name) and kind is not None and target.id not in TYPES:
                self.aliases[target.id] = kind
            elif isinstance(target, ast.Attribute) and self._type(target.value):
                self._note(target, is_set=True)
            else:
                self.visit(target)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        count = len(node.args)
        if isinstance(function, ast.Attribute) and function.attr == "__init__":
            count -= 1  # called on the class, with the instance as first argument
        keywords = tuple(keyword.arg or "**" for keyword in node.keywords)
        if isinstance(function, ast.Attribute) and self._type(function.value) is not None:
            kind = self._type(function)
            if kind:  # a class that is constructed
                self._note(function)
                self.uses.append(Use(kind, "__init__", node.lineno, count, keywords))
            else:
                self._note(function, count, keywords)
            self.visit(function.value)
        else:
            self.visit(function)
        for part in (*node.args, *node.keywords):
            self.visit(part)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self._type(node.value) is not None:
            self._note(node)
        self.visit(node.value)

    def _note(
        self,
        node: ast.Attribute,
        arguments: int | None = None,
        keywords: tuple[str, ...] = (),
        is_set: bool = False,
    ) -> None:
        owner = self._type(node.value)
        assert owner is not None
        self.uses.append(Use(owner, node.attr, node.lineno, arguments, keywords, is_set))

    def _type(self, node: ast.expr) -> str | None:
        """Class (or module) that an expression stands for; None: not the library's."""
        if isinstance(node, ast.Name):
            return self.aliases.get(node.id, TYPES.get(node.id))
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                return TYPES.get(node.attr.lstrip("_"))
            if self._type(node.value) == MODULE and re.match(
                r"[A-Z]|cuda[A-Z]\w*_t$|cuda\w+(Kind|Attr|Mode)$", node.attr
            ):
                return node.attr
        return None

    def _condition(self, test: ast.expr) -> bool | None:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self._condition(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "at_least":
            constant = test.args[1]
            if not isinstance(constant, ast.Constant):
                return None
            return self.version >= numbers(str(constant.value))
        return None


def problems(uses: Iterable[Use], library: dict[str, Any]) -> list[str]:
    """What the library, as ``bindings.describe`` lists it, does not have or takes otherwise."""
    found = []
    for use in uses:
        members = library if use.owner == MODULE else library.get(use.owner, {}).get("members", {})
        entry = members.get(use.name)
        if entry is None:
            found.append(f"{use} does not exist")
        elif use.is_set and not entry["settable"]:
            found.append(f"{use} cannot be set")
        elif use.arguments is not None and not _accepts(entry["doc"], use):
            found.append(f"{use} is called with {use.arguments} arguments {use.keywords}: {entry['doc'][:300]}")
    return found


def _accepts(doc: str, use: Use) -> bool:
    """Whether one of the signatures in a docstring takes the arguments."""
    lines = re.findall(rf"^(?:\d+\. )?{re.escape(use.name)}\((.*)\)(?: ->.*)?$", doc, re.MULTILINE)
    return any(_fits(_split(line), use) for line in lines if line != "*args, **kwargs")


def _fits(parameters: list[str], use: Use) -> bool:
    parameters = [p for p in parameters if not p.startswith("self")]
    names = [p.split(":")[0].split("=")[0].strip() for p in parameters]
    assert use.arguments is not None
    given = set(names[: use.arguments]) | set(use.keywords)
    required = {name for name, p in zip(names, parameters, strict=True) if "=" not in p}
    return use.arguments <= len(names) and set(use.keywords) <= set(names) and required <= given


def _split(parameters: str) -> list[str]:
    """At the commas that are not inside brackets."""
    parts, depth = [""], 0
    for character in parameters:
        depth += character in "([<{"
        depth -= character in ")]>}"
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def sources(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in names}
