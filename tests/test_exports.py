"""What ``import freeprompt`` offers, and what it costs."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

import freeprompt
from freeprompt.contract import errors

HEAVY = {"numpy", "onnxruntime", "PIL", "tokenizers", "msgspec"}


def test_every_error_and_warning_is_there() -> None:
    for name, error in inspect.getmembers(errors, inspect.isclass):
        assert getattr(freeprompt, name) is error and name in freeprompt.__all__


@pytest.mark.parametrize("name", freeprompt.__all__)
def test_every_name_is_what_its_own_module_defines(name: str) -> None:
    found = getattr(freeprompt, name)
    assert name in dir(freeprompt)
    if name != "__version__":
        assert getattr(importlib.import_module(found.__module__), name) is found


def test_what_users_need_beside_errors() -> None:
    classes = {name for name in freeprompt.__all__ if not hasattr(errors, name)}
    assert classes == {"Editor", "FakeBackend", "Inversion", "Limits", "Progress", "__version__"}


def test_errors_cost_no_library() -> None:
    code = f"import sys; from freeprompt import UsageError; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_old_place_of_errors_names_the_new_one() -> None:
    with pytest.raises(ImportError, match=r"from freeprompt import UsageError.*freeprompt\.contract\.errors"):
        importlib.import_module("freeprompt.errors")
