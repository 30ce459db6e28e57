#!/bin/sh
# On a bare machine with torch: an environment .venv-gpu of the wheels in .wheels-gpu, without a registry.
#   PYTHON=python3 sh bench/gpu/install.sh
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
[ -d .wheels-gpu ] || { echo "install.sh: there is no .wheels-gpu: make wheels-gpu, where a registry is" >&2; exit 1; }
# Where torch lies: it may be in an environment of its own, whose packages no other environment sees by itself.
site=$("$PYTHON" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent.parent)') ||
    { echo "install.sh: $PYTHON has no torch: PYTHON=… names one that has" >&2; exit 1; }
"$PYTHON" -m venv --without-pip --clear .venv-gpu
own=$(.venv-gpu/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$site" >"$own/torch.pth" # behind the packages of .venv-gpu itself
pip() { "$PYTHON" -m pip --python .venv-gpu/bin/python --disable-pip-version-check "$@"; }
wheels=$(ls .wheels-gpu/*.whl | grep -v /torchvision-)
if ! .venv-gpu/bin/python -c 'import torchvision' 2>/dev/null; then
    wheels="$wheels $(ls .wheels-gpu/torchvision-*.whl)" ||
        { echo "install.sh: no torchvision beside torch: make wheels-gpu without --lean" >&2; exit 1; }
fi
# shellcheck disable=SC2086
pip install --quiet --no-index --no-deps --ignore-installed --no-compile --no-warn-script-location $wheels
pip install --quiet --no-index --no-deps --no-build-isolation --ignore-installed --editable .
.venv-gpu/bin/python - <<'CHECK'
import importlib.util

import torch
import torchvision

from clip_queue.version import __version__

print(f"clip-queue {__version__}, torch {torch.__version__}, torchvision {torchvision.__version__},", end=" ")
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device")
if not importlib.util.find_spec("pyarrow"):
    print("no pyarrow here: bulk cannot be measured")
CHECK
echo "now: .venv-gpu/bin/python -m bench.gpu"
