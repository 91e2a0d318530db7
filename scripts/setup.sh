#!/usr/bin/env bash
# Sets up .venv with everything Atelier needs, and asks nothing. Up to date: does nothing, in milliseconds.
#
#   scripts/setup.sh [--dev]
#
#   --dev               also what tests and checks need
#   PYTHON=python3.12   the Python to use (3.11, 3.12 or 3.13); by default the first one found
#   ATELIER_EXTRA=cpu   or gpu; by default gpu where there is an NVIDIA GPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH=2.13.0
CPU_TORCH_INDEX=https://download.pytorch.org/whl/cpu
venv=.venv
log=$venv/setup.log
dev=no
for argument in "$@"; do
    case $argument in
        --dev) dev=yes ;;
        *) echo "setup: unknown option $argument (there is only --dev)" >&2; exit 2 ;;
    esac
done

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }

# --- Steps -----------------------------------------------------------------------------------------------

# A step is done if its stamp holds its key; a key is a digest of all that the step depends on.
key() { { cat "$@"; printf '%s\n' "$PWD" "$extra"; } | sha256sum; }
is_done() { [[ -f $venv/.done-$1 && $(<"$venv/.done-$1") == "$2" ]]; }
mark_done() { printf '%s\n' "$2" >"$venv/.done-$1"; }

# step NAME COMMAND...: runs it quietly; says how long it took, or shows the end of its output.
step() {
    local name=$1 start=$SECONDS
    shift
    printf 'setup: %-46s' "$name ..." >&2
    if "$@" >>"$log" 2>&1; then
        printf '%3d s\n' $((SECONDS - start)) >&2
    else
        printf 'failed\n\n' >&2
        tail -n 25 "$log" >&2
        fail "" "$name failed; all of its output is in $PWD/$log"
    fi
}

install() { "$venv/bin/python" scripts/install.py --no-deps "$@"; }

# --- What this machine is --------------------------------------------------------------------------------

has_gpu() {
    compgen -G '/proc/driver/nvidia/gpus/*' >/dev/null && return
    command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'
}

python_suits() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python; do
        if python_suits "$candidate"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

# apt_install PACKAGE...: where that needs no password; quiet, and false if it cannot.
apt_install() {
    command -v apt-get >/dev/null && [[ $(id -u) == 0 ]] || return 1
    say "installing the system package $*"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"; } \
        >/dev/null 2>&1
}

require_python() {
    local python
    python=$(find_python) && { echo "$python"; return; }
    if apt_install python3 python3-venv; then
        python=$(find_python) && { echo "$python"; return; }
    fi
    fail "no Python 3.11, 3.12 or 3.13 with venv was found." \
        "Install one (Debian, Ubuntu: apt install python3 python3-venv; elsewhere: python.org, pyenv, conda)" \
        "or name one: make serve PYTHON=/path/to/python3.12"
}

# vLLM's CPU kernels link libnuma; nothing else here needs a system library that a bare Debian lacks.
require_libnuma() {
    [[ $extra == cpu ]] || return 0
    local probe='import ctypes; ctypes.CDLL("libnuma.so.1")'
    "$venv/bin/python" -c "$probe" 2>/dev/null && return
    apt_install libnuma1 && "$venv/bin/python" -c "$probe" 2>/dev/null && return
    say "libnuma.so.1 is missing, and vLLM's CPU build needs it. Debian, Ubuntu: apt install libnuma1;" \
        "Fedora: dnf install numactl-libs. Everything else is being installed."
}

# --- What is installed -----------------------------------------------------------------------------------

make_venv() {
    "$1" -m venv --clear "$venv"
}

install_uv() {
    "$venv/bin/python" -m pip install --no-input --require-hashes --no-deps -r requirements/installer.lock ||
        echo "no uv: pip does the work"
}

# torch comes without a hash: its CPU build is a wheel for each index and machine. `===` keeps a CPU build
# that lies in a local wheel folder off a machine with a GPU.
install_torch() {
    if [[ $extra == gpu ]]; then
        install "torch===$TORCH" || install "torch==$TORCH"
    else
        install "torch==$TORCH+cpu" || install "torch==$TORCH+cpu" --extra-index-url "$CPU_TORCH_INDEX" || {
            echo "No CPU build of torch $TORCH for $("$venv/bin/python" -V) is in pip's indexes or at $CPU_TORCH_INDEX."
            echo "Another Python may have one (make serve PYTHON=python3.11), or put its wheel into a folder"
            echo "and name that in PIP_FIND_LINKS."
            return 1
        }
    fi
}

install_project() {
    install --no-build-isolation -e . &&
        "$venv/bin/python" -m deployments.engines.torchvision_cpu
}

# Shows that all of it loads, and leaves its bytecode behind: the engines' first start is 10 s shorter.
import_everything() {
    env -u PYTHONDONTWRITEBYTECODE SDNQ_USE_TORCH_COMPILE=0 "$venv/bin/python" -c '
import ray.serve, torchvision, sdnq
import vllm.entrypoints.openai.api_server, vllm.v1.engine.async_llm, vllm.model_executor.models.qwen3_vl
from diffusers import QwenImagePipeline
from transformers import Qwen3VLProcessor'
}

# --- The order of it -------------------------------------------------------------------------------------

extra=${ATELIER_EXTRA:-}
if [[ -z $extra ]]; then
    if has_gpu; then extra=gpu; else extra=cpu; fi
fi
[[ $extra == cpu || $extra == gpu ]] || fail "ATELIER_EXTRA is cpu or gpu, not '$extra'"

# An environment whose Python is gone, or is not the one asked for, starts anew.
have=$("$venv/bin/python" -V 2>/dev/null) || rm -rf "$venv"
if [[ -n ${PYTHON:-} ]]; then
    python_suits "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13 with venv." \
        "Name another, or leave PYTHON out and the first suitable one is taken."
    [[ $("$PYTHON" -V) == "$have" ]] || rm -rf "$venv"
fi
base_key=$(key requirements/{installer,$extra}.lock)
dev_key=$(key requirements/dev.lock)
project_key=$(key pyproject.toml requirements/*.in deployments/engines/torchvision_cpu.py)

if ! is_done base "$base_key"; then
    python=$(require_python)
    say "$("$python" -V), $extra build of torch and vLLM, into $venv (on a CPU 2.6 GB and a minute or two)"
    mkdir -p "$venv"
    make_venv "$python"
    require_libnuma
    step "installer (uv)" install_uv
    step "torch $TORCH ($extra)" install_torch
    step "Ray, vLLM, diffusers and what they need" install --require-hashes -r "requirements/$extra.lock"
    mark_done base "$base_key"
fi
if [[ $dev == yes ]] && ! is_done dev "$dev_key"; then
    step "tests and checks" install --require-hashes -r requirements/dev.lock
    mark_done dev "$dev_key"
fi
if ! is_done project "$project_key"; then
    step "atelier itself" install_project
    mark_done project "$project_key"
fi
if ! is_done imports "$base_key"; then
    step "first import" import_everything
    mark_done imports "$base_key"
fi
