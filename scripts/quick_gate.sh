#!/usr/bin/env bash
# Run the gate on 300 images, fast enough for a pre-commit hook: for the shipped network 55 s for a first build on two free cores,
# 2 s if nothing changed.
#
#   scripts/quick_gate.sh [BASELINE [MODEL PRECISION [options of `ufovit build`]]]
#
# Default: the shipped ufovit_t in INT8 for RTX. Builds into build/quick and compares 300 of the baseline's images, evenly spread,
# with the baseline's predictions. A second run reuses every step whose inputs did not change. So few images detect a broken
# build, not a slight regression: that is for the gate over all images. Exit codes: see `ufovit gate --help`.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
baseline="${1:-$here/../tests/golden/ufovit_t-int8-rtx.json}"
if [[ $# -gt 1 ]]; then arguments=("${@:2}"); else arguments=(ufovit_t int8 --target rtx); fi
"$here/install.sh" build rtx
code=0
"$here/../.venv/bin/ufovit" build "${arguments[@]}" --eval-images 300 --max-drop 3 --out build/quick || code=$?
if [[ $code -ne 0 && $code -ne 1 && $code -ne 3 ]]; then exit "$code"; fi # after a failed verdict, the gate reports more
exec "$here/../.venv/bin/ufovit" gate build/quick --baseline "$baseline"
