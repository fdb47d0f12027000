"""freeprompt: Free-Prompt-Editing without PyTorch at run time.

>>> from freeprompt import Editor
>>> editor = Editor.load("demo")
>>> inversion = editor.invert("photo.png")
>>> image = editor.edit(inversion, ["a blue car"])[0]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from freeprompt.privacy import be_silent

if TYPE_CHECKING:
    from freeprompt.editor import Editor as Editor
    from freeprompt.runtime.source.inversion import Inversion as Inversion

# Here, since every module of ours comes after this one, and whatever imports onnxruntime with it.
be_silent()

__version__ = "0.1.0"
__all__ = ["Editor", "Inversion", "__version__"]

_HOMES = {"Editor": "freeprompt.editor", "Inversion": "freeprompt.runtime.source.inversion"}


def __getattr__(name: str) -> Any:
    # Loaded when first used: `freeprompt --help` must not wait for NumPy, Pillow and ONNX Runtime.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'freeprompt' has no attribute {name!r}")
