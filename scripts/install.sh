#!/usr/bin/env bash
# Create .venv in this checkout and install ufovit-edge into it, with the given extras of pyproject.toml.
#
#   scripts/install.sh [EXTRA ...]     default: "build rtx", on a Jetson "pycuda"
#   scripts/install.sh device          for building from a bundle: "pycuda" on a Jetson, elsewhere "rtx"
#   scripts/install.sh torch-trt       torch-tensorrt, in a separate environment, .venv-torch-trt
#
# On a Jetson the environment includes the system's packages, because JetPack provides TensorRT. Without an NVIDIA GPU a CPU
# build of torch is preferred: from PyTorch's index of CPU builds if it responds within seconds, else from the default index.
# With a GPU, torch-trt is torch-tensorrt for this machine's GPU, with a CUDA build of torch; without one it is
# torch-tensorrt-rtx, which builds for other machines' GPUs with a CPU build of torch. `torch-trt-rtx` selects the latter on any
# machine. A second run with the same extras does nothing. PYTHON selects the interpreter (3.10 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."

torch_cpu_index="https://download.pytorch.org/whl/cpu"
constraints="scripts/constraints.txt"
torch_trt_constraints="scripts/constraints-torch-trt.txt"
python="${PYTHON:-python3}"

is_jetson() { [[ -e /etc/nv_tegra_release || "$(uname -r)" == *-tegra ]]; }
has_nvidia_gpu() { is_jetson || { command -v nvidia-smi && nvidia-smi -L; } >/dev/null 2>&1; }
say() { echo "install: $*" >&2; }

extras=()
torch_trt=""
for word in "$@"; do
  case "$word" in
    torch-trt | torch-trt-rtx) torch_trt="$word" ;;
    device) if is_jetson; then extras+=(pycuda); else extras+=(rtx); fi ;;
    *) extras+=("$word") ;;
  esac
done
if [[ ${#extras[@]} -eq 0 && -z "$torch_trt" ]]; then
  if is_jetson; then extras=(pycuda); else extras=(build rtx); fi
fi

command -v "$python" >/dev/null || { say "$python not found; install Python 3.10 or newer, or set PYTHON"; exit 4; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  { say "$("$python" --version) is too old; Python 3.10 or newer is needed: set PYTHON"; exit 4; }

# One installation at a time: a second one waits, then has nothing to do.
if command -v flock >/dev/null; then exec 9>.venv.lock; flock 9; fi

# make_environment FOLDER [OPTION ...]: a new environment with pip in it
make_environment() {
  "$python" -m venv --clear "${@:2}" "$1" || { say "cannot create $1; on Debian: apt-get install python3-venv"; exit 4; }
}

# pip_in FOLDER ARGUMENT ...
pip_in() { "$1/bin/python" -m pip --disable-pip-version-check "${@:2}"; }

# install_cpu_torch FOLDER CONSTRAINTS: torch, a CPU build if PyTorch's index of CPU builds is available
install_cpu_torch() {
  if timeout 10 "$1/bin/python" - "$torch_cpu_index/torch/" 2>/dev/null <<'PY'
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=5).read(1)
PY
  then
    say "CPU build of torch from $torch_cpu_index"
    pip_in "$1" install -q --timeout 15 --retries 1 --index-url "$torch_cpu_index" "$(grep '^torch==' "$2")" && return
  fi
  say "PyTorch's index of CPU builds is not available; installing torch from the default index"
  pip_in "$1" install -q -c "$2" torch
}

install_extras() {
  local want stamp=".venv/.installed" missing=() venv_options=() extra joined
  want="$(cat pyproject.toml "$constraints" | sha256sum | cut -c1-16)"
  for extra in "${extras[@]}"; do
    grep -qsx "$want $extra" "$stamp" || missing+=("$extra")
  done
  if [[ ${#missing[@]} -eq 0 && -x .venv/bin/ufovit ]] && .venv/bin/python -c 'import edge' 2>/dev/null; then return; fi

  say "installing into .venv: ${extras[*]}"
  if is_jetson; then venv_options+=(--system-site-packages); fi
  .venv/bin/python -m pip --version >/dev/null 2>&1 || make_environment .venv "${venv_options[@]}"
  if [[ " ${missing[*]} " == *" build "* ]] && ! has_nvidia_gpu && ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    install_cpu_torch .venv "$constraints"
  fi
  joined="$(IFS=,; echo "${extras[*]}")"
  pip_in .venv install -q -c "$constraints" -e ".[$joined]" || { say "pip failed; run the same command again"; exit 4; }
  for extra in "${extras[@]}"; do echo "$want $extra" >>"$stamp"; done
  say "done"
}

install_torch_trt() {
  local flavour="torch-tensorrt-rtx" want folder=".venv-torch-trt" stamp
  if [[ "$torch_trt" == torch-trt ]] && has_nvidia_gpu; then flavour="torch-tensorrt"; fi
  stamp="$folder/.installed"
  want="$(sha256sum <"$torch_trt_constraints" | cut -c1-16) $flavour"
  if grep -qsx "$want" "$stamp" && "$folder/bin/python" -c '' 2>/dev/null; then return; fi

  say "installing into $folder: $flavour"
  make_environment "$folder" # the two flavours have files of the same names
  if [[ "$flavour" == torch-tensorrt ]]; then
    pip_in "$folder" install -q -c "$torch_trt_constraints" torch-tensorrt
  else
    install_cpu_torch "$folder" "$torch_trt_constraints" &&
      pip_in "$folder" install -q -c "$torch_trt_constraints" numpy packaging psutil dllist tensorrt_rtx &&
      pip_in "$folder" install -q -c "$torch_trt_constraints" --no-deps torch-tensorrt-rtx
  fi || { say "pip failed; run the same command again"; exit 4; }
  echo "$want" >"$stamp"
  say "done"
}

if [[ ${#extras[@]} -gt 0 ]]; then install_extras; fi
if [[ -n "$torch_trt" ]]; then install_torch_trt; fi
