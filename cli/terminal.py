"""What a terminal may be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """Text on one line, whatever is in it: names and captions come from anywhere, and a terminal obeys escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
