#!/usr/bin/env bash
# Compare FP16 graphs of modelopt.onnx.autocast with those of this toolkit: nodes left in FP32, islands, Casts, SQNR.
#
#   scripts/bench/autocast.sh FOLDER
#
# FOLDER holds NAME.onnx, float graphs as they are after an import, and NAME.npy, images as NAME.onnx takes them. AutoCast runs
# in the environment build/bench/peers/venv-modelopt of peers/requirements-modelopt.txt, created with PYTHON (default: python3)
# unless MODELOPT names an interpreter that has it. Existing FOLDER/autocast/NAME.onnx are kept. The table: FOLDER/autocast.md.
set -euo pipefail
cd "$(dirname "$0")/../.."

[[ $# -eq 1 ]] || { sed -n '4,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
folder="$1" venv=build/bench/peers/venv-modelopt requirements=scripts/bench/peers/requirements-modelopt.txt
python="${MODELOPT:-$venv/bin/python}"

if [[ -z "${MODELOPT:-}" ]] && ! cmp -s "$requirements" "$venv/.installed"; then
  "${PYTHON:-python3}" -m venv --clear "$venv"
  "$venv/bin/python" -m pip --disable-pip-version-check install -q -r "$requirements"
  cp "$requirements" "$venv/.installed"
fi
mkdir -p "$folder/autocast"
for graph in "$folder"/*.onnx; do
  name="$(basename "$graph" .onnx)" out="$folder/autocast/$(basename "$graph")"
  if [[ -f "$out" ]]; then continue; fi
  nice -n 10 "$python" -W ignore scripts/bench/peers/modelopt_autocast.py "$graph" "$folder/$name.npy" "$out" \
    >"$folder/autocast/$name.log" 2>&1 || echo "autocast: no graph of $name, see $folder/autocast/$name.log" >&2
done
nice -n 10 .venv/bin/python scripts/bench/autocast.py "$folder"
