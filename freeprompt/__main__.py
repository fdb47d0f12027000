"""``python -m freeprompt``."""

from __future__ import annotations

import sys

from freeprompt.cli import main

sys.exit(main())
