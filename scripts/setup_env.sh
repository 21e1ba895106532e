#!/usr/bin/env bash
# Make .venv with everything that apa_det needs, or find it ready (well under a second).
#
#   scripts/setup_env.sh                              with python3, or the first of python3.13 ... 3.10
#   BASE_PYTHON=/path/to/python scripts/setup_env.sh  with this Python
#
# requirements/ pins what is installed. .venv/.apa_det says that this script made .venv; once
# everything is in and imports, it holds the stamp: the pins, Python and checkout it was made for.
# Without the right stamp .venv is made anew. A .venv of another origin is never touched.

set -Eeuo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VERSION=1 # raise it when a change of this script must rebuild everyone's .venv
readonly VENV=.venv
readonly PY=$VENV/bin/python
readonly MARK=$VENV/.apa_det
readonly LOG=$VENV/setup.log # what the current step printed
readonly LOCK=.venv.lock
readonly STEPS=6
readonly NEED_GB=8

step_number=0
step_name="looking at $VENV"

die() { # MESSAGE [ADVICE]: say which step failed, why, and what to do
    {
        echo
        echo "scripts/setup_env.sh failed at: $step_name"
        echo "$1"
        if [[ -n ${2:-} ]]; then echo "What to do: $2"; fi
    } >&2
    exit 1
}

step() {
    step_number=$((step_number + 1))
    step_name="step $step_number of $STEPS, $1"
    echo "[$step_number/$STEPS] $1"
}

# --- is it ready? -----------------------------------------------------------------------------

sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; }

stamp() { # PYTHON_VERSION: what MARK must hold
    local pins
    pins=$(cat requirements/*.txt | sha256)
    echo "setup_env $VERSION, Python $1, pins ${pins%% *}, $PWD"
}

installed_python() { # version of .venv's Python, if every package is still in its place
    "$PY" -I - <<'PYTHON' 2>/dev/null
import sys
from importlib.util import find_spec

packages = "torch torchvision detectron2 lvis timm cv2 pytest ruff apa_det".split()
if not all(find_spec(name) for name in packages):
    sys.exit(1)
print("%d.%d" % sys.version_info[:2])
PYTHON
}

ready() {
    local version
    [[ -f $MARK ]] && version=$(installed_python) && [[ $(<"$MARK") == "$(stamp "$version")" ]] &&
        [[ -z ${BASE_PYTHON:-} || $(fitness "$BASE_PYTHON") == "$version" ]]
}

# --- which Python? ----------------------------------------------------------------------------

fitness() { # PYTHON: its version if a .venv can be made with it, else what stands in the way
    command -v "$1" >/dev/null || { echo "not found" && return; }
    "$1" - <<'PYTHON' 2>/dev/null || echo "does not run"
import sys
version = "%d.%d" % sys.version_info[:2]
try:
    import ensurepip, venv
except ImportError:
    version += " without venv"
print(version)
PYTHON
}

choose_python() { # sets base, base_version
    step_name="choosing a Python"
    local candidate seen="" advice
    local candidates=(python3 python3.13 python3.12 python3.11 python3.10)
    [[ -z ${BASE_PYTHON:-} ]] || candidates=("$BASE_PYTHON")
    for candidate in "${candidates[@]}"; do
        base_version=$(fitness "$candidate")
        case $base_version in
        3.10 | 3.11 | 3.12 | 3.13)
            base=$candidate
            return
            ;;
        esac
        seen+="${seen:+, }$candidate ($base_version)"
    done
    advice="install Python 3.10 to 3.13, or name one: make TARGET BASE_PYTHON=/path/to/python3.12"
    if [[ $seen =~ 3\.1[0-3]" without venv" ]]; then
        advice="install that Python's venv package (Debian, Ubuntu: apt-get install python3-venv), or $advice"
    fi
    die "No usable Python 3.10 to 3.13: $seen." "$advice"
}

# --- one at a time ----------------------------------------------------------------------------

take_lock() {
    if command -v flock >/dev/null; then
        # pip inherits the lock: should this script be killed, the next one waits for pip to end.
        exec 9>"$LOCK"
        flock -n 9 || {
            echo "Another set-up is at work here: waiting for it to end."
            flock 9
        }
        return
    fi
    local holder told=""
    until mkdir "$LOCK.d" 2>/dev/null; do
        holder=$(cat "$LOCK.d/pid" 2>/dev/null || true)
        if [[ -n $holder ]] && ! kill -0 "$holder" 2>/dev/null; then
            rm -rf "$LOCK.d"
        else
            [[ -n $told ]] || echo "Another set-up is at work here: waiting (if none is, remove $LOCK.d)."
            told=yes
            sleep 1
        fi
    done
    echo $$ >"$LOCK.d/pid"
    trap 'rm -rf "$LOCK.d"' EXIT
}

# --- the steps --------------------------------------------------------------------------------

show_progress() { # pip's output in, one line for each large download out
    awk '/^ *Downloading .* MB\)$/ {
             size = substr($(NF - 1), 2) + 0
             if (size >= 20) { sub(/.*\//, "", $2); print "      " $2 ", " int(size) " MB" }
         }
         /^Installing collected packages/ && NF > 20 { print "      unpacking " NF - 3 " packages" }
         { fflush() }'
}

advice_for_pip() {
    if grep -q "No space left" "$LOG"; then
        echo "free some disk space ($NEED_GB GB are needed here; a small /tmp: set TMPDIR to a larger folder)."
    elif grep -q "DO NOT MATCH THE HASHES" "$LOG"; then
        echo "the registry served another file than the pinned one: do not use it; look into the registry that pip is set to."
    elif grep -qE "No matching distribution|Connection|Retrying|Temporary failure|Max retries" "$LOG"; then
        echo "pip could not get a package: check the network, the proxy and the registry that pip is set to (pip config list), then run this again. Without a network, or on a platform that the pinned releases do not cover: make TARGET PYTHON=/path/to/python, with a Python that has torch and detectron2."
    else
        echo "read $LOG, mend the cause, then run this again."
    fi
}

run_pip() { # pip install with these arguments
    echo "pip install $*" >"$LOG"
    "$PY" -m pip --no-input --disable-pip-version-check install "$@" 2>&1 |
        tee -a "$LOG" | show_progress ||
        die "$(tail -n 15 "$LOG")" "$(advice_for_pip)"
}

make_venv() {
    step "making $VENV with $base (Python $base_version)"
    mkdir -p "$VENV"
    : >"$MARK" # first: whatever stops us now, what is left is known as ours and as unfinished
    find "$VENV/" -mindepth 1 -maxdepth 1 ! -name "${MARK##*/}" -exec rm -rf {} +
    local free_kb
    free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
    if ((free_kb < NEED_GB * 1024 * 1024)); then
        echo "      WARNING: $((free_kb / 1024 / 1024)) GB of disk are free here; the install needs about $NEED_GB GB."
    fi
    "$base" -m venv "$VENV" >"$LOG" 2>&1 ||
        die "$(tail -n 15 "$LOG")" "try another Python: make TARGET BASE_PYTHON=/path/to/python3.12"
}

