"""``python -m bench [NAME …]``: the benchmarks of these names, or all of them, which takes about an hour.

``python -m bench versus PATH [NAME …]``: this checkout against another. ``python -m bench passes [PATH]``: the CPU time
of forward passes, here and in another. ``python -m bench precisions [FOLDER [MODEL …]]``: the same
at fp32, bf16 and int8.
"""

from __future__ import annotations

import importlib
import sys

from bench.common import console, pace

NAMES = (
    "exactness",
    "parity",
    "start",
    "latency",
    "texts",
    "apis",
    "jobs",
    "lanes",
    "images",
    "bulk",
    "memory",
    "plan",
    "store",
    "celery",
    "backlog",
    "tracing",
)


def main(names: list[str]) -> None:
    """Run benchmarks; all of them if ``names`` is empty."""
    if names[:1] in (["versus"], ["passes"], ["precisions"]):
        importlib.import_module(f"bench.{names[0]}").main(names[1:])
        return
    if unknown := set(names) - set(NAMES):
        others = "versus PATH, passes [PATH], precisions [FOLDER]"
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}: there are {others}, {', '.join(NAMES)}")
    console.print(f"Python {sys.version.split()[0]}, whose loop takes {1000 * pace():.0f} ms (bench.common.pace)")
    for name in names or NAMES:
        module = importlib.import_module(f"bench.{name}")
        console.rule(f"{name}: {(module.__doc__ or '').strip()}")
        module.main()


if __name__ == "__main__":
    main(sys.argv[1:])
