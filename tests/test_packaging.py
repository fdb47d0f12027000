"""The wheel: what is in it, and that it works where the source tree is not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import freeprompt

ROOT = Path(__file__).parents[1]
PACKAGES = {"freeprompt": "freeprompt", "export": "freeprompt/export"}
PACKAGES.update({name: f"freeprompt/{name}" for name in ("engines", "runtime")})
# What is shipped besides Python files, once it is there.
DATA = ("freeprompt/py.typed", "freeprompt/demo", "freeprompt/examples")


def _pip(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the build leaves nothing in the tree and finds nothing stale there."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    if not (source / "README.md").exists():
        (source / "README.md").write_text("to come\n")
    for folder in PACKAGES:
        # Links stay links, as git makes them.
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("wheel")
    # Where setuptools is not installed, pip fetches it into an environment of its own.
    isolation = ["--no-build-isolation"] if find_spec("setuptools") else []
    _pip("wheel", "--no-deps", *isolation, "--wheel-dir", target, source)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked as pip does it, into a folder of its own."""
    target = tmp_path_factory.mktemp("installed")
    _pip("install", "--no-deps", "--target", target, wheel)
    return target


def _sources() -> Iterator[str]:
    for folder, inside in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            relative = path.relative_to(ROOT / folder)
            if not (ROOT / folder / relative.parts[0]).is_symlink():
                yield f"{inside}/{relative.as_posix()}"


def test_wheel_holds_every_module_and_nothing_of_the_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {name for name in names if name.endswith(".py")}
    assert modules == set(_sources())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"freeprompt", f"freeprompt-{freeprompt.__version__}.dist-info"}


def test_wheel_holds_the_data_the_licence_and_the_mark_for_type_checkers(wheel: Path) -> None:
    expected = set()
    for name in DATA:
        path = ROOT / name
        expected |= {path} if path.is_file() else {p for p in path.rglob("*") if p.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        licences = [archive.read(n) for n in names if n.endswith("dist-info/licenses/LICENSE")]
        metadata = next(archive.read(n).decode() for n in names if n.endswith("dist-info/METADATA"))
    assert {path.relative_to(ROOT).as_posix() for path in expected} <= names
    assert licences == [(ROOT / "LICENSE").read_bytes()]
    assert "License-Expression: Apache-2.0" in metadata
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra" not in line]
    assert needed, "the run-time needs something"
    assert not [line for line in needed if "torch" in line or "diffusers" in line]


def test_a_gpu_needs_nothing_of_the_export(wheel: Path) -> None:
    """Every form of a graph is written before: a device with a GPU only checks and times them."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(archive.read(n).decode() for n in archive.namelist() if n.endswith("dist-info/METADATA"))
    needed: dict[str, set[str]] = {"gpu": set(), "export": set()}
    for requirement in re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE):
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if extra is not None and extra[1] in needed:
            needed[extra[1]].add(re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower())
    assert {"onnx", "sympy", "torch"} <= needed["export"]
    assert needed["gpu"] and not needed["gpu"] & needed["export"]


def test_installed_wheel_runs_without_the_source_tree(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    for arguments, expected in (
        (["-m", "freeprompt", "--version"], f"freeprompt {freeprompt.__version__}\n"),
        (
            ["-c", "import freeprompt.runtime.plan.plan as p; print(p.__file__)"],
            f"{installed}/freeprompt/runtime/plan/plan.py\n",
        ),
        (["-c", "import freeprompt.engines.fake as p; print(p.__file__)"], f"{installed}/freeprompt/engines/fake.py\n"),
    ):
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_installed_command_runs(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [installed / "bin" / "freeprompt", "edit", "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: freeprompt edit")


def test_versions_agree(wheel: Path) -> None:
    assert wheel.name == f"freeprompt-{freeprompt.__version__}-py3-none-any.whl"


def test_constraints_pin_every_dependency_exactly() -> None:
    import importlib.metadata

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "no local parts, ranges or addresses"
    pinned = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}
    missing = set()
    for requirement in importlib.metadata.requires("freeprompt") or []:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
        if extra is None or extra[1] in ("export", "bench", "dev"):
            missing |= {name} - pinned - {"freeprompt"}
    assert missing == set()
