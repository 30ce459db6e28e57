"""What Redis's errors mean, in sentences that quote nothing of them: their text can contain URL, user and password."""

from __future__ import annotations

import re

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    ClusterCrossSlotError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    ReadOnlyError,
)
from redis.sentinel import MasterNotFoundError

CLUSTER = (
    "Redis Cluster is not supported, because a job's keys lie in several slots: "
    "use a single server, or one with replicas and Sentinel."
)


def what_it_means(error: BaseException) -> str | None:
    """A sentence about an error that trying again does not mend; None: the server cannot be reached just now."""
    text = str(error)
    if isinstance(error, MovedError | AskError | ClusterCrossSlotError | ClusterDownError) or "cluster node" in text:
        return CLUSTER
    if isinstance(error, AuthenticationError | AuthenticationWrongNumberOfArgsError) or re.match(
        r"NOAUTH|WRONGPASS", text
    ):
        return "The job store refuses the user name or password of the Redis URL."
    if isinstance(error, NoPermissionError) or text.startswith("NOPERM") or "ACL failure" in text:
        command = re.search(r"'([a-z|]{2,24})' command", text)
        of = f" for the command {command.group(1)}" if command else ""
        return f"The job store's user lacks a permission{of}; docs/redis.md lists those that are needed."
    if isinstance(error, ReadOnlyError):
        return "The job store is a replica just now, which cannot be written to; try again."
    if isinstance(error, MasterNotFoundError):
        return "No Sentinel that can be reached names a master; try again."
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "The job store's TLS certificate is not trusted; ssl_ca_certs in the Redis URL names who may sign it."
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text:
        return "The job store does not speak TLS on this port."
    return None
