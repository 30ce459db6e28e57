"""Starting: the import of the API, the time until the service is ready, and the memory of each process."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

from bench.common import ROUNDS, Row, served, show

MODEL = "emoji-mini"
IMPORT = """
import sys, time
began = time.perf_counter()
import clip_queue.api.app
print(time.perf_counter() - began, "torch" in sys.modules)
"""


def main() -> None:
    imports, ready, memory = [], [], dict[str, list[float]]()
    for _ in range(ROUNDS):
        out = subprocess.run(
            [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        seconds, torch = out.split()
        assert torch == "False", "the API imports torch"
        imports.append(float(seconds))
        began = time.perf_counter()
        with served(MODEL) as stack:
            ready.append(time.perf_counter() - began)
            for name, pid in stack.pids.items():
                memory.setdefault(name, []).append(psutil.Process(pid).memory_info().rss / 2**20)
    show(
        f"starting, {MODEL}",
        [
            Row("import clip_queue.api.app, without torch", imports, "s", "< 2"),
            Row("up to ready", ready, "s"),
            *(Row(f"memory of {name}", values, "MiB") for name, values in memory.items()),
        ],
    )


if __name__ == "__main__":
    main()
