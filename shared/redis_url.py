"""The setting ``redis_url``: one string that says where Redis is and how to get in.

    redis://[user:password@]host[:port][/db]                    one server
    rediss://…[?ssl_ca_certs=/path]                             the same over TLS
    unix://[user:password@]/path[?db=0]                         the same over a socket of this machine
    sentinel://[user:password@]host[:port][;host[:port]…][/db]  the master that Sentinels name

No error here quotes the URL: what is wrong in it may be its password.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

SCHEMES = ("redis", "rediss", "unix", "sentinel")
PORTS = {"redis": 6379, "rediss": 6379, "sentinel": 26379}
MASTER_NAME = "mymaster"  # as Redis's own sentinel.conf calls it

_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS = (*_FILES, "ssl_cert_reqs", "ssl_check_hostname")
_OPTIONS = {
    "redis": ("db",),
    "rediss": ("db", *_TLS),
    "unix": ("db",),
    "sentinel": ("db", "master_name", "sentinel_username", "sentinel_password", "ssl", *_TLS),
}
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class RedisUrl:
    """What a URL says.

    Args:
        hosts: the server, or the Sentinels; none where ``path`` names a socket.
        tls: what redis-py and kombu take as ``ssl_…``; None: no TLS. It holds for the Sentinels too.
        master_name: the name that the Sentinels know the master by; None: no Sentinel.
        sentinel_login: ``username`` and ``password`` for the Sentinels themselves.
    """

    hosts: tuple[tuple[str, int], ...]
    path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: dict[str, Any] | None = None
    master_name: str | None = None
    sentinel_login: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def login(self) -> dict[str, Any]:
        """``username`` and ``password``, as far as they are given."""
        given = {"username": self.username, "password": self.password}
        return {name: value for name, value in given.items() if value is not None}

    def for_kombu(self) -> str:
        """The same in kombu's words. What kombu takes elsewhere (TLS, the master's name) is not in it."""
        login = quote(self.username or "", safe="")
        if self.password is not None:
            login += f":{quote(self.password, safe='')}"
        login += "@" if login else ""
        if self.path:
            return f"redis+socket://{login}{quote(self.path)}?virtual_host={self.db}"
        scheme = "sentinel" if self.master_name else "rediss" if self.tls else "redis"
        hosts = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts]
        return ";".join(f"{scheme}://{login}{host}/{self.db}" for host in hosts)


class BadRedisUrl(ValueError):
    """The setting is no URL of Redis: one sentence, which quotes nothing that may be secret."""


def check_redis_url(url: str) -> None:
    """Raises :class:`BadRedisUrl` if :func:`parse_redis_url` cannot read ``url``."""
    parse_redis_url(url)


def parse_redis_url(url: str) -> RedisUrl:
    """Read a URL. Raises :class:`BadRedisUrl`."""
    scheme, mark, _ = url.partition("://")
    scheme = scheme.strip().lower()
    if not mark or scheme not in SCHEMES:
        shown = f", not {scheme}://" if mark and scheme.isalnum() else ""
        raise _wrong(f"it begins with {', '.join(f'{s}://' for s in SCHEMES[:-1])} or {SCHEMES[-1]}://{shown}")
    first, *others = [part.strip() for part in url.strip().split(";")]
    if others and scheme != "sentinel":
        raise _wrong("only sentinel:// names several servers; a ';' in a password is written %3B")
    parts = [_split(first), *(_split(part if "://" in part else f"sentinel://{part}") for part in others if part)]
    if any(part.scheme.lower() != scheme for part in parts):
        raise _wrong("all of its parts begin with sentinel://")
    options = dict(option for part in parts for option in parse_qsl(part.query, keep_blank_values=True))
    if not options.keys() <= set(_OPTIONS[scheme]):  # which one is not said: it may be the rest of a password
        there = ", ".join(_OPTIONS[scheme])
        raise _wrong(
            f"{scheme}:// has the options {there} and no other; a '?' in a user name or password is written %3F"
        )
    if scheme == "unix":
        if parts[0].hostname or parts[0].path in ("", "/"):
            raise _wrong("unix:// is followed by the absolute path of a socket")
        hosts, path, named = [], unquote(parts[0].path), [options.get("db", "")]
    else:
        hosts, path = [_host(part, PORTS[scheme]) for part in parts], ""
        named = [part.path.strip("/") for part in parts] + [options.get("db", "")]
    login = next((part for part in parts if part.username or part.password), parts[0])
    return RedisUrl(
        hosts=tuple(hosts),
        path=path,
        db=_db([name for name in named if name]),
        username=unquote(login.username) if login.username else None,
        password=unquote(login.password) if login.password else None,
        tls=_tls(scheme, options),
        master_name=(options.get("master_name") or MASTER_NAME) if scheme == "sentinel" else None,
        sentinel_login={
            name: options[f"sentinel_{name}"] for name in ("username", "password") if f"sentinel_{name}" in options
        },
    )


def _wrong(why: str) -> BadRedisUrl:
    return BadRedisUrl(f"The Redis URL is not right: {why}.")


def _split(url: str) -> Any:
    try:
        parts = urlsplit(url)
    except ValueError:  # its text quotes the URL
        raise _wrong("its host cannot be read (an IPv6 address stands in brackets)") from None
    if parts.fragment or "#" in url:
        raise _wrong("a '#' in a user name or password is written %23")
    return parts


def _host(parts: Any, default: int) -> tuple[str, int]:
    hint = "(in a user name or password '/' is written %2F, '@' %40, ':' %3A, '?' %3F)"
    if not parts.hostname:
        raise _wrong(f"it names no host {hint}")
    try:
        port = parts.port
    except ValueError:  # its text quotes what stands there, which may be a password
        port = 0
    if port == 0:
        raise _wrong(f"its port is not a number from 1 to 65535 {hint}")
    return unquote(parts.hostname), port or default


def _db(named: list[str]) -> int:
    numbers = {unquote(name) for name in named}
    if len(numbers) > 1:
        raise _wrong("it names two databases")
    number = numbers.pop() if numbers else "0"
    if not (number.isascii() and number.isdigit() and len(number) <= 5):
        raise _wrong("the database after the host is a number, as in redis://host:6379/0")
    return int(number)


def _tls(scheme: str, options: dict[str, str]) -> dict[str, Any] | None:
    """TLS verifies the server unless the URL says otherwise. kombu would not: so nothing is left to its defaults."""
    given = {name: value for name, value in options.items() if name in _TLS}
    wanted = scheme == "rediss" or _switch(options, "ssl", default=bool(given))
    if not wanted:
        return None
    required = given.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if required not in ("required", "optional", "none"):
        raise _wrong("ssl_cert_reqs is required, optional or none")
    tls: dict[str, Any] = {"ssl_cert_reqs": required}
    tls["ssl_check_hostname"] = required != "none" and _switch(given, "ssl_check_hostname", default=True)
    for name in _FILES:
        if name in given:
            if not Path(given[name]).is_file():
                raise _wrong(f"{name} names no file that can be read")
            tls[name] = given[name]
    return tls


def _switch(options: dict[str, str], name: str, *, default: bool) -> bool:
    value = options.get(name, "").lower()
    if value and value not in (*_YES, *_NO):
        raise _wrong(f"{name} is true or false")
    return value in _YES if value else default
