"""What a process that searches is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_queue.api.search_processes import environment
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
