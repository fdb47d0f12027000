"""Text for a terminal, whatever it holds."""

from __future__ import annotations


def escaped(text: str) -> str:
    """Control and other unprintable characters as Python writes them: a terminal would obey some."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(message: str) -> str:
    """Runs of white space, line ends among them, as one space; other control characters escaped."""
    return escaped(" ".join(message.split()))
