"""The page for operators: it has each alert, and names only what is there."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from clip_queue.shared.settings import Settings
from tests.harness import ROOT

PAGE = (ROOT / "docs" / "operating.md").read_text()
RULES: list[dict[str, Any]] = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yml").read_text())["groups"][0][
    "rules"
]


def test_each_alert_has_a_heading_and_no_other() -> None:
    _, _, alerts = PAGE.partition("## Alerts\n")
    assert re.findall(r"^### (\w+)$", alerts, re.MULTILINE) == [rule["alert"] for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_what_is_critical_is_to_be_done_now(rule: dict[str, Any]) -> None:
    match = re.search(rf"^### {rule['alert']}\n\n(.*)$", PAGE, re.MULTILINE)
    assert match
    assert match[1].startswith("Now. ") == (rule["labels"]["severity"] == "critical")


def test_the_metrics_it_names_exist() -> None:
    known = (ROOT / "docs" / "metrics.md").read_text()
    workers = re.findall(r"`…(_\w+)`", known)  # those of the row of clip_queue_worker_items_total
    names = set(re.findall(r"\bclip_queue_\w+", PAGE))
    assert names
    for name in names:
        assert name in known or any(name.endswith(end) for end in workers), name


def test_the_settings_it_names_exist() -> None:
    assert {name.lower() for name in re.findall(r"CLIP_QUEUE_(\w+)", PAGE)} <= set(Settings.model_fields)
