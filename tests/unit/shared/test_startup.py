"""How a process begins: what is wrong with its settings is a line that names them, and never a secret."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from clip_queue.shared import startup
from clip_queue.shared.settings import Settings
from tests.harness import ROOT

SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the environment, and an empty working folder."""
    for name in [name for name in os.environ if name.upper().startswith("CLIP")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


WRONG = [
    ("MODELS", "no-such", "unknown model 'no-such'"),
    ("MODELS", "emoji-mini,ViT-B-32,emoji-mini", "the name 'emoji-mini' stands there twice"),
    ("MODELS", "a=ViT-B-32/openai,a=RN50/openai", "the name 'a' stands there twice"),
    ("MODELS", ",", "name at least one model"),
    ("MODEL_ALIASES", "text-embedding-3-small", "must be ALIAS=MODEL"),
    ("MODEL_ALIASES", "a=b,a=c", "the alias 'a' stands there twice"),
    ("LEASE", SECRET, "valid number"),
    ("MAX_ITEMS", "0", "greater than or equal to 1"),
    ("MAX_ITEMS", "1e400", "valid integer"),
    ("INTERACTIVE_JOBS", "perhaps", "valid boolean"),
    ("PRECISION", "int4", "'fp32'"),
    ("LOG_LEVEL", "loud", "use one of DEBUG"),
    ("FETCH_ALLOW_NETWORKS", "10.0.0.0/8,10.0.0.0/99", "'10.0.0.0/99' is not a network"),
    ("FETCH_ALLOW_HOSTS", "https://x.test", "is not a host"),
    ("FETCH_DENY_HOSTS", "*.*.test", "is not a host"),
    *((name, value, "") for name in ("RESULT_TTL", "LEASE", "DRAIN_TIMEOUT") for value in ("inf", "nan", "1e18", "-1")),
    ("MAX_ITEMS", "99999999999999999999", "less than or equal to"),
    ("CORS_ORIGINS", "https://a.test,app.example.org", "'app.example.org' is not an origin"),
    ("CORS_ORIGINS", "https://a.test/app", "is not an origin"),
    ("DATA_DIR", "~no-such-user-here/data", "user"),
    *(
        ("REDIS_URL", url, "")
        for url in (
            f"http://:{SECRET}@host:6379/0",
            f"redis://:{SECRET}/x@host:6379/0",
            f"redis://:{SECRET}@host:99999",
            f"redis://:a:{SECRET}",
            f"redis://:{SECRET}@[::1",
            f"redis://:{SECRET}@host/{SECRET}",
            SECRET,
            "",
        )
    ),
]


@pytest.mark.parametrize(("name", "value", "why"), WRONG)
def test_a_wrong_value_is_one_line_that_names_its_variable(
    name: str, value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"CLIP_QUEUE_{name}", value)
    with pytest.raises(startup.CannotWork) as caught:
        startup.load()
    message = str(caught.value)
    assert message.startswith(f"wrong settings: CLIP_QUEUE_{name}: ")
    assert why in message
    assert SECRET not in message
    assert len(message.splitlines()) == 1


def test_what_was_given_as_an_option_is_called_by_its_name() -> None:
    with pytest.raises(startup.CannotWork, match=r"^wrong settings: --redis: "):
        startup.load(names={"redis_url": "--redis"}, redis_url="http://host")


def test_a_process_ends_with_the_line_and_exit_code_78(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read() -> Settings:
        return Settings(max_items=0)

    monkeypatch.setattr(startup, "get_settings", read)
    with pytest.raises(SystemExit) as ended:
        startup.of_process("clip-queue API")
    assert ended.value.code == startup.CANNOT_WORK
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("clip-queue API: wrong settings: CLIP_QUEUE_MAX_ITEMS: ")


@pytest.mark.parametrize("content", [b"\xff\xfeC\x00L\x00", b"CLIP_QUEUE_API_KEYS=\xe9\n"])
def test_a_dotenv_that_is_not_utf8_is_one_line(content: bytes) -> None:
    Path(".env").write_bytes(content)
    assert startup.misspelt({}, startup._dotenv()) == []
    with pytest.raises(startup.CannotWork, match=r"\.env is not UTF-8"):
        startup.load()


def test_a_dotenv_with_a_byte_order_mark_is_read() -> None:
    Path(".env").write_bytes(b"\xef\xbb\xbfCLIP_QUEUE_MAX_ITEMS=5\n")
    assert startup.load().max_items == 5


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (f'A=1\nCLIP_QUEUE_API_KEYS="{SECRET}","key2"\n', 2),
        (f"\n\nCLIP_QUEUE_API_KEYS: {SECRET}\n", 3),
        (f"clip_queue_api_keys {SECRET}", 1),
        (f'CLIP_QUEUE_API_KEYS="{SECRET}\nCLIP_QUEUE_MAX_ITEMS=5\n', 1),
        ("# keys\nCLIP_QUEUE_API_KEYS\n", 2),
    ],
)
def test_a_line_of_the_dotenv_that_would_set_nothing_is_refused(content: str, line: int) -> None:
    Path(".env").write_text(content)
    with pytest.raises(startup.CannotWork, match=rf"\.env has no NAME=value in line {line}: ") as caught:
        startup.load()
    assert SECRET not in str(caught.value)


