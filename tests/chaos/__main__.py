"""``python -m tests.chaos --minutes 60 --seed 1``: a long storm, and the table of it; ``--bulk``: over bulk runs.

The status is 0 only if nothing was lost, wrong, unanswered or left.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType

from tests.chaos.bulk_storm import bulk_storm
from tests.chaos.report import Report
from tests.chaos.storm import PARTS, Plan, storm

LAST = 90.0  # seconds of the whole in which no new misfortune begins, so that the work ends and results expire
GRACE = 180.0  # seconds over the time asked for, after which the storm is ended


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="how long it takes (default: 10)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what it is made of (default: the time)")
    parser.add_argument("--bulk", action="store_true", help="over bulk runs instead of requests and jobs")
    parser.add_argument("--json", type=Path, help="a file that gets the report as JSON")
    parser.add_argument("--sentinel", action="store_true", help="over Redis under Sentinels, whose master is killed")
    parser.add_argument("--without", nargs="+", choices=PARTS, default=(), help="parts of the storm to leave out")
    asked = parser.parse_args()
    print(f"a storm of {asked.minutes:g} minutes, seed {asked.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="clip-queue-storm-"))
    if asked.bulk:
        of_bulk = bulk_storm(folder, seed=asked.seed, seconds=60 * asked.minutes)
        print(of_bulk.table())
        broken = bool(of_bulk.wrong)
    else:
        plan = Plan(
            asked.seed,
            60 * asked.minutes - LAST,
            expire=True,
            without=tuple(asked.without),
            sentinel=asked.sentinel,
        )
        broken = not run(folder, plan, 60 * asked.minutes + GRACE, asked.json)
    if broken:
        print(f"the logs are in {folder}")
    return int(broken)


def run(folder: Path, plan: Plan, longest: float, json: Path | None) -> bool:
    """Whether all promises were kept, within ``longest`` seconds. Whatever happens, there is a report."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the storm had not ended after {longest:g} s")

    report = Report()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(int(longest))
    try:
        storm(folder, plan, report)
    except Exception:
        report.wrong.add(f"the storm failed in: {report.phase}\n{traceback.format_exc()}")
    finally:
        signal.alarm(0)
    print(report.table(), flush=True)
    if json:
        json.write_text(report.json())
    return report.kept


if __name__ == "__main__":
    sys.exit(main())