install_packages() {
    step "installing pip and setuptools"
    run_pip -r requirements/installer.txt

    step "installing torch, torchvision and what detectron2 imports (5 GB; 1 to 10 minutes)"
    run_pip --no-build-isolation -r requirements/environment.txt -c requirements/constraints.txt

    step "installing detectron2, lvis and timm"
    run_pip --no-deps -r requirements/without_dependencies.txt
    # The wheel is tagged for one Python but fits all: so it goes through a folder, from where all
    # but its stray top-level `tools` moves to site-packages at once.
    local folder=$VENV/detectron2 site_packages
    run_pip --target "$folder" --no-deps --only-binary=:all: --python-version 3.10 \
        --implementation cp --abi none --platform any --require-hashes -r requirements/detectron2.txt
    rm -rf "$folder/tools"
    site_packages=$("$PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mv "$folder"/* "$site_packages"
    rmdir "$folder"

    step "installing apa_det itself (a link to this folder)"
    run_pip --no-deps --no-build-isolation -e .
}

build_kernels() { # anew, where the source has changed since; without a compiler there are none
    local built
    for built in apa_det/kernels/_native_*.so; do
        if [[ -e $built && apa_det/kernels/native.cpp -nt $built ]]; then
            echo "Compiling the kernels again, whose source has changed."
            "$PY" setup.py -q build_ext --inplace --force >"$LOG" 2>&1 ||
                echo "They do not compile (see $LOG): plain PyTorch is used instead."
            return
        fi
    done
}

check() {
    step "importing everything once"
    "$PY" scripts/check_env.py test >"$LOG" 2>&1 ||
        die "$(tail -n 15 "$LOG")" "run this again; if it fails the same way, report it with $LOG."
    tail -n 1 "$LOG"
}

main() {
    unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_ROOT
    export PIP_USER=0
    PATH=${PATH//"$PWD/$VENV/bin:"/} # an activated .venv must not be the Python that makes it anew
    if ready; then
        build_kernels
        return
    fi
    [[ -w . ]] || die "$PWD is not writable." "use a checkout of your own, or a ready Python: make TARGET PYTHON=/path/to/python"
    take_lock
    if ready; then return; fi # made while we waited

    if [[ -e $VENV && ! -f $MARK && -n $(ls -A "$VENV" 2>/dev/null || echo file) ]]; then
        die "There is a $VENV here that this script did not make." \
            "move it away, or use the Python in it: make TARGET PYTHON=$PY"
    fi
    choose_python
    trap 'die "Interrupted." "run it again: it starts from the beginning, with what pip has in its cache."' INT TERM
    trap 'die "Command failed: $BASH_COMMAND" "read $LOG, mend the cause, then run this again."' ERR
    SECONDS=0
    make_venv
    install_packages
    check
    stamp "$base_version" >"$MARK.new"
    mv "$MARK.new" "$MARK"
    echo "$VENV is ready after $SECONDS s."
}

main "$@"
