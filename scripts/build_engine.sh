#!/usr/bin/env bash
# From a trained UFO-ViT to a verified engine:  scripts/build_engine.sh MODEL PRECISION [options of `ufovit build`]
# Installs what it needs into .venv on the first run. Exit codes: see `ufovit build --help`.
set -euo pipefail
here="$(dirname "$0")"
"$here/install.sh" build rtx
exec "$here/../.venv/bin/ufovit" build "$@"
