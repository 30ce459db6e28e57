"""The benchmark of a GPU: its budget, what it keeps of a part that fails, and the figures that it derives."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.gpu import __main__ as bench_gpu
from bench.gpu import parts
from bench.gpu.wheels import FOLDER
from clip_queue.shared.stages import StageTimes

ROOT = Path(__file__).parent.parent.parent


def main(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr("sys.argv", ["bench.gpu", "--device", "cpu", "--json", str(out), *arguments])
    code = bench_gpu.main()
    return code, json.loads(out.read_text())


def test_each_part_gets_its_share_of_what_is_left_and_all_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shares: dict[str, float] = {}

    def measured(name: str, device: str, seconds: float) -> dict[str, object]:
        shares[name] = seconds
        return {"figure": 1.0}

    monkeypatch.setattr(bench_gpu, "measured", measured)
    code, figures = main(monkeypatch, tmp_path / "gpu.json", "--budget", "10000")
    assert code == 0
    assert list(shares) == list(parts.PARTS) == list(figures)
    assert 9999 < shares["bulk"] <= 10000, "what the others did not need"
    assert shares["machine"] == pytest.approx(400, abs=2)


def test_what_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, figures = main(monkeypatch, tmp_path / "gpu.json", "--budget", "5", "serving")
    assert (code, figures) == (1, {"serving": {"left out": "no time left: 5 s"}})


def test_a_part_that_runs_reports_its_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, figures = main(monkeypatch, tmp_path / "gpu.json", "--budget", "100", "machine")
    assert code == 0
    assert figures["machine"]["device"] == "cpu"
    assert figures["machine"]["cores"] >= 1


def test_a_part_that_is_cut_short_leaves_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    late = "import sys, time; open(sys.argv[4], 'w').write('{\"a\": 1}\\n'); time.sleep(60)"
    popen = bench_gpu.subprocess.Popen

    def instead(command: list[str], **options: Any) -> Any:
        return popen([command[0], "-c", late, *command[3:]], **options)

    monkeypatch.setattr(bench_gpu.subprocess, "Popen", instead)
    figures = bench_gpu.measured("machine", "cpu", 3.0)
    assert figures["a"] == 1
    assert "took more than 3 s" in str(figures["left out"])


def test_the_mean_of_each_stage_between_two_looks() -> None:
    times = StageTimes()
    times.add("m", "interactive", "embed_image", {"queue": 1.0, "forward": 3.0})
    before = SimpleNamespace(stages=times.to_wire())
    times.add("m", "interactive", "embed_image", {"queue": 0.2, "forward": 0.4, "new": 0.1})
    times.add("m", "background", "embed_image", {"queue": 0.4})
    means = parts.stages(before, SimpleNamespace(stages=times.to_wire()))
    assert means == pytest.approx({"queue": 0.3, "forward": 0.4, "new": 0.1})


def test_a_pass_is_launched_ahead_and_every_result_is_waited_for() -> None:
    events: list[str] = []

    def launch() -> Any:
        events.append("launch")
        return SimpleNamespace(result=lambda: events.append("result"))

    rate, alone = parts.passes(launch, 0.01)
    assert rate > 0
    assert alone >= 0
    assert events.count("launch") == events.count("result")
    assert ["launch", "launch", "result"] in [events[at : at + 3] for at in range(len(events))]


def test_the_wheels_folder_is_not_part_of_the_project() -> None:
    assert f"{FOLDER.name}/" in (ROOT / ".gitignore").read_text().splitlines()
