#!/usr/bin/env bash
# Makes .venv beside this checkout and installs ufovit-edge into it, with the given extras of pyproject.toml.
#
#   scripts/install.sh [EXTRA ...]     default: "build rtx", on a Jetson "pycuda"
#
# On a Jetson the environment sees the system's packages, because TensorRT is the system's there. Without an NVIDIA GPU a CPU
# build of torch is preferred: PyTorch's own index of CPU builds if it answers within seconds, else whatever pip finds.
# A second run with the same extras does nothing. PYTHON chooses the interpreter (3.10 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."

torch_cpu_index="https://download.pytorch.org/whl/cpu"
constraints="scripts/constraints.txt"
python="${PYTHON:-python3}"

is_jetson() { [[ -e /etc/nv_tegra_release || "$(uname -r)" == *-tegra ]]; }
has_nvidia_gpu() { is_jetson || { command -v nvidia-smi && nvidia-smi -L; } >/dev/null 2>&1; }
say() { echo "install: $*" >&2; }

extras=("$@")
if [[ ${#extras[@]} -eq 0 ]]; then
  if is_jetson; then extras=(pycuda); else extras=(build rtx); fi
fi

command -v "$python" >/dev/null || { say "$python not found; install Python 3.10 or newer, or set PYTHON"; exit 4; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  { say "$("$python" --version) is too old; Python 3.10 or newer is needed: set PYTHON"; exit 4; }

# One install at a time; a second one waits and then finds everything in place.
if command -v flock >/dev/null; then exec 9>.venv.lock; flock 9; fi

want="$(cat pyproject.toml "$constraints" | sha256sum | cut -c1-16)"
stamp=".venv/.installed"
missing=()
for extra in "${extras[@]}"; do
  grep -qsx "$want $extra" "$stamp" || missing+=("$extra")
done
if [[ ${#missing[@]} -eq 0 && -x .venv/bin/ufovit ]] && .venv/bin/python -c 'import edge' 2>/dev/null; then exit 0; fi

say "installing into .venv: ${extras[*]}"
venv_options=()
if is_jetson; then venv_options+=(--system-site-packages); fi
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  "$python" -m venv --clear "${venv_options[@]}" .venv ||
    { say "cannot make .venv; on Debian: apt-get install python3-venv"; exit 4; }
fi
pip=(.venv/bin/python -m pip --disable-pip-version-check)

install_cpu_torch() {
  timeout 10 .venv/bin/python - "$torch_cpu_index/torch/" 2>/dev/null <<'PY' || return 1
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=5).read(1)
PY
  say "CPU build of torch from $torch_cpu_index"
  "${pip[@]}" install -q --timeout 15 --retries 1 --index-url "$torch_cpu_index" "$(grep '^torch==' "$constraints")"
}

if [[ " ${missing[*]} " == *" build "* ]] && ! has_nvidia_gpu && ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  install_cpu_torch || {
    say "PyTorch's index of CPU builds cannot be used here; taking torch from the default index"
    "${pip[@]}" install -q -c "$constraints" torch
  }
fi
joined="$(IFS=,; echo "${extras[*]}")"
"${pip[@]}" install -q -c "$constraints" -e ".[$joined]" || { say "pip failed; run the same command again"; exit 4; }
for extra in "${extras[@]}"; do echo "$want $extra" >>"$stamp"; done
say "done"
