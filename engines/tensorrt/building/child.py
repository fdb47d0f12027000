"""The process that builds an engine for another (``process``): reads a request, writes answers as lines of JSON.

A build is minutes of foreign code that takes gigabytes. In a process of its own it can be ended at any moment, gives
its memory back to the system, and cannot take the one that asked for it down with it.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import cast

import msgspec

from freeprompt.contract.errors import BackendError, FreePromptError
from freeprompt.engines.tensorrt.building.progress import Reporter
from freeprompt.engines.tensorrt.building.request import Answer, BuildRequest, Built, Done, Line, error_to_answer
from freeprompt.engines.tensorrt.library import load_library

INSTALL_POLYGRAPHY = "polygraphy is not installed, which builds engines; install it: pip install polygraphy"


def main() -> None:
    """Build what the first line of the standard input asks for; the end of that input ends this process."""
    # A terminal sends Ctrl-C to both; it is for the other to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=BuildRequest)
    threading.Thread(target=_end_with_the_other, daemon=True).start()

    def send(answer: Answer) -> None:
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()

    try:
        built = _build(request, lambda text: send(Line(text)))
        send(Done(replace(built, peak_memory_bytes=_peak_memory_bytes())))
    except FreePromptError as error:
        send(error_to_answer(error))
    except MemoryError:
        send(error_to_answer(BackendError("memory ran out during the build; close other programs, or build elsewhere")))


def _build(request: BuildRequest, progress: Reporter) -> Built:
    library = load_library(request.backend)
    # Polygraphy imports TensorRT-RTX by the name of the package that only adds a name to the bindings.
    sys.modules.setdefault(library.flavour.modules[0], cast("ModuleType", library.trt))
    try:
        from freeprompt.engines.tensorrt.building.compile import compile_engine
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "polygraphy":
            raise BackendError(INSTALL_POLYGRAPHY) from error
        raise
    return compile_engine(request, library, progress)


def _end_with_the_other() -> None:
    """End this process when the one that asked for it is gone, however it went: its end of the input is closed then."""
    while os.read(0, 1):
        pass
    signal.raise_signal(signal.SIGTERM)


def _peak_memory_bytes() -> int:
    """Most memory that this process has held; 0 on systems that tell it otherwise than Linux.

    Not getrusage's figure, which starts with that of the process which started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
