"""What a part of the measurement has found, written after every item, so that a part can be cut off and go on."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from freeprompt.contract.files import atomic_path

PACKAGES = ("freeprompt", "numpy", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "cuda-bindings")
_QUERY = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"


class Results:
    """One JSON file: item -> whatever was measured.

    Args:
        path: of the file.
        again: forget what it holds.
    """

    def __init__(self, path: Path, again: bool = False) -> None:
        self._path = path
        self._items: dict[str, Any] = {}
        if path.is_file() and not again:
            self._items = json.loads(path.read_text())

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """The item of that name, measured now if it is not there. What it raises is an item too."""
        if name not in self._items or "error" in self._items[name]:
            try:
                value = measure()
            except Exception as error:  # one backend's failure must not cost the others' figures
                value = {"error": f"{type(error).__name__}: {error}"}
            self._items[name] = value
            with atomic_path(self._path) as temporary:
                temporary.write_text(json.dumps(self._items, indent=1) + "\n")
            print(f"{self._path.stem}: {name}: {_short(value)}", flush=True)
        return self._items[name]


def machine_facts() -> dict[str, Any]:
    """Device, driver, clocks and versions."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "gpu": nvidia_smi(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def nvidia_smi() -> dict[str, str] | None:
    """What the driver's tool says of the first GPU; None without one."""
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(_QUERY.split(","), (value.strip() for value in done.stdout.split(","))))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = {k: v for k, v in value.items() if not isinstance(v, list)}
    return str(value)[:300]
