"""The URL of Redis: what is read, and what is refused in one sentence without a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_queue.shared.redis_url import RedisUrl, check_redis_url, parse_redis_url

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "parsed", "kombu"),
    [
        ("redis://host", RedisUrl((("host", 6379),)), "redis://host:6379/0"),
        ("redis://host:1/2", RedisUrl((("host", 1),), db=2), "redis://host:1/2"),
        ("redis://[::1]:7/?db=3", RedisUrl((("::1", 7),), db=3), "redis://[::1]:7/3"),
        (
            "redis://us%3Aer:p%40ss%2Fw%3Brd@host/1",
            RedisUrl((("host", 6379),), db=1, username="us:er", password="p@ss/w;rd"),
            "redis://us%3Aer:p%40ss%2Fw%3Brd@host:6379/1",
        ),
        (
            "rediss://:pass@host",
            RedisUrl((("host", 6379),), password="pass", tls={"ssl_cert_reqs": "required", "ssl_check_hostname": True}),
            "rediss://:pass@host:6379/0",
        ),
        (
            "unix://:pass@/run/redis.sock?db=4",
            RedisUrl((), path="/run/redis.sock", db=4, password="pass"),
            "redis+socket://:pass@/run/redis.sock?virtual_host=4",
        ),
        (
            "sentinel://a",
            RedisUrl((("a", 26379),), master_name="mymaster"),
            "sentinel://a:26379/0",
        ),
        (
            "sentinel://u:p@a:1;sentinel://u:p@b:2/5?master_name=jobs&sentinel_username=su&sentinel_password=sp",
            RedisUrl(
                (("a", 1), ("b", 2)),
                db=5,
                username="u",
                password="p",
                master_name="jobs",
                sentinel_login={"username": "su", "password": "sp"},
            ),
            "sentinel://u:p@a:1/5;sentinel://u:p@b:2/5",
        ),
        (
            "sentinel://:p@a/1;b:2;c?ssl=true",
            RedisUrl(
                (("a", 26379), ("b", 2), ("c", 26379)),
                db=1,
                password="p",
                master_name="mymaster",
                tls={"ssl_cert_reqs": "required", "ssl_check_hostname": True},
            ),
            "sentinel://:p@a:26379/1;sentinel://:p@b:2/1;sentinel://:p@c:26379/1",
        ),
    ],
)
def test_a_url_is_read_and_said_in_kombus_words(url: str, parsed: RedisUrl, kombu: str) -> None:
    check_redis_url(url)
    assert parse_redis_url(url) == parsed
    assert parsed.for_kombu() == kombu


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "redis://, rediss://, unix:// or sentinel://"),
        (SECRET, "redis://, rediss://, unix:// or sentinel://"),
        (f"http://:{SECRET}@host", "not http://"),
        (f"{SECRET}:{SECRET}://host", "redis://"),
        (f"redis://:{SECRET}@/0", "no host"),
        ("redis://", "no host"),
        (f"redis://:{SECRET}/x@host/0", "%2F"),
        (f"redis://:{SECRET}#x@host/0", "%23"),
        (f"redis://user:{SECRET}@host:port/0", "port"),
        (f"redis://user:{SECRET}@host:0", "port"),
        (f"redis://user:{SECRET}@host:70000", "port"),
        (f"redis://user:{SECRET}@[::1/0", "IPv6"),
        (f"redis://user:{SECRET}@host/{SECRET}", "a number"),
        (f"redis://user:{SECRET}@host/-1", "a number"),
        (f"redis://user:{SECRET}@host/1?db=2", "two databases"),
        (f"redis://user:{SECRET}@host/1;redis://b", "%3B"),
        (f"redis://:{SECRET}@host?protocol=2", "has the options db and no other"),
        (f"redis://:abc?{SECRET}@host:6379/0", "a '?' in a user name or password is written %3F"),
        (f"rediss://:{SECRET}@host?ssl_cert_reqs=perhaps", "required, optional or none"),
        (f"rediss://:{SECRET}@host?ssl_check_hostname=perhaps", "true or false"),
        (f"rediss://:{SECRET}@host?ssl_ca_certs=/no/such/file", "ssl_ca_certs names no file"),
        (f"unix://:{SECRET}@", "absolute path"),
        ("unix://host/path", "absolute path"),
        (f"sentinel://:{SECRET}@a;redis://b", "sentinel://"),
        (f"sentinel://:{SECRET}@a/1;sentinel://b/2", "two databases"),
    ],
)
def test_a_url_that_is_none_is_refused_in_a_sentence_without_its_secret(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"^The Redis URL is not right: [^\n]+\.$") as refused:
        check_redis_url(url)
    assert words in str(refused.value)
    assert SECRET not in str(refused.value)


def test_tls_is_verified_unless_the_url_says_otherwise(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.touch()
    tls = parse_redis_url(f"rediss://host?ssl_ca_certs={authority}").tls
    assert tls == {"ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_ca_certs": str(authority)}
    assert parse_redis_url("rediss://host?ssl_check_hostname=false").tls == {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": False,
    }
    for word in ("none", "CERT_NONE"):  # redis-py's word and Celery's
        assert parse_redis_url(f"rediss://host?ssl_cert_reqs={word}").tls == {
            "ssl_cert_reqs": "none",
            "ssl_check_hostname": False,
        }


def test_what_is_shown_of_a_parsed_url_has_no_password() -> None:
    url = f"sentinel://:{SECRET}@a?sentinel_password={SECRET}"
    assert SECRET not in repr(parse_redis_url(url))
