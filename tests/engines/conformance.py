"""Whether the types that stand for a foreign library name what the library has, and whether a fake of it adds nothing.

mypy holds our source, and the fakes, against the types (``engines/*/api.py``); here these are held against the library,
as a process that has imported it lists it (``DESCRIBE``).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

# Lists classes with their members, and functions, into the file sys.argv[1]: those of the comma-separated names in
# sys.argv[2] that are in modules sys.argv[3:].
DESCRIBE = """
import importlib, inspect, json, sys
def parameters(value):
    try:
        found = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return None  # pybind11 says it in the docstring alone
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [[p.name, p.default is not p.empty or p.kind in several, p.kind is p.KEYWORD_ONLY] for p in found]
def member(value):
    settable = isinstance(value, property) and value.fset is not None
    doc = getattr(value, "__doc__", "") or ""
    return {"doc": doc, "settable": settable, "parameters": parameters(value) if callable(value) else None}
found = {}
for module in map(importlib.import_module, sys.argv[3:]):
    for name in set(sys.argv[2].split(",")) & set(dir(module)):
        value = getattr(module, name)
        entry = found[name] = member(value)
        if isinstance(value, type):
            entry["members"] = {m: member(getattr(value, m)) for m in dir(value)}
json.dump(found, open(sys.argv[1], "w"))
"""
Library = dict[str, Any]
Parameters = list[tuple[str, bool, bool]]  # names, whether they may be left out, whether they are keywords only


def problems(types: ModuleType, modules: tuple[str, ...], library: Library) -> list[str]:
    """What of the types, among which ``modules`` are those of modules, the library does not have or takes otherwise."""
    found = []
    for name, kind in classes(types).items():
        members = library if name in modules else library.get(name, {}).get("members")
        if members is None:
            found.append(f"{name} does not exist")
            continue
        for member, value in declared(kind):
            entry, where = members.get(member), f"{name}.{member}"
            if entry is None:
                found.append(f"{where} does not exist")
            elif value is None and "ClassVar" not in str(kind.__annotations__[member]) and not entry["settable"]:
                found.append(f"{where} cannot be set")
            elif callable(value) and not any(fits(value, known) for known in overloads(member, entry)):
                found.append(f"{where} does not take {inspect.signature(value)}: {entry['doc'][:300]}")
    return found


def names(types: ModuleType, modules: tuple[str, ...]) -> set[str]:
    """What the types name of the library's modules."""
    kinds = classes(types)
    return {*kinds, *(name for module in modules for name, _ in declared(kinds[module]))}


def classes(types: ModuleType) -> dict[str, type]:
    """The classes that a module defines; what begins with an underscore stands for none of the library's."""
    return {
        name: value
        for name, value in vars(types).items()
        if isinstance(value, type) and value.__module__ == types.__name__ and name[0] != "_"
    }


def declared(kind: type) -> Iterator[tuple[str, Any]]:
    """Names of a protocol with what they are: a function, a property, None for what is only annotated."""
    yield from ((name, None) for name in inspect.get_annotations(kind))
    for name, value in vars(kind).items():
        if isinstance(value, staticmethod):
            yield name, value.__func__
        elif isinstance(value, property) or (inspect.isfunction(value) and name[:2] != "__"):
            yield name, value


def overloads(name: str, entry: Library) -> Iterator[Parameters]:
    """Parameters of each form in which something of the library can be called."""
    constructor = entry.get("members", {}).get("__init__")
    if constructor is not None:
        name, entry = "__init__", {**constructor, "parameters": entry["parameters"] or constructor["parameters"]}
    if entry["parameters"] is not None:
        yield without_self(entry["parameters"])
    for line in re.findall(rf"^(?:\d+\. )?{re.escape(name)}\((.*)\)(?: ->.*)?$", entry["doc"], re.MULTILINE):
        if line != "*args, **kwargs":
            parts = split(line)
            keywords = parts.index("*") if "*" in parts else len(parts)
            yield without_self(
                [
                    (part.split(":")[0].split("=")[0].strip(), "=" in part, place > keywords)
                    for place, part in enumerate(parts)
                    if part not in ("*", "/")
                ]
            )


def fits(function: Any, known: Parameters) -> bool:
    """Whether what is called as our type says can be called so: the same names in the same places, and none missing."""
    ours = list(inspect.signature(function).parameters.values())
    ours = ours[1:] if ours and ours[0].name == "self" else ours
    places = {name: place for place, (name, _, _) in enumerate(known)}
    for place, parameter in enumerate(ours):
        if parameter.name not in places:
            return False
        _, optional, keyword = known[places[parameter.name]]
        if parameter.kind is not parameter.KEYWORD_ONLY and (keyword or places[parameter.name] != place):
            return False
        if parameter.default is not parameter.empty and not optional:
            return False
    given = {parameter.name for parameter in ours}
    return all(optional or name in given for name, optional, _ in known)


def without_self(parameters: Parameters) -> Parameters:
    return parameters[1:] if parameters and parameters[0][0] in ("self", "cls") else parameters


def split(parameters: str) -> list[str]:
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


def inventions(fake: type, *kinds: type) -> list[str]:
    """Methods and properties of a fake that the types do not have. What tests alone use begins with an underscore."""
    known = {name for kind in kinds for base in kind.__mro__ if base is not object for name, _ in declared(base)}
    found = {name for name, v in vars(fake).items() if callable(v) or isinstance(v, (property, staticmethod))}
    return sorted(f"{fake.__name__}.{name}" for name in found - known if name[0] != "_")
