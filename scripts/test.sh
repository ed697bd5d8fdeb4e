#!/usr/bin/env bash
# Lint, types, tests:  scripts/test.sh [pytest options]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/check.sh
exec .venv/bin/pytest -n "$(nproc)" --dist loadscope "$@"
