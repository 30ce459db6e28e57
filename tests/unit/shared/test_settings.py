"""Settings: the table in the documentation is what the class says, and what is set arrives as it was set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from clip_queue.shared.settings import END, START, Settings, table
from tests.harness import ROOT


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CLIP_QUEUE_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)  # and no .env


def test_the_documented_table_is_the_one_that_the_settings_make() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    section = START + page.partition(START)[2].partition(END)[0] + END
    assert section == table(), (
        f"docs/settings.md is old: from {START} on, put the output of `python -m clip_queue.shared.settings` there"
    )


def test_the_table_names_every_setting_with_its_meaning_and_default() -> None:
    lines = table().splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    assert list(rows) == [f"CLIP_QUEUE_{name.upper()}" for name in Settings.model_fields]
    for name, field in Settings.model_fields.items():
        assert field.description
        assert field.description.replace("|", "\\|") in rows[f"CLIP_QUEUE_{name.upper()}"]
    assert "| `emoji-mini` |" in rows["CLIP_QUEUE_MODELS"]
    assert "| `redis://127.0.0.1:6379/0` |" in rows["CLIP_QUEUE_REDIS_URL"]
    assert "| none |" in rows["CLIP_QUEUE_API_KEYS"]
    assert all(line.count("|") - line.count("\\|") == 4 for line in rows.values())


def test_the_command_prints_the_table() -> None:
    command = [sys.executable, "-W", "error", "-m", "clip_queue.shared.settings"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == table()


def test_lists_are_comma_separated_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_QUEUE_MODELS", " ViT-B-16, mine=local-dir:/a ,")
    monkeypatch.setenv("CLIP_QUEUE_API_KEYS", "one, two")
    settings = Settings()
    assert settings.models == ["ViT-B-16", "mine=local-dir:/a"]
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]


def test_a_dotenv_file_is_read_and_the_environment_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("CLIP_QUEUE_MAX_ITEMS=5\nCLIP_QUEUE_MAX_TEXTS=6\nOTHER=7\n")
    monkeypatch.setenv("CLIP_QUEUE_MAX_TEXTS", "60")
    assert (Settings().max_items, Settings().max_texts) == (5, 60)


def test_settings_pass_through_the_environment_of_a_child_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        models=["ViT-B-16", "mine=a/b"],
        api_keys=["one", "two"],  # type: ignore[list-item]
        redis_url="redis://:password@host/1",  # type: ignore[arg-type]
        fetch_allow_http=True,
        request_timeout=1.5,
    )
    for name, value in settings.env().items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_secrets_are_not_printed() -> None:
    settings = Settings(api_keys="k3y-one", redis_url="redis://:passw0rd@host")  # type: ignore[arg-type]
    assert "k3y-one" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert "passw0rd" not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("models", ""),
        ("max_items", "0"),
        ("request_timeout", "0"),
        ("precision", "int4"),
        ("lease", "0.1"),
        ("worker_threads", "1"),
        ("max_body_bytes", "many"),
    ],
)
def test_a_value_that_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"CLIP_QUEUE_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name):
        Settings()


def test_an_empty_path_is_none_and_not_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", " "):
        monkeypatch.setenv("CLIP_QUEUE_DATA_DIR", value)
        monkeypatch.setenv("CLIP_QUEUE_CACHE_DIR", value)
        assert Settings().data_dir == Path.home() / ".clip-queue"
        assert Settings().cache_dir is None


def test_an_origin_is_taken_as_a_browser_sends_it() -> None:
    origins = "https://App.example.org/, http://localhost:3000,*"
    assert Settings(cors_origins=origins).cors_origins == [  # type: ignore[arg-type]
        "https://app.example.org",
        "http://localhost:3000",
        "*",
    ]


def test_without_a_model_there_is_nothing_to_serve() -> None:
    with pytest.raises(ValidationError, match="name at least one model"):
        Settings(models=[])


def test_settings_cannot_change_under_a_running_process() -> None:
    with pytest.raises(ValidationError):
        Settings().max_items = 9  # type: ignore[misc]
