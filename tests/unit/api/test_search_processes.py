"""What a process that searches is told."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from clip_queue.api.search_processes import Searches, environment
from clip_queue.shared.settings import Settings


def test_a_process_is_told_no_key_and_no_address_of_redis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("CLIP_QUEUE_API_KEYS=secret-1\nclip_queue_redis_url=redis://:secret-2@host\n")
    monkeypatch.setenv("clip_queue_api_keys", "secret-3")
    monkeypatch.setenv("CLIP_QUEUE_REDIS_URL", "redis://:secret-4@host")
    settings = Settings()
    assert "secret" in settings.redis_url.get_secret_value()
    told = environment(settings.model_copy(update={"search": ["a=/b"]}))
    assert not [name for name, value in told.items() if "secret" in value]
    for name in ("clip_queue_api_keys", "CLIP_QUEUE_REDIS_URL"):
        monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    heard = Settings(_env_file=None)  # as the process does
    assert not heard.api_keys
    assert "secret" not in heard.redis_url.get_secret_value()
    assert heard.search == ["a=/b"]


async def test_who_cannot_wait_is_told_what_was_known_and_takes_no_place(tmp_path: Path) -> None:
    started = tmp_path / "started"
    program = f"import time; open({str(started)!r}, 'a').write('x'); time.sleep(600)"
    settings = Settings(_env_file=None, search=[f"photos={tmp_path}"], search_processes=3)
    searches = Searches(settings, command=(sys.executable, "-c", program))
    try:
        async with asyncio.timeout(60):
            for _ in range(10):
                (found,) = await searches.glance(0.01)
                assert (found["name"], found["rows"], found["problem"]) == ("photos", 0, "It is being opened.")
            while not started.exists():
                await searches.glance(0.05)
        assert searches._idle.qsize() == 2  # one process is asked, by one look
    finally:
        await searches.close()
    assert started.read_text() == "x"
