"""The form of a Redis URL."""

from __future__ import annotations

from urllib.parse import urlsplit

SCHEMES = ("redis", "rediss")


def check_redis_url(url: str) -> None:
    """Raises ValueError if it is none. The message quotes nothing of the URL: what is wrong may be its password."""
    scheme, mark, _ = url.partition("://")
    if not mark or scheme.lower() not in SCHEMES:
        raise ValueError(f"it begins with {' or '.join(f'{s}://' for s in SCHEMES)}")
    hint = "in a password '/' is written %2F, '@' %40, ':' %3A, '?' %3F, '#' %23"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"its port is not a number from 1 to 65535, or its host cannot be read ({hint})") from None
    if not parts.hostname or port == 0:
        raise ValueError(f"it names no host, or no port ({hint})")
    if parts.path.strip("/") and not parts.path.strip("/").isdecimal():
        raise ValueError("the database after the host is a number, as in redis://host:6379/0")
