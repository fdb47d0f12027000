"""Nothing is sent anywhere and nothing is left behind: what libraries do of their own accord is turned off here."""

from __future__ import annotations

import os

# Of ONNX Runtime 1.29 and later; the Privacy.md in its package documents it. Its disable_telemetry_events() is no
# substitute: importing the package has by then written an identifier to the user's home and queued the first event.
TELEMETRY = "ORT_DISABLE_TELEMETRY"


def be_silent() -> None:
    """Keep ONNX Runtime from reporting to its maker. Whoever has set the variable to anything but "" keeps what he set.

    The library reads the environment once, when it is first imported: this has to come before, and importing freeprompt
    does it. A program that imports onnxruntime first has to set the variable itself.
    """
    if not os.environ.get(TELEMETRY):
        os.environ[TELEMETRY] = "1"
