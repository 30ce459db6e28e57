"""What an error of Redis means, and which servers are refused at the start."""

from __future__ import annotations

from typing import Any

import pytest
from redis import exceptions
from redis.sentinel import MasterNotFoundError

from clip_queue.shared.errors import Unavailable
from clip_queue.shared.redis_errors import what_it_means
from clip_queue.shared.server_check import WrongServer, server_check
from clip_queue.shared.store import Op, replicated, unavailable

CLUSTER = "Redis Cluster is not supported"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (exceptions.MovedError("1 10.0.0.7:6379"), CLUSTER),
        (exceptions.ClusterCrossSlotError("Keys in request don't hash to the same slot"), CLUSTER),
        (
            exceptions.ResponseError("Script attempted to access a non local key in a cluster node script: s3cr3t"),
            CLUSTER,
        ),
        (exceptions.AuthenticationError("WRONGPASS invalid username-password pair s3cr3t"), "user name or password"),
        (exceptions.AuthenticationError("Authentication required."), "user name or password"),
        (exceptions.ResponseError("NOAUTH Authentication required."), "user name or password"),
        (
            exceptions.NoPermissionError("User s3cr3t has no permissions to run the 'evalsha' command"),
            "command evalsha",
        ),
        (exceptions.NoPermissionError("No permissions to access a key"), "lacks a permission"),
        (exceptions.ResponseError("ACL failure in script: s3cr3t"), "lacks a permission"),
        (exceptions.ReadOnlyError("You can't write against a read only replica."), "a replica"),
        (MasterNotFoundError("No master found for 's3cr3t'"), "No Sentinel"),
        (exceptions.ConnectionError("[SSL: CERTIFICATE_VERIFY_FAILED] s3cr3t"), "ssl_ca_certs"),
        (exceptions.ConnectionError("[SSL: WRONG_VERSION_NUMBER] s3cr3t"), "does not speak TLS"),
        (exceptions.ConnectionError("Error 111 connecting to s3cr3t"), "cannot be reached (ConnectionError)"),
    ],
)
def test_an_error_is_told_by_its_kind_and_quotes_nothing(error: Exception, words: str) -> None:
    told = unavailable(error)
    assert words in told.message
    assert "s3cr3t" not in told.message
    assert (what_it_means(error) is None) == ("cannot be reached" in words)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"redis_mode": "cluster", "redis_version": "7.2.4"}, CLUSTER),
        ({"cluster_enabled": 1, "redis_version": "7.2.4"}, CLUSTER),
        ({"redis_mode": "sentinel", "redis_version": "7.2.4"}, "sentinel://"),
        ({"redis_version": "6.2.14"}, "Redis 6.2 is too old"),
        ({"redis_version": "7.2.4", "role": "slave"}, "replica"),
    ],
)
def test_a_server_that_cannot_serve_is_refused(about: dict[str, Any], words: str) -> None:
    with pytest.raises(WrongServer, match=words):
        server_check().parse([about])


@pytest.mark.parametrize("about", [{}, {"redis_version": "7.0.15", "role": "master"}, {"redis_version": "10.1"}])
def test_a_server_that_will_do_is_taken(about: dict[str, Any]) -> None:
    server_check().parse([about])


def test_an_operation_that_too_few_replicas_have_is_refused() -> None:
    op = Op([("SET", "k", "v")], lambda replies: len(replies))
    assert replicated(op, 0, 1.0) is op
    waiting = replicated(op, 2, 0.75)
    assert waiting.commands[-1] == ("WAIT", 2, 750)
    assert waiting.parse([b"OK", 2]) == 1
    with pytest.raises(Unavailable, match="Only 1 of 2 replicas"):
        waiting.parse([b"OK", 1])
