"""A folder of wheels with all that a bare GPU machine needs but torch, CUDA and pyarrow, for Python 3.12 on Linux.

``make wheels-gpu``, here; then, there, with the checkout and the folder, ``sh bench/gpu/install.sh``. Versions are
those of ``requirements.lock``. What torch itself needs is where torch is. pyarrow (55 MB) must be there for bulk.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / ".wheels-gpu"
MOST = 60e6  # bytes
PYTHON = "3.12"
EXTRAS = ("serve", "gpu", "bench")
# torchvision of the torch that is there; it is installed only where there is none.
TORCHVISION = "torchvision==0.26.0"
# To make the project's own wheel there.
BUILD = ("hatchling==1.27.0", "pathspec", "pluggy", "packaging", "trove-classifiers", "editables")
# Large, and of no use where nothing can be downloaded, or too large for the folder.
LEFT_OUT = ("hf-xet", "pyarrow")
# What a machine with torchvision has already: a third of the folder's size.
WITH_TORCHVISION = ("numpy", "pillow")
GLIBC = (5, 12, 17, 24, 25, 26, 27, 28, 31, 34, 35)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lean", action="store_true", help="for a machine that has torchvision, numpy and pillow")
    parser.add_argument("--python", default=PYTHON, help=f"the Python there (default {PYTHON})")
    arguments = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    try:
        wanted = requirements(arguments.python, arguments.lean)
        download([*wanted, *BUILD, *([] if arguments.lean else [TORCHVISION])], arguments.python)
    except subprocess.CalledProcessError as error:
        sys.exit(f"wheels-gpu: {' '.join(map(str, error.cmd[:4]))} … failed:\n{(error.stderr or '')[-2000:]}")
    wheels = sorted(FOLDER.iterdir(), key=lambda wheel: -wheel.stat().st_size)
    size = sum(wheel.stat().st_size for wheel in wheels)
    for wheel in wheels[:8]:
        print(f"{wheel.stat().st_size / 1e6:6.1f} MB  {wheel.name}")
    print(f"{size / 1e6:6.1f} MB  in {len(wheels)} wheels, in {FOLDER}")
    if size > MOST:
        sys.exit(f"wheels-gpu: more than {MOST / 1e6:.0f} MB: leave something out (LEFT_OUT in {__file__})")


def requirements(python: str, lean: bool) -> list[str]:
    """What to take along, each ``name==version``."""
    without = [f"{name} ; python_version < '3'" for name in ("torch", "torchvision", *LEFT_OUT)]
    overrides = FOLDER / "without.txt"
    overrides.write_text("\n".join(without))
    command = ["uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--python-version", python]
    command += ["--python-platform", "x86_64-manylinux_2_28", "--no-emit-index-url", "--no-emit-find-links"]
    command += [word for extra in EXTRAS for word in ("--extra", extra)]
    command += ["--constraint", "requirements.lock", "--override", str(overrides), "pyproject.toml"]
    lines = run([str(Path(sys.executable).with_name("uv")), *command[1:]]).splitlines()
    overrides.unlink()
    names = [line.split(";")[0].strip() for line in lines if line.strip() and not line.startswith(("#", "-"))]
    return [name for name in names if not (lean and name.partition("==")[0] in WITH_TORCHVISION)]


def download(names: list[str], python: str) -> None:
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(FOLDER)]
    run([*command, *(word for platform in platforms for word in ("--platform", platform)), *names])


def run(command: list[str]) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=600).stdout


if __name__ == "__main__":
    main()
