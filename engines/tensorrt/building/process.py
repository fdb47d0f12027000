"""Building in a process of its own; what that is like inside is in ``child``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import BinaryIO

import msgspec

from freeprompt.contract.errors import BackendError
from freeprompt.engines.tensorrt.building.progress import Reporter
from freeprompt.engines.tensorrt.building.request import Answer, BuildRequest, Built, Done, Line, answer_to_error
from freeprompt.engines.tensorrt.library import FLAVOURS

# The same modules as here, whatever folder is the current one.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from freeprompt.engines.tensorrt.building.child import main; main()"
)
_SHOWN = 300


def build_in_child(request: BuildRequest, progress: Reporter = lambda line: None) -> Built:
    """Build an engine in a process of its own and wait for it. Whatever interrupts the waiting ends that process.

    Raises:
        BackendError: the library or polygraphy is missing, refused the graph, or its process crashed.
        OutputError: the engine cannot be written.
    """
    rtx = bool(FLAVOURS[request.backend].portable)
    # Polygraphy is told by the environment which library to use; and not to install what it misses.
    settings = {"POLYGRAPHY_USE_TENSORRT_RTX": str(int(rtx)), "POLYGRAPHY_AUTOINSTALL_DEPS": "0"}
    command = [sys.executable, "-c", _START, json.dumps(sys.path)]
    with (
        tempfile.TemporaryFile() as printed,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed, env={**os.environ, **settings}
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            try:
                process.stdin.write(msgspec.json.encode(request) + b"\n")
                process.stdin.flush()
            except BrokenPipeError:  # it has ended already; why is told below
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            for line in process.stdout:
                answer = msgspec.json.decode(line, type=Answer)
                if isinstance(answer, Line):
                    progress(answer.text)
                elif isinstance(answer, Done):
                    return answer.built
                else:
                    raise answer_to_error(answer)
            raise _crash(request, process.wait(), printed)
        finally:
            process.kill()


def _crash(request: BuildRequest, code: int, printed: BinaryIO) -> BackendError:
    """The error for a process that ended without an answer."""
    title = FLAVOURS[request.backend].title
    if code == -getattr(signal, "SIGKILL", 9):
        return BackendError(
            f"the build was ended from outside, as the system does when memory runs out: {title} took more than there "
            "is. Close other programs, build a smaller --size or fewer --rows, or build on another machine"
        )
    printed.seek(max(0, printed.seek(0, os.SEEK_END) - 4096))
    lines = [line for line in printed.read().decode(errors="replace").splitlines() if line.strip()]
    last = f": {lines[-1].strip()[:_SHOWN]}" if lines else ""
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return BackendError(
        f"{title} crashed while it built the engine ({how}{last}). It is no fault of the bundle's: try another "
        f"version of {title}, or use --backend cuda"
    )
