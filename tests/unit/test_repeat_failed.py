"""What the continuous integration repeats: a failed integration or chaos test, once, alone; and how it says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT

# Its tests fail until the file that they leave is there.
SUITE = {
    "tests/integration/test_a.py": """
        import os, pathlib, pytest

        def first(name):
            seen = pathlib.Path(name)
            if not seen.exists():
                seen.touch()
                return True
            return False

        @pytest.mark.parametrize("case", ["x::y z", "b"])
        def test_body(case):
            assert not first(f"body-{case[0]}"), "the first body"

        @pytest.fixture
        def ground():
            assert not first("ground"), "the first setup"
            yield
            assert not first("end"), "the first teardown"

        def test_setup(ground):
            pass

        @pytest.fixture
        def end():
            yield
            assert not first("late"), "the first teardown"

        def test_teardown(end):
            pass

        def test_good():
            assert first("good"), "good tests are not repeated"
    """,
    "tests/integration/test_crash.py": """
        import os
        from test_a import first

        def test_before():
            pass

        def test_crash():
            if first("crash"):
                os._exit(1)

        def test_after():
            pass
    """,
    "tests/chaos/test_storm.py": """
        from test_a import first

        def test_storm():
            assert not first("storm")

        def test_always():
            assert False, "always"
    """,
    "tests/unit/test_unit.py": """
        from test_a import first

        def test_unit():
            assert not first("unit"), "the only time"
    """,
    "tests/integration/test_broken.py": "import nothing_of_this_name",
}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = tests/integration\n")
    for path, text in SUITE.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = text.splitlines()
        file.write_text("\n".join(line.removeprefix("        ") for line in lines) + "\n")
    return tmp_path


def run(suite: Path, *arguments: str, plugin: bool = True) -> tuple[int, list[str]]:
    """Exit status and the lines of the output."""
    options = [*(["-p", "tests.repeat_failed"] if plugin else []), "-p", "xdist", "-p", "no:cacheprovider", "-ra"]
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        command,
        cwd=suite,
        env={**env, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert "INTERNALERROR" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.returncode, done.stdout.rstrip().splitlines()


def counts(line: str) -> dict[str, int]:
    """What pytest's last line counts."""
    assert " in " in line, line
    return {name.rstrip("s"): int(count) for count, name in re.findall(r"(\d+) (passed|failed|errors?)", line)}


def test_what_passes_alone_has_passed_and_is_called_flaky(suite: Path) -> None:
    status, said = run(suite, "-n", "2", "--dist", "loadfile", "tests/integration/test_a.py")
    assert status == 1, "a setup and a teardown that fail in turn fail twice"
    flaky = [line for line in said if line.startswith("FLAKY ")]
    name = "FLAKY tests/integration/test_a.py::test_"
    assert flaky == [name + "body[x::y z]", name + "body[b]", name + "teardown"]
    assert any("the first body" in line for line in said), "how it failed is shown"
    assert any(line.startswith("failed again, alone: tests/integration/test_a.py::test_setup") for line in said)
    assert counts(said[-1]) == {"passed": 4, "error": 1}


def test_a_run_whose_failures_were_flaky_is_green(suite: Path) -> None:
    arguments = ("tests/chaos/test_storm.py::test_storm", "tests/integration/test_crash.py")
    status, said = run(suite, "-n", "2", "--dist", "loadfile", *arguments)
    assert status == 0
    flaky = {line for line in said if line.startswith("FLAKY ")}
    assert flaky == {f"FLAKY {arguments[0]}", "FLAKY tests/integration/test_crash.py::test_crash"}
    assert said[-2].startswith("FLAKY ")
    assert counts(said[-1]) == {"passed": 4}, "those of a crashed process that had not been run are run"


def test_what_fails_again_has_failed(suite: Path) -> None:
    status, said = run(suite, "tests/chaos/test_storm.py")
    assert status == 1
    assert [line for line in said if line.startswith("FLAKY ")] == ["FLAKY tests/chaos/test_storm.py::test_storm"]
    assert any(line.startswith("FAILED tests/chaos/test_storm.py::test_always") for line in said)
    assert counts(said[-1]) == {"passed": 1, "failed": 1}


@pytest.mark.parametrize("processes", ["0", "1"])
def test_neither_unit_tests_nor_files_that_cannot_be_read_are_repeated(suite: Path, processes: str) -> None:
    status, said = run(suite, "-n", processes, "tests/unit", "tests/integration/test_broken.py")
    assert status == (1 if int(processes) else 2)
    assert not any(line.startswith(("FLAKY", "failed again")) for line in said)
    assert counts(said[-1])["error"] == 1


def test_one_only_run_has_nothing_to_repeat(suite: Path) -> None:
    (suite / "unit").touch()
    status, said = run(suite, "tests/unit")
    assert (status, counts(said[-1])) == (0, {"passed": 1})


def test_without_the_plugin_nothing_is_repeated(suite: Path) -> None:
    status, said = run(suite, "tests/chaos/test_storm.py", plugin=False)
    assert (status, counts(said[-1])) == (1, {"failed": 2})


def test_the_time_for_repeating_is_limited(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPEAT_FAILED_SECONDS", "0")
    status, said = run(suite, "tests/chaos/test_storm.py")
    assert (status, counts(said[-1])) == (1, {"failed": 2})
    assert sum(line.startswith("not repeated") for line in said) == 2


def test_the_integration_asks_for_it() -> None:
    command = (ROOT / ".ci/run").read_text()
    assert "make test" in command
    assert "-p tests.repeat_failed" in command
    assert "repeat_failed" not in (ROOT / "Makefile").read_text()
    assert "repeat_failed" not in (ROOT / "pyproject.toml").read_text()
