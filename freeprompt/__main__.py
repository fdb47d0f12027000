"""``python -m freeprompt``."""

from __future__ import annotations

import os
import sys


def _leave_current_folder() -> None:
    """With -m the current folder is the first to be searched: a numpy.py among a user's files would be imported."""
    try:
        current = os.getcwd()  # noqa: PTH109  (pathlib is not imported yet)
    except OSError:  # it has been removed
        current = ""
    # Where Python was told not to search it, the first folder is another one.
    if sys.path and sys.path[0] in ("", current) and not getattr(sys.flags, "safe_path", False):
        del sys.path[0]


if __name__ == "__main__":
    _leave_current_folder()

    from freeprompt.cli import main

    sys.exit(main())
