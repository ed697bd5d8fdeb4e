#!/usr/bin/env bash
# Check format, lint and types. `scripts/check.sh --fix` applies the automatic fixes first.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh build rtx camera openvino dev
if [[ "${1:-}" == "--fix" ]]; then
  .venv/bin/ruff check --fix --quiet .
  .venv/bin/ruff format --quiet .
fi
.venv/bin/ruff format --check --quiet .
.venv/bin/ruff check --output-format concise .
.venv/bin/mypy
