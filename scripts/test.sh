#!/usr/bin/env bash
# Run lint, types and tests:  scripts/test.sh [--fast] [pytest options]
# --fast skips tests marked slow, except one end-to-end build; run all before a pull request.
set -euo pipefail
cd "$(dirname "$0")/.."
selection=()
if [[ "${1:-}" == "--fast" ]]; then
  selection=(-m "not slow or smoke")
  shift
fi
scripts/check.sh
workers=$(($(nproc) + 1)) # tests of the camera wait for a clock
exec .venv/bin/pytest -n "$workers" --dist worksteal --durations 15 "${selection[@]}" "$@"
