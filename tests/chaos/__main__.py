"""``python -m tests.chaos --minutes 10 --seed 1``: a long storm, and the table of it; ``--bulk``: over bulk runs."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.bulk_storm import bulk_storm
from tests.chaos.storm import storm


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="how long it rages (default: 10)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what it is made of (default: the time)")
    parser.add_argument("--bulk", action="store_true", help="over bulk runs instead of requests and jobs")
    asked = parser.parse_args()
    print(f"a storm of {asked.minutes:g} minutes, seed {asked.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="clip-queue-storm-"))
    if asked.bulk:
        of_bulk = bulk_storm(folder, seed=asked.seed, seconds=60 * asked.minutes)
        print(of_bulk.table())
        broken = bool(of_bulk.wrong)
    else:
        report = storm(folder, seed=asked.seed, seconds=60 * asked.minutes)
        print(report.table())
        broken = bool(report.lost or report.wrong or report.silent or report.left)
    if broken:
        print(f"the logs are in {folder}")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
