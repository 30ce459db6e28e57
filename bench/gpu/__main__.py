"""``python -m bench.gpu``: what a GPU does with CLIP, alone and behind the service, within a budget of time.

Each part is a process of its own with a share of the time. Its figures are written as they come, so that a part that is
cut short, or fails, leaves what it has, and says so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.common import console
from bench.gpu.parts import PARTS

BUDGET = 510.0  # seconds
START = 12.0  # of a part's share are for starting it


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu in the card's place, to rehearse")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds in all (default {BUDGET:.0f})")
    parser.add_argument("--json", type=Path, default=Path(".cache/bench/gpu.json"), help="where the figures go")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    chosen = [name for name in PARTS if name in arguments.parts or not arguments.parts]
    ends = time.monotonic() + arguments.budget
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    figures: dict[str, object] = {}
    for at, name in enumerate(chosen):
        share = (ends - time.monotonic()) * PARTS[name].share / sum(PARTS[n].share for n in chosen[at:])
        console.rule(f"{name}: {(PARTS[name].run.__doc__ or '').strip().splitlines()[0]} ({share:.0f} s)")
        if share < START:
            figures[name] = {"left out": f"no time left: {share:.0f} s"}
        else:
            figures[name] = measured(name, arguments.device, share)
        if isinstance(figure := figures[name], dict) and (said := figure.get("left out")):
            console.print(f"[yellow]left out: {said}[/]")
        arguments.json.write_text(json.dumps(figures, indent=1))
    console.print(f"the figures are in {arguments.json}")
    return 1 if any(isinstance(figure, dict) and "left out" in figure for figure in figures.values()) else 0


def measured(name: str, device: str, seconds: float) -> dict[str, object]:
    """The figures of a part, which has so many seconds. Of one that needs longer or fails, what it has by then."""
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        out = Path(folder) / "figures"
        command = [sys.executable, "-m", "bench.gpu.parts", name, device, str(seconds - START), str(out)]
        part = subprocess.Popen(command, start_new_session=True, env={**os.environ, "CLIP_QUEUE_DEVICE": device})
        problem = None
        try:
            if part.wait(seconds):
                problem = f"it failed with exit code {part.returncode}"
        except subprocess.TimeoutExpired:
            problem = f"it took more than {seconds:.0f} s; what is here was measured by then"
        finally:
            if part.poll() is None:
                os.killpg(part.pid, signal.SIGINT)  # so that a service ends in order
                try:
                    part.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(part.pid, signal.SIGKILL)
                    part.wait()
        lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    figures: dict[str, object] = {key: value for line in lines for key, value in line.items()}
    return {"left out": problem, **figures} if problem else figures  # its own words, where it has any


if __name__ == "__main__":
    sys.exit(main())
