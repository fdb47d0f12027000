"""Handing weights to ONNX Runtime from memory.

Given a path the library would map the file that lies there by then: another one than was checked, or one that is cut
while it is mapped, which ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from freeprompt.contract.bundle import Bundle
from freeprompt.contract.bundle_files import KEPT_BYTES
from freeprompt.engines.onnxruntime.external_data import check_external

# Where the library looks for what it was not given: nothing is there.
_NOWHERE = ("session.model_external_initializers_file_folder_path", "/dev/null/no-folder")
# And not its own format, which it would recognise and which was not looked at.
_ONNX_ONLY = ("session.load_model_format", "ONNX")


@dataclass(frozen=True)
class Given:
    """Memory that a session was given: to be kept while it loads, and where ``referred`` for as long as it lives."""

    memory: tuple[Any, ...] = ()
    referred: bool = False


def give_weights(options: Any, model: bytes, bundle: Bundle, graph: str) -> Given:
    """Let a session load ``model`` with weights from the bundle's files alone.

    Args:
        options: the session's, ``onnxruntime.SessionOptions``; changed.
        model: an ONNX file.
        graph: its name, for messages.

    Raises:
        BackendError: it is no ONNX file, or names weights that the bundle does not list.
        BundleError: a file was changed since the bundle was opened.
    """
    options.add_session_config_entry(*_NOWHERE)
    options.add_session_config_entry(*_ONNX_ONLY)
    tensors = check_external(bundle, model, graph)
    views = {name: bundle.files.view(name) for name in sorted({tensor.location for tensor in tensors})}
    if not views:
        return Given()
    small = sum(len(view) for view in views.values()) <= KEPT_BYTES
    if not small and hasattr(options, "add_external_initializers_from_files_in_memory"):
        # The library copies what it needs; the rest is free when it has loaded.
        options.add_external_initializers_from_files_in_memory(
            list(views), list(views.values()), [len(view) for view in views.values()]
        )
        return Given(tuple(views.values()))
    values = []
    for tensor in tensors:
        part = np.frombuffer(views[tensor.location], np.uint8, tensor.nbytes, tensor.offset)
        # At an odd place it would have to be read byte by byte.
        aligned = part if tensor.offset % tensor.dtype.itemsize == 0 else part.copy()
        values.append(ort.OrtValue.ortvalue_from_numpy(aligned.view(tensor.dtype).reshape(tensor.shape)))
    options.add_external_initializers([tensor.name for tensor in tensors], values)
    return Given((*views.values(), *values), referred=True)


def trim_memory() -> None:
    """Give the system back what was freed while a graph was loaded, where the C library keeps it for itself (glibc)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
