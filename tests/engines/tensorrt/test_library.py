"""Finding the libraries: which module is taken, and what is said where there is none that can be used."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest

from freeprompt.contract.errors import BackendError
from freeprompt.engines.tensorrt.library import FLAVOURS, Library, Messages, load_library


class Logger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    def __init__(self) -> None:
        pass


def module(name: str, version: str | None) -> ModuleType:
    found = ModuleType(name)
    found.ILogger = Logger  # type: ignore[attr-defined]
    if version is not None:
        found.__version__ = version  # type: ignore[attr-defined]
    return found


def load(name: str) -> Library:
    """Anew: what was loaded in this process before is kept."""
    return load_library.__wrapped__(name)


@pytest.fixture(autouse=True)
def none(monkeypatch: pytest.MonkeyPatch) -> None:
    for flavour in FLAVOURS.values():
        for name in flavour.modules:
            monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("name", "modules", "taken"),
    [
        ("tensorrt", {"tensorrt": "10.3.0"}, "tensorrt"),
        ("tensorrt", {"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}, "tensorrt"),
        ("tensorrt-rtx", {"tensorrt_rtx": "1.4.0.76", "tensorrt_rtx_bindings": "1.4.0.76"}, "tensorrt_rtx"),
        ("tensorrt-rtx", {"tensorrt_rtx_bindings": "1.7.1.116"}, "tensorrt_rtx_bindings"),
    ],
)
def test_the_module_that_is_taken(
    monkeypatch: pytest.MonkeyPatch, name: str, modules: dict[str, str], taken: str
) -> None:
    for each, version in modules.items():
        monkeypatch.setitem(sys.modules, each, module(each, version))
    found = load(name)
    assert found.trt is sys.modules[taken] and found.version == modules[taken]
    assert found.name == f"{FLAVOURS[name].title} {modules[taken]}"


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("tensorrt", "8.6.1", r"TensorRT 8\.6\.1 is too old; 10\.3 is the first supported"),
        ("tensorrt", "10.2.0", r"TensorRT 10\.2\.0 is too old"),
        ("tensorrt", None, "the module 'tensorrt' is not TensorRT; install it"),
        ("tensorrt_rtx", "1.3.0.35", r"TensorRT-RTX 1\.3\.0\.35 is too old; 1\.4 is the first supported"),
    ],
)
def test_modules_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, said: str
) -> None:
    monkeypatch.setitem(sys.modules, name, module(name, version))
    with pytest.raises(BackendError, match=said):
        load(name.replace("_", "-"))


@pytest.mark.parametrize("name", list(FLAVOURS))
def test_none_at_all(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def missing(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(BackendError, match=f"{FLAVOURS[name].title} is not installed; install it with 'pip install"):
        load(name)


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libnvinfer.so.10: cannot open shared object file", name="tensorrt.tensorrt"),
        OSError("libcudart.so.12: cannot open shared object file"),
        RuntimeError("unsupported driver"),
    ],
)
def test_a_module_that_is_there_and_does_not_load(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(module: str) -> Any:
        raise error

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(BackendError, match=rf"TensorRT-RTX cannot be loaded \({error}\); install it"):
        load("tensorrt-rtx")


def test_messages_are_those_since_the_last_failure() -> None:
    messages = Messages(module("tensorrt", "11.0"), "TensorRT")
    logger: Any = messages.logger
    for number in range(200):
        logger.log(Logger.ERROR, f"error {number}")
        logger.log(Logger.WARNING, f"warning {number}")
    assert len(messages.errors) == len(messages.warnings) == 50
    messages.failure("run")
    logger.log(Logger.ERROR, "the cause")
    assert str(messages.failure("run")) == "TensorRT could not run: the cause"
    assert str(messages.failure("run")) == "TensorRT could not run: it gave no reason"
