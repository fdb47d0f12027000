"""The real Python bindings of TensorRT and CUDA on a machine that has neither.

The wheels come from the package index (about 1 MB each, cuda-core 5 MB, cuda-bindings 12 MB) and are kept under build/.
The bindings of TensorRT import once their C entry points are there; libraries of stubs that return nothing stand in for
them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engines.conformance import DESCRIBE

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "tests" / "bindings"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
# Of the C interface.
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index; ``newest_python`` is the last minor version of CPython 3 that it exists for."""

    package: str
    version: str
    newest_python: int


TENSORRT = (
    Wheel("tensorrt-cu12-bindings", "10.3.0", 12),
    Wheel("tensorrt-cu12-bindings", "10.16.1.11", 13),
    Wheel("tensorrt-cu12-bindings", "11.4.0.106", 13),
)
# The oldest cuda-core that pyproject.toml allows, for the newest CUDA.
CUDA = (Wheel("cuda-core", "1.1.0", 14), Wheel("cuda-bindings", "13.5.0", 14), Wheel("cuda-pathfinder", "1.9.0", 99))


def installed(wheel: Wheel) -> Path:
    """The unpacked wheel, fetched if it is not there.

    Skips the test where there is none for this Python; fails where the index cannot be reached, but skips on a
    developer's machine (CI is not set).
    """
    if sys.version_info >= (3, wheel.newest_python + 1):
        pytest.skip(f"{wheel.package} {wheel.version} has no wheel for CPython 3.{sys.version_info.minor}")
    folder = FOLDER / f"{wheel.package}-{wheel.version}-cp3{sys.version_info.minor}"
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command = [*download, "--dest", str(partial), f"{wheel.package}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    wheels = list(partial.glob("*.whl")) if partial.is_dir() else []
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        message = f"cannot fetch {wheel.package} {wheel.version} from the package index: {reason}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with zipfile.ZipFile(wheels[0]) as file:
        file.extractall(partial)
    wheels[0].unlink()
    partial.rename(folder)
    return folder


def compile_library(source: Path, target: Path) -> None:
    """Compile one file of C into a shared library of the name ``target``."""
    command = ["cc", "-shared", "-fPIC", "-w", "-o", str(target), f"-Wl,-soname,{target.name}", str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def stub_libraries(major: str) -> Path:
    """A folder with the shared libraries that the bindings of this major version are linked to."""
    folder = FOLDER / f"stubs-{major}"
    if (folder / "whole").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    (folder / "empty.c").write_text("")
    for library in LIBRARIES:
        code = source if library == "nvinfer" else folder / "empty.c"
        compile_library(code, folder / f"lib{library}.so.{major}")
    (folder / "whole").touch()
    return folder


def run_python(wheels: tuple[Wheel, ...], code: str, *args: str, **variables: str) -> str:
    """Output of a script in a process that has the wheels before what is installed, and these variables in its
    environment; fails with its errors."""
    environment = {**os.environ, **variables}
    environment["PYTHONPATH"] = os.pathsep.join(str(path) for path in (*map(installed, wheels), ROOT))
    for wheel in wheels:
        if wheel in TENSORRT:
            environment["LD_LIBRARY_PATH"] = str(stub_libraries(wheel.version.split(".")[0]))
    command = [sys.executable, "-W", "error", "-c", code, *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def describe(wheels: tuple[Wheel, ...], names: set[str], *modules: str) -> dict[str, Any]:
    """Classes with their members and functions of modules, with what can be known of their parameters."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "described.json"
        run_python(wheels, DESCRIBE, str(path), ",".join(names), *modules)
        result: dict[str, Any] = json.loads(path.read_text())
    return result
