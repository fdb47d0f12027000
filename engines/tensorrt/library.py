"""The TensorRT library: whether it is there, which version, and its messages as errors that say what to do."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from freeprompt.contract.errors import BackendError

OLDEST = "8.6"
INSTALL = (
    "install it with 'pip install tensorrt-cu12' or 'tensorrt-cu13' (10.3 or later, matching the driver's CUDA), "
    "or take the one of JetPack; ONNX Runtime needs no build: use --backend cuda or cpu"
)


def import_tensorrt() -> Any:
    """The ``tensorrt`` module.

    Raises:
        BackendError: not installed, its libraries are missing, or older than ``OLDEST``.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        missing = getattr(error, "name", None) == "tensorrt"
        reason = "is not installed" if missing else f"cannot be loaded ({error})"
        raise BackendError(f"TensorRT {reason}; {INSTALL}") from error
    except (OSError, RuntimeError) as error:
        raise BackendError(f"TensorRT cannot be loaded ({error}); {INSTALL}") from error
    if not hasattr(trt, "__version__"):
        raise BackendError(f"the module 'tensorrt' is not TensorRT; {INSTALL}")
    if not at_least(trt, OLDEST):
        raise BackendError(f"TensorRT {trt.__version__} is too old; {OLDEST} is the first supported. {INSTALL}")
    return trt


def at_least(trt: Any, version: str) -> bool:
    """Whether the library is of that version or later.

    The conformance test follows it: code under ``if at_least(trt, "10.3")`` is checked against 10.3 and later only.
    """
    return _numbers(trt.__version__) >= _numbers(version)


class Messages:
    """What TensorRT said during a build or a load, kept for the error that may follow.

    Attributes:
        logger: to be given to TensorRT.
        errors, warnings: its messages in order.
    """

    def __init__(self, trt: Any) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        severe = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
        messages = self

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if severity in severe:
                    messages.errors.append(msg)
                elif severity == trt.ILogger.WARNING:
                    messages.warnings.append(msg)

        self.logger = Logger()

    def failure(self, action: str) -> BackendError:
        """The error for an action that failed: TensorRT returns None and has said why."""
        return BackendError(f"TensorRT could not {action}: {explain(self.errors)}")


def explain(errors: list[str]) -> str:
    """One line from TensorRT's messages: the cause it knows, and what to do about it."""
    text = " ".join(errors)
    if re.search(r"out of memory|OutOfMemory|allocat\w+ failed|insufficient (device )?memory", text, re.I):
        return (
            f"out of memory ({_first(errors)}). Build with a smaller --workspace, fewer --rows or a smaller --size, "
            "and close other programs on the GPU"
        )
    node = re.search(r"Could not find any implementation for node ([^\s]+)", text)
    if node:
        return (
            f"it has no kernel for node {node.group(1)} within the workspace; build with a larger --workspace, "
            "or use --backend cuda"
        )
    if re.search(r"CUDA initialization failure|insufficient.*driver|no CUDA-capable device", text, re.I):
        return f"there is no GPU that it can use, or the driver is too old for it ({_first(errors)})"
    if re.search(r"Version tag does not match|incompatible.*version|Serialization.*version", text, re.I):
        return "the engine is of another TensorRT version; build it again with 'freeprompt build'"
    return _first(errors)


def parser_failure(parser: Any, trt: Any, path: Path) -> BackendError:
    """The error for an ONNX file that the parser refused: which node and why."""
    reasons = []
    for index in range(parser.num_errors):
        refusal = parser.get_error(index)
        where = f"node {refusal.node()}"
        if at_least(trt, "10.3"):
            where = f"node {refusal.node_name()} ({refusal.node_operator()})"
        reasons.append(f"{where}: {refusal.desc()}")
    shown = "; ".join(reasons[:3]) or "no reason given"
    return BackendError(
        f"TensorRT {trt.__version__} cannot take {path.name}: {shown}. "
        "An operator it lacks may be absent at a lower opset (export with --opset 18), or use --backend cuda"
    )


def _first(errors: list[str]) -> str:
    """The first message is nearest to the cause; later ones say that what needed it failed too."""
    line = errors[0].strip().splitlines()[0] if errors and errors[0].strip() else "it gave no reason"
    return line if len(line) <= 300 else f"{line[:297]}..."


def _numbers(version: str) -> tuple[int, ...]:
    found: re.Match[str] | None = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(n) for n in found.group().split(".")) if found else (0,)
