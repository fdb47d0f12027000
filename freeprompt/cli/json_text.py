"""What commands print with --json."""

from __future__ import annotations

import json
from typing import Any


def value_to_json(value: Any) -> str:
    """Indented JSON of anything that msgspec encodes. Characters that a terminal would obey stand as \\uXXXX."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=1).decode()
    # Outside strings JSON has no such character but the line ends, so that the value is the same.
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
