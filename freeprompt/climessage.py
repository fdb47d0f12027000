"""Words for a terminal: control characters escaped."""

from __future__ import annotations


def escaped(text: str) -> str:
    """Control and other unprintable characters as Python writes them: a terminal would obey some."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
