#!/usr/bin/env bash
# Take the three networks of rapidocr-onnxruntime through the whole flow: build for the CPU and for TensorRT-RTX, drift, gate,
# bundle, build from the bundle, bench, camera. Figures: docs/any-network.md.
#
#   scripts/bench/rapidocr.sh PHOTOS
#
#   PHOTOS   a folder with the folders calib and eval of .png photos, such as build/strangers/photos of strangers.sh
#
# The wheel is unpacked without what it depends on. Outputs: build/rapidocr, made again by every run. Every command's exit code is
# printed; without a GPU, the build from a bundle ends with 3: built, its drift unknown.
set -euo pipefail
cd "$(dirname "$0")/../.."
[[ $# -eq 1 && -d "$1" ]] || { sed -n '5,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
photos="$(cd "$1" && pwd)" folder=build/rapidocr version=1.4.4
ufovit="$PWD/.venv/bin/ufovit"

rm -rf "$folder"
mkdir -p "$folder"
.venv/bin/python -m pip --disable-pip-version-check install -q --no-deps --target "$folder/wheel" "rapidocr-onnxruntime==$version"
.venv/bin/python scripts/bench/rapidocr/text_pictures.py "$photos" "$folder"
cd "$folder"

run() {
  local log="$1" status=0
  shift
  "$ufovit" "$@" >"$log.log" 2>&1 || status=$?
  echo "$log: exit $status"
}

network() {
  local name="$1" file="$2" shape="$3" data="$4"
  cp "wheel/rapidocr_onnxruntime/models/$file" "$name.onnx"
  printf 'task = "tensors"\n\n[preprocess]\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\nfit = "stretch"\ncolour = "bgr"\n' >"$name.toml"
  local options=("$name.onnx" int8 --input-shape "x=$shape" --data "$data/eval" --calib-data "$data/calib" --min-sqnr 15)
  run "$name-cpu" build "${options[@]}" --target cpu --backend ort --int8-floor 0 --out "$name-cpu"
  run "$name-rtx" build "${options[@]}" --target rtx --out "$name-rtx"
  run "$name-drift" drift "$name-cpu"
  run "$name-baseline" gate "$name-cpu" --baseline "$name.json" --update
  run "$name-gate" gate "$name-cpu" --baseline "$name.json"
  run "$name-bundle" bundle "$name-rtx"
  run "$name-device" build --bundle "$name-rtx.ufovit" --target rtx --out "$name-device"
  run "$name-bench" bench "$name-cpu" --runs 20 --batch 1
  run "$name-camera" camera "$name-cpu" --source "$data/eval" --frames 20 --record "$name.mp4"
  run "$name-video" camera "$name-cpu" --source "$name.mp4" --frames 5
  grep -h -A2 '^verdict' "$name-cpu.log" "$name-rtx.log" || true
}

network det ch_PP-OCRv4_det_infer.onnx 1x3x320x320 scenes
network cls ch_ppocr_mobile_v2.0_cls_infer.onnx 1x3x48x192 turned
network rec ch_PP-OCRv4_rec_infer.onnx 1x3x48x320 lines
