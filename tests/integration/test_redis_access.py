"""Ways into Redis: TLS, passwords, users with few permissions, a socket; and the servers that are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import redis
import trustme

from clip_queue.shared.broker import celery_app
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from clip_queue.shared.workers import workers
from tests.harness import free_port, stack, wait_for
from tests.jobs_api import submit_texts, succeeded
from tests.redis_servers import PASSWORD, QUOTED, needs_redis, server
from tests.wire import embed_texts, vectors

pytestmark = [needs_redis, pytest.mark.slow, pytest.mark.timeout(400)]


def serves(folder: Path, url: str, *, celery_tools: bool = False) -> None:
    """Both doors work with this URL: the store, the replies and the queue, in the API and in the worker."""
    with stack(folder, redis_url=url, celery_tools=celery_tools) as it:
        worker, api = it.worker(), it.api()
        it.ready(worker, api, timeout=180)
        with api.client() as http:
            assert vectors(embed_texts(http, ["through this door"])).shape == (1, 128)
            assert succeeded(http, submit_texts(http, "a job", "through this door")).shape == (2, 128)
        if celery_tools:
            looking, events = celery_app(Settings(redis_url=url)), list[object]()  # type: ignore[arg-type]
            (seen,) = (looking.control.inspect(timeout=20, limit=1).stats() or {}).values()
            with looking.connection_for_read() as connection:
                looking.events.Receiver(connection, handlers={"*": events.append}).capture(limit=8, timeout=20)
            assert events
            assert not any(secret in str(seen) for secret in (PASSWORD, QUOTED))


def refusal(url: str) -> str:
    """What a caller is told of a Redis that lets nobody in."""
    store = Store.connect(Settings(redis_url=url))  # type: ignore[arg-type]
    try:
        with pytest.raises(Unavailable) as told:
            store.execute(workers())
    finally:
        store.close()
    return told.value.message


@pytest.mark.parametrize("celery_tools", [False, True])
def test_a_user_with_the_documented_permissions_is_enough(tmp_path: Path, celery_tools: bool) -> None:
    page = (Path(__file__).parents[2] / "docs/redis.md").read_text()
    rules = re.findall(r"```text\nuser clip-queue (.*?)```", page, re.DOTALL)
    rule = " ".join(rules if celery_tools else rules[:1])
    permissions = " ".join(rule.replace("on >PASSWORD", f'on ">{PASSWORD}"').split())
    with server(tmp_path, user=f"clip-queue {permissions}") as it:
        with redis.Redis(port=it.port) as client:
            client.execute_command("ACL", "LOG", "RESET")
            serves(tmp_path, f"redis://clip-queue:{QUOTED}@127.0.0.1:{it.port}/0", celery_tools=celery_tools)
            denied = [entry["object"] for entry in client.acl_log()]
            assert denied == []
            client.execute_command("ACL", "SETUSER", "poor", "on", ">pass", "~*", "+ping", "+hello", "+client")
        assert "lacks a permission for the command" in refusal(f"redis://poor:pass@127.0.0.1:{it.port}")
        wrong = refusal(f"redis://clip-queue:other@127.0.0.1:{it.port}")
        assert "refuses the user name or password" in wrong


def test_over_tls_with_an_authority_and_a_password(tmp_path: Path) -> None:
    authority = trustme.CA()
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "key", "cert")}
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(files["ca"])
    issued.private_key_pem.write_to_path(files["key"])
    issued.cert_chain_pems[0].write_to_path(files["cert"])
    port = free_port()
    tls = {"tls_cert_file": files["cert"], "tls_key_file": files["key"], "tls_ca_cert_file": files["ca"]}
    config = {"tls_port": str(port), "tls_auth_clients": "no", "requirepass": f'"{PASSWORD}"'}
    with server(tmp_path, **config, **{name: str(path) for name, path in tls.items()}) as it:
        address = f"127.0.0.1:{port}/0"
        serves(tmp_path, f"rediss://:{QUOTED}@{address}?ssl_ca_certs={files['ca']}")
        assert "certificate is not trusted" in refusal(f"rediss://:{QUOTED}@{address}")
        assert "refuses the user name or password" in refusal(it.url)


def test_over_a_socket_of_this_machine(tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    with server(tmp_path, unixsocket=str(socket), requirepass=f'"{PASSWORD}"'):
        serves(tmp_path, f"unix://:{QUOTED}@{socket}?db=2", celery_tools=True)


def test_a_cluster_is_refused_with_a_sentence(tmp_path: Path) -> None:
    bus = str(free_port())  # else 10,000 above its port, where there may be none
    with server(tmp_path, cluster_enabled="yes", cluster_port=bus) as it, stack(tmp_path, redis_url=it.url) as services:
        worker, api = services.worker(), services.api()
        for service in (worker, api):
            wait_for(lambda service=service: not service.alive, 150, f"the end of {service.name}")
            assert "Redis Cluster is not supported" in service.tail(), service.tail()
            assert service.process is not None
            assert service.process.returncode != 0
        assert "Redis Cluster is not supported" in refusal(it.url)
