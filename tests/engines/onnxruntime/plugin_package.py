"""Packages of plug-in providers, written to a folder, and an ONNX Runtime that registers them without loading them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

MODULE = '''"""A plug-in."""
from pathlib import Path

def get_library_path():
    return str(Path(__file__).parent / "lib{module}.so")

{more}
'''
NAMED = """
def get_ep_name():
    return "{ep_name}"
"""


def write_package(folder: Path, name: str, ep_name: str = "", more: str = "") -> Path:
    """An installed distribution of a plug-in; returns the path of its library, a file that is none."""
    module = name.replace("-", "_")
    (folder / module).mkdir(parents=True)
    library = folder / module / f"lib{module}.so"
    library.write_bytes(b"no library")
    more = (NAMED.format(ep_name=ep_name) if ep_name else "") + more
    (folder / module / "__init__.py").write_text(MODULE.format(module=module, more=more))
    info = folder / f"{module}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "RECORD").write_text(f"{module}/__init__.py,,\n{module}/lib{module}.so,,\n")
    return library


def device(ep_name: str, library: Path | None, kind: str = "CPU", **more: str) -> Any:
    """Stands for ``onnxruntime.OrtEpDevice``."""
    known = {"version": "1.2", **more}
    if library is not None:
        known["library_path"] = str(library)
    hardware = SimpleNamespace(
        type=SimpleNamespace(name=kind), vendor="Maker", vendor_id=1, device_id=2, metadata=dict[str, str]()
    )
    return SimpleNamespace(ep_name=ep_name, ep_metadata=known, device=hardware)


@dataclass
class FakeRegistry:
    """ONNX Runtime's registrations: ``devices`` by the path of the library that lists them."""

    devices: dict[str, list[Any]] = field(default_factory=dict)
    error: str = ""
    registered: dict[str, str] = field(default_factory=dict)

    def register(self, name: str, path: str) -> None:
        if self.error:
            raise RuntimeError(self.error)
        if name in self.registered:
            raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : EP library is already registered under {name}")
        self.registered[name] = path

    def known(self) -> list[Any]:
        return [device for path in self.registered.values() for device in self.devices.get(path, [])]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
        """Put it in the library's place."""
        monkeypatch.setattr(ort, "register_execution_provider_library", self.register, raising=False)
        monkeypatch.setattr(ort, "get_ep_devices", self.known, raising=False)
        return self