def test_lines_of_the_dotenv_that_are_not_ours_may_be_anything() -> None:
    Path(".env").write_text("OTHER \"x\" y\nOTHER\n# CLIP_QUEUE_X\nexport CLIP_QUEUE_MAX_ITEMS='5' # of eight\n")
    assert startup.load().max_items == 5


# Misspelt names


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CLIP_QUEUE_MODLES", "did you mean CLIP_QUEUE_MODELS?"),
        ("CLIP_QUEUE_MODEL", "did you mean CLIP_QUEUE_MODELS?"),
        ("CLIP_QUEUE_APIKEYS", "did you mean CLIP_QUEUE_API_KEYS?"),
        ("clip_queue_redis", "did you mean CLIP_QUEUE_REDIS_URL?"),
        ("CLIPQUEUE_MODELS", "did you mean CLIP_QUEUE_MODELS?"),
        ("CLIP_QUEUE_QQQQQQQQQQQQQQQQQQQQQQQQQ", "docs/settings.md lists them"),
    ],
)
def test_a_misspelt_name_is_warned_of_with_the_nearest(name: str, meant: str) -> None:
    for environment, dotenv in (({name: SECRET}, {}), ({}, {name: SECRET})):
        [line] = startup.misspelt(environment, dotenv)
        assert line.startswith(name)
        assert line.endswith(meant)
        assert SECRET not in line


def test_what_is_known_or_not_ours_is_not_warned_of() -> None:
    known = [f"CLIP_QUEUE_{name.upper()}" for name in Settings.model_fields]
    others = ["CLIP_QUEUE_PUBLISH", "CLIP_QUEUE_TEST_FAULTS", "clip_queue_models", "CLIPBOARD", "CLIP_MODEL", "PATH"]
    assert startup.misspelt(dict.fromkeys((*known, *others), "x"), {}) == []


def test_every_name_with_the_prefix_in_the_projects_files_is_known() -> None:
    known = {f"CLIP_QUEUE_{name.upper()}" for name in Settings.model_fields} | startup.OTHERS
    found: set[str] = set()
    for pattern in ("*.md", "*.yml", "Makefile", "docs/*.md", "cli/*.py", "client/*.py", "bench/**/*.py"):
        for path in ROOT.glob(pattern):
            found |= set(re.findall(r"\bCLIP_QUEUE_[A-Z][A-Z_]*[A-Z]\b", path.read_text()))
    assert {"CLIP_QUEUE_URL", "CLIP_QUEUE_API_KEY", "CLIP_QUEUE_MAXMEMORY"} <= found
    assert found <= known


def test_who_sets_a_clients_key_where_none_is_asked_for_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLIP_QUEUE_API_KEY", SECRET)
    startup.warn_of_a_clients_key(Settings(api_keys="one"))  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    startup.warn_of_a_clients_key(Settings())
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("are CLIP_QUEUE_API_KEYS")
    assert SECRET not in line


def test_the_warning_is_printed_once_and_not_by_children(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLIP_QUEUE_MODLES", SECRET)
    startup.warn()
    assert capsys.readouterr().err.startswith("clip-queue: CLIP_QUEUE_MODLES is no setting")
    monkeypatch.setenv(startup.CHECKED, "1")
    startup.warn()
    assert capsys.readouterr().err == ""
