"""``embed``, ``dry_run`` and ``search`` where a loop runs already: in a notebook, in a coroutine, in a thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import run_kernel

from tests.harness import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TEXTS = [f"thing {n}" for n in range(40)]
ENDED = 400.0  # seconds that a run and a search may take on a loaded machine


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("notebook") / "in.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    env = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "CLIP_QUEUE_MODELS": "emoji-mini",
        "CLIP_QUEUE_PRECISION": "fp32",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(tmp_path),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "JUPYTER_PATH": str(tmp_path),
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return {**os.environ, **env}


IN_A_LOOP = """
import asyncio, json, signal, sys, threading
from clip_queue import dry_run, embed, search

source, out = sys.argv[1:]
watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

def all_three(name):
    before = [signal.getsignal(number) for number in watched]
    report = embed(source, f"{out}/{name}", workers=1)
    hits = search(f"{out}/{name}", "thing 7", top=1)
    assert [signal.getsignal(number) for number in watched] == before
    return report.rows, dry_run(source).rows, hits[0].caption

async def main():
    return [all_three("coroutine"), await asyncio.to_thread(all_three, "thread")]

print(json.dumps(asyncio.run(main())))
"""


def test_all_work_in_a_running_loop_and_in_a_thread_beside_it_and_say_nothing(
    source: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_LOOP, str(source), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=ENDED,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[40, 40, "thing 7"]] * 2
    assert done.stderr == ""


def test_a_notebook_shows_a_bar_unless_it_is_told_not_to(
    source: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    cells = [
        f"from clip_queue import embed, dry_run, search\nsource, out = {str(source)!r}, {str(tmp_path)!r}",
        "report = embed(source, out + '/shown', workers=1)",
        "quiet = embed(source, out + '/quiet', workers=1, show=False)",
        "print(report.rows, quiet.rows, dry_run(source).rows, search(out + '/shown', 'thing 7', top=1)[0].caption)",
    ]
    spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}
    (kernel := tmp_path / "kernels" / "here").mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps({**spec, "display_name": "here"}))
    with run_kernel(kernel_name="here", startup_timeout=ENDED) as client:
        _, shown, quiet, printed = [outputs(client, cell) for cell in cells]
    assert shown, "a widget, or lines"
    assert "warn" not in text_of(shown).lower()
    assert quiet == []
    assert text_of(printed) == "40 40 40 thing 7\n"


def outputs(client: BlockingKernelClient, cell: str) -> list[dict[str, Any]]:
    """What a cell shows, asked by a blocking client: one on an event loop (nbclient) may sleep over a reply."""
    shown: list[dict[str, Any]] = []

    def output(message: dict[str, Any]) -> None:
        if message["msg_type"] in ("stream", "display_data", "execute_result", "error"):
            shown.append(message["content"])

    reply = client.execute_interactive(cell, timeout=ENDED, output_hook=output, allow_stdin=False)
    assert reply["content"]["status"] == "ok", reply["content"]
    return shown


def text_of(shown: list[dict[str, Any]]) -> str:
    return "".join(content.get("text", "") for content in shown)
