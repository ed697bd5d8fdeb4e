#!/usr/bin/env bash
# Build a verified engine from a trained UFO-ViT: scripts/build_engine.sh MODEL PRECISION [options of `ufovit build`]
# On a device, from a file of `ufovit bundle`:    scripts/build_engine.sh --bundle FILE [options]
# Installs its dependencies into .venv on the first run. Exit codes: see `ufovit build --help`.
set -euo pipefail
here="$(dirname "$0")"
if [[ " $* " == *" --bundle"[\ =]* ]]; then "$here/install.sh" device; else "$here/install.sh" build rtx; fi
exec "$here/../.venv/bin/ufovit" build "$@"
