#!/usr/bin/env bash
# An environment of its own for the peers of the speed benchmark: torch and Avalanche.
# Usage: setup_peers.sh [PATH]      (default /opt/peers; python is $PYTHON or python3)
set -euo pipefail

path="${1:-/opt/peers}"
python="${PYTHON:-python3}"

"$python" -m venv "$path"
pip() { "$path/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

pip install torch==2.13.0 numpy==2.4.6 pillow==13.0.0
# Avalanche declares a dozen packages that only its data sets, loggers and exotic plugins use;
# peers_avalanche.py stubs those, so here are the ones that a training loop runs through.
pip install dill==0.4.1 psutil==7.2.2 tqdm==4.70.1 packaging==26.3 typing_extensions==4.16.0
# torchvision is wanted for its Python code alone: its compiled operators need not load.
pip install --no-deps torchvision==0.28.0 avalanche-lib==0.6.0

"$path/bin/python" - <<'PYTHON'
from importlib.metadata import version

for name in ("torch", "torchvision", "avalanche-lib", "numpy"):
    print(name, version(name))
PYTHON
