"""The API processes of one machine: how many, their names, their port, and what they count together."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_queue.shared.settings import Settings
from clip_queue.stack import api_processes, children
from clip_queue.stack.api_processes import ApiProcesses


@pytest.mark.parametrize(("cores", "number"), [(1, 1), (4, 1), (7, 1), (8, 2), (16, 4), (128, 8)])
def test_by_itself_one_for_four_cores(monkeypatch: pytest.MonkeyPatch, cores: int, number: int) -> None:
    monkeypatch.setattr(api_processes, "cores", lambda: cores)
    assert ApiProcesses(None, "127.0.0.1", 0).number == number
    assert ApiProcesses(3, "127.0.0.1", 0).number == 3


def test_names() -> None:
    found = {number: ApiProcesses(number, "127.0.0.1", 0).names for number in (0, 1, 3)}
    assert found == {0: [], 1: ["api"], 3: ["api-1", "api-2", "api-3"]}


def test_without_any_no_port_is_taken() -> None:
    apis = ApiProcesses(0, "no-such-host.invalid", 1)
    apis.take_port()
    assert apis.specs(Settings()) == []
    apis.close()


def test_they_have_one_socket_and_count_into_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(children.COUNTS, raising=False)
    apis = ApiProcesses(2, "127.0.0.1", 0)
    apis.take_port()
    first, second = apis.specs(Settings())
    assert apis.url == f"http://127.0.0.1:{first.doors[0].getsockname()[1]}"
    assert first.doors == second.doors
    assert (first.command[-1], second.command[-1]) == ("api-1", "api-2")
    assert first.command[:-1] == second.command[:-1]
    folder = Path(first.env[children.COUNTS])
    assert second.env[children.COUNTS] == str(folder)
    assert folder.stat().st_mode & 0o077 == 0, "other users must not write it"
    apis.close()
    assert not folder.exists()
    assert first.doors[0].fileno() == -1
    apis.close()


def test_one_alone_and_a_folder_of_ones_own_need_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(children.COUNTS, raising=False)
    for number, env in ((1, None), (2, str(tmp_path))):
        if env:
            monkeypatch.setenv(children.COUNTS, env)
        apis = ApiProcesses(number, "127.0.0.1", 0)
        apis.take_port()
        assert all(children.COUNTS not in spec.env for spec in apis.specs(Settings()))
        apis.close()
