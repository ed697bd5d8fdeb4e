#!/usr/bin/env bash
# Run every command on broken arguments and files, and print a table of command, category, cases and failures.
#
#   scripts/fuzz.sh [--cases N] [--seed N] [--command NAME] [--category NAME] [--case I]
#
# 1,500 cases by default. Each runs in a process of its own with 2 GB and a minute, in a copy of a small project.
# Exit codes: 0 no failure, 1 some. `--case I` repeats one case, shows its output and keeps its folder as build/fuzz-case.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
"$here/install.sh" build rtx sign camera
exec "$here/../.venv/bin/python" "$here/bench/fuzz.py" "$@"
