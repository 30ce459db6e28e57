"""The units for systemd: what they promise, and what systemd itself says of them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clip_queue.shared.settings import Settings
from tests.harness import ROOT

FOLDER = ROOT / "deploy" / "systemd"
UNITS = {"api": FOLDER / "clip-queue-api.service", "worker": FOLDER / "clip-queue-worker@.service"}
EXPOSURE = 25  # tenths, of 100: what systemd-analyze calls OK ends at 49

Unit = dict[str, list[str]]


def unit(name: str) -> Unit:
    """What a unit says, by key; a key may stand there several times."""
    found: Unit = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", UNITS[name].read_text(), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def command(name: str) -> list[str]:
    (line,) = unit(name)["ExecStart"]
    return shlex.split(line)


def image_command(name: str) -> list[str]:
    """What the image runs that is called so."""
    dockerfile = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    commands = [json.loads(found) for found in re.findall(r"^CMD (\[.*?\])", dockerfile, re.MULTILINE)]
    program = {"api": "uvicorn", "worker": "celery"}[name]
    return [str(word) for word in next(found for found in commands if found[0] == program)]


def test_the_api_starts_as_in_its_image() -> None:
    mine = command("api")
    assert mine[0] == "/opt/clip-queue/bin/uvicorn"
    place = {"${HOST}": "0.0.0.0", "${PORT}": "9001"}
    assert [place.get(word, word) for word in mine[1:]] == image_command("api")[1:]
    assert unit("api")["Environment"] == ["HOST=127.0.0.1 PORT=9001"]


def test_a_worker_starts_as_in_its_image_with_a_name_and_a_gpu_of_its_own() -> None:
    mine = command("worker")
    assert mine[0] == "/opt/clip-queue/bin/celery"
    assert mine[1:] == [*image_command("worker")[1:], "--hostname", "worker-%i@%%h"]
    assert "CUDA_VISIBLE_DEVICES=%i" in unit("worker")["Environment"]
    (state,) = unit("worker")["StateDirectory"]
    assert f"CLIP_QUEUE_CACHE_DIR=/var/lib/{state}/weights" in " ".join(unit("worker")["Environment"])


def test_stopping_leaves_time_to_finish() -> None:
    (api,), (worker,) = unit("api")["TimeoutStopSec"], unit("worker")["TimeoutStopSec"]
    assert int(api) >= int(command("api")[-1]) + 10
    assert int(worker) >= Settings.model_fields["drain_timeout"].default + 20
    # SIGTERM to the processes that decode would fail the images of jobs that are to be finished.
    assert unit("api")["KillMode"] == unit("worker")["KillMode"] == ["mixed"]


@pytest.mark.parametrize("name", UNITS)
def test_they_start_again_but_not_with_a_wrong_setting(name: str) -> None:
    assert unit(name)["Restart"] == ["always"]
    assert unit(name)["RestartPreventExitStatus"] == ["78"]


@pytest.mark.parametrize("name", UNITS)
def test_they_have_no_rights(name: str) -> None:
    it = unit(name)
    assert it["DynamicUser"] == ["yes"]
    assert it["User"] == ["clip-queue"]
    assert it["ProtectSystem"] == ["strict"]
    assert it["NoNewPrivileges"] == ["yes"]
    assert it["CapabilityBoundingSet"] == [""]
    assert it["EnvironmentFile"][0] == "/etc/clip-queue/clip-queue.env"


def test_a_worker_sees_its_gpu_and_torch_may_make_code() -> None:
    assert not {"PrivateDevices", "ProtectClock", "DeviceAllow", "MemoryDenyWriteExecute"} & unit("worker").keys()


def test_the_api_may_open_more_files_than_connections() -> None:
    (limit,) = unit("api")["LimitNOFILE"]
    assert int(limit) > 2 * Settings.model_fields["max_connections"].default


def test_the_example_names_settings_that_exist() -> None:
    named = re.findall(r"^([A-Z_]+)=", (FOLDER / "clip-queue.env.example").read_text(), re.MULTILINE)
    ours = {name for name in named if name.startswith("CLIP_QUEUE_")}
    assert ours <= {f"CLIP_QUEUE_{field.upper()}" for field in Settings.model_fields}
    assert set(named) - ours == {"HOST", "PORT"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The units as they would lie in a machine, with the programs of this environment."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    folder = tmp_path_factory.mktemp("units")
    for path in UNITS.values():
        text = path.read_text().replace("/opt/clip-queue/bin/", f"{Path(sys.executable).parent}/")
        (folder / path.name.replace("@.", "@0.")).write_text(text)
    return sorted(folder.iterdir())


def systemd_analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


def test_systemd_takes_them(installed: list[Path]) -> None:
    verified = systemd_analyze("verify", "--man=no", *installed)
    ours = [line for line in verified.stderr.splitlines() if "clip-queue" in line]
    assert verified.returncode == 0, verified.stderr
    assert ours == []


def test_systemd_is_asked(installed: list[Path], tmp_path: Path) -> None:
    wrong = tmp_path / installed[0].name
    wrong.write_text(installed[0].read_text().replace("ProtectSystem=strict", "ProtectSystem=strickt"))
    assert "strickt" in systemd_analyze("verify", "--man=no", wrong).stderr


def test_systemd_finds_little_exposed(installed: list[Path]) -> None:
    for path in installed:
        judged = systemd_analyze("security", "--offline=yes", f"--threshold={EXPOSURE}", "--no-pager", path)
        assert judged.returncode == 0, judged.stdout[-200:] + judged.stderr
