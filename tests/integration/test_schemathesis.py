"""The API is what its OpenAPI document says: schemathesis, with all its checks, against real processes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.environments import clean_environment, program
from tests.harness import ROOT, Api, Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KEY = "schemathesis-key"


@pytest.mark.parametrize("keys", ["", KEY], ids=["open", "with keys"])
def test_no_check_of_schemathesis_fails(served: tuple[Stack, Api], keys: str, tmp_path: Path) -> None:
    api = served[0].api(api_keys=keys, max_queued_items=100_000)
    served[0].ready(api)
    options = ["--checks", "all", "--max-examples", "20", "--seed", "7", "--no-shrink", "--continue-on-failure"]
    key = ["--header", f"Authorization: Bearer {KEY}"] if keys else []
    done = subprocess.run(
        [
            program("schemathesis", "SCHEMATHESIS", "schemathesis"),
            "--config-file",
            str(ROOT / "schemathesis.toml"),
            "run",
            f"{api.url}/openapi.json",
            *options,
            *key,
            "--request-timeout",
            "60",
        ],
        env=clean_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "No issues found" in done.stdout or "generated" in done.stdout
    assert "Traceback" not in api.log.read_text()
    api.stop()
