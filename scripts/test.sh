#!/usr/bin/env bash
# Lint, types, tests:  scripts/test.sh [--fast] [pytest options]
# --fast leaves out the tests marked slow, all but a build from end to end; before a pull request run all.
set -euo pipefail
cd "$(dirname "$0")/.."
selection=()
if [[ "${1:-}" == "--fast" ]]; then
  selection=(-m "not slow or smoke")
  shift
fi
scripts/check.sh
exec .venv/bin/pytest -n "$(nproc)" --dist worksteal --durations 15 "${selection[@]}" "$@"
