"""What a client wants to get: the Accept header (RFC 9110, 12.5.1)."""

from __future__ import annotations


def weight(accept: str, media_type: str) -> float:
    """How much an Accept header that names a type wants it; one that does not name it (``*/*``) wants it little."""
    for each in accept.lower().split(","):
        name, *parameters = (part.strip() for part in each.split(";"))
        if name == media_type:
            quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
            try:
                return float(quality)
            except ValueError:
                return 0.0
    return 0.0
