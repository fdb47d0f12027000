"""freeprompt: Free-Prompt-Editing without PyTorch at run time.

>>> from freeprompt import Editor
>>> editor = Editor.load("demo")
>>> inversion = editor.invert("photo.png")
>>> image = editor.edit(inversion, ["a blue car"])[0]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from freeprompt.contract.errors import (
    BackendError,
    BundleError,
    Cancelled,
    CheckpointError,
    CheckpointWarning,
    ExportError,
    FreePromptError,
    FreePromptWarning,
    ImageCroppedWarning,
    ImageError,
    InversionError,
    LimitError,
    NegativePromptUnusedWarning,
    OutputError,
    PromptTruncatedWarning,
    ProviderUnusedWarning,
    UsageError,
)
from freeprompt.privacy import be_silent

if TYPE_CHECKING:
    from freeprompt.editor import Editor as Editor
    from freeprompt.engines.fake import FakeBackend as FakeBackend
    from freeprompt.runtime.plan.limits import Limits as Limits
    from freeprompt.runtime.progress import Progress as Progress
    from freeprompt.runtime.source.inversion import Inversion as Inversion

# Here, since every module of ours comes after this one, and whatever imports onnxruntime with it.
be_silent()

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "BundleError",
    "Cancelled",
    "CheckpointError",
    "CheckpointWarning",
    "Editor",
    "ExportError",
    "FakeBackend",
    "FreePromptError",
    "FreePromptWarning",
    "ImageCroppedWarning",
    "ImageError",
    "Inversion",
    "InversionError",
    "LimitError",
    "Limits",
    "NegativePromptUnusedWarning",
    "OutputError",
    "Progress",
    "PromptTruncatedWarning",
    "ProviderUnusedWarning",
    "UsageError",
    "__version__",
]

# Loaded when first used: `freeprompt --help` must not wait for NumPy, Pillow and ONNX Runtime.
_HOMES = {
    "Editor": "freeprompt.editor",
    "FakeBackend": "freeprompt.engines.fake",
    "Inversion": "freeprompt.runtime.source.inversion",
    "Limits": "freeprompt.runtime.plan.limits",
    "Progress": "freeprompt.runtime.progress",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'freeprompt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
