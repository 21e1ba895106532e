#!/usr/bin/env bash
# Create .venv with all packages of apa_det. If it is up to date, this takes less than a second.
#
#   scripts/setup_env.sh                              use python3, or else python3.13 ... python3.10
#   BASE_PYTHON=/path/to/python scripts/setup_env.sh  use this Python
#
# requirements/ pins the packages. The file .venv/.apa_det marks a .venv created by this script, and
# names the checkout. After a complete installation it is a stamp of the pins, the Python and the
# checkout. With another stamp .venv is created again. A .venv without this file, or that of another
# checkout, is never changed. .venv may be a link to a folder, e.g. on another disk.

set -Eeuo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VERSION=1 # increment it to create all existing .venv again
readonly VENV=.venv
readonly PY=$VENV/bin/python
readonly MARK=$VENV/.apa_det
readonly LOG=$VENV/setup.log # output of the current step
readonly LOCK=.venv.lock
readonly STEPS=6
readonly NEED_GB=8

step_number=0
step_name="checking $VENV"

die() { # MESSAGE [ADVICE]: print the failed step, the reason and the advice, and exit
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

# --- is .venv up to date? ----------------------------------------------------------------------

sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; }

stamp() { # PYTHON_VERSION: the expected content of MARK
    local pins
    pins=$(cat requirements/*.txt | sha256)
    echo "setup_env $VERSION, Python $1, pins ${pins%% *}, $PWD"
}

installed_python() { # version of the Python in .venv, if all packages are installed
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

fitness() { # PYTHON: its version if it can create .venv, else the problem
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
    local path
    for path in . "$LOCK" "$VENV" "$MARK"; do
        [[ ! -e $path || -w $path ]] ||
            die "$PWD/$path is not writable for the user $(id -un)." \
                "run this as its owner, use another checkout, or an existing Python: make TARGET PYTHON=/path/to/python"
    done
    if command -v flock >/dev/null; then
        # pip inherits the lock. If this script is killed, the next one waits for pip to finish.
        exec 9>"$LOCK"
        flock -n 9 || {
            echo "Another set-up is running in this checkout. Waiting for it to finish."
            flock 9
        }
        return
    fi
    local holder announced=""
    until ln -s $$ "$LOCK.pid" 2>/dev/null; do # a link to the number of the process
        holder=$(readlink "$LOCK.pid" || true)
        if [[ -n $holder ]] && ! kill -0 "$holder" 2>/dev/null; then
            rm -f "$LOCK.pid"
        else
            [[ -n $announced ]] ||
                echo "Another set-up is running in this checkout. Waiting for it to finish (if there is none, remove $LOCK.pid)."
            announced=yes
            sleep 1
        fi
    done
    trap 'rm -f "$LOCK.pid"' EXIT
}

# --- the steps --------------------------------------------------------------------------------

show_progress() { # reduce the output of pip to one line per large download
    awk '/^ *Downloading .* MB\)$/ {
             size = substr($(NF - 1), 2) + 0
             if (size >= 20) { sub(/.*\//, "", $2); print "      " $2 ", " int(size) " MB" }
         }
         /^Installing collected packages/ && NF > 20 { print "      unpacking " NF - 3 " packages" }
         { fflush() }'
}

advice_for_pip() {
    if grep -q "No space left" "$LOG"; then
        echo "free disk space: $NEED_GB GB are required here. If /tmp is too small, set TMPDIR to a larger folder."
    elif grep -q "DO NOT MATCH THE HASHES" "$LOG"; then
        echo "the registry served a file that differs from the pinned one. Do not use it; check the registry configured in pip."
    elif grep -qE "No matching distribution|Connection|Retrying|Temporary failure|Max retries" "$LOG"; then
        echo "pip could not download a package: check the network, the proxy and the registry of pip (pip config list), then run this again. Without a network, or on a platform without the pinned releases, use make TARGET PYTHON=/path/to/python with a Python that has torch and detectron2."
    else
        echo "read $LOG, fix the problem, then run this again."
    fi
}

run_pip() { # ARGUMENTS of pip install
    echo "pip install $*" >"$LOG"
    "$PY" -m pip --no-input --disable-pip-version-check install "$@" 2>&1 |
        tee -a "$LOG" | show_progress ||
        die "$(tail -n 15 "$LOG")" "$(advice_for_pip)"
}

make_venv() {
    step "creating $VENV with $base (Python $base_version)"
    local folder=$VENV free_kb
    if [[ -L $VENV ]]; then folder=$(readlink -f "$VENV" || readlink "$VENV"); fi # no link for venv
    [[ -d $VENV ]] || mkdir "$folder" ||
        die "The link $VENV names $folder, which does not exist." "create this folder, or remove the link."
    echo "incomplete, $PWD" >"$MARK" # first: if this script is stopped, .venv is not taken for complete
    find "$VENV/" -mindepth 1 -maxdepth 1 ! -name "${MARK##*/}" -exec rm -rf {} +
    free_kb=$(df -Pk "$VENV/" | awk 'NR == 2 { print $4 }')
    if ((free_kb < NEED_GB * 1024 * 1024)); then
        echo "      WARNING: $((free_kb / 1024 / 1024)) GB of disk space are free; about $NEED_GB GB are required."
    fi
    "$base" -m venv "$folder" >"$LOG" 2>&1 ||
        die "$(tail -n 15 "$LOG")" "try another Python: make TARGET BASE_PYTHON=/path/to/python3.12"
}

install_packages() {
    step "installing pip and setuptools"
    run_pip -r requirements/installer.txt

    step "installing torch, torchvision and the dependencies of detectron2 (5 GB; 1 to 10 minutes)"
    run_pip --no-build-isolation -r requirements/environment.txt -c requirements/constraints.txt

    step "installing detectron2, lvis, timm and tidecv"
    run_pip --no-deps -r requirements/without_dependencies.txt
    # The wheel is tagged for Python 3.10 but works with all. Install it to a folder and move all but
    # its stray top-level `tools` to site-packages.
    local folder=$VENV/detectron2 site_packages
    run_pip --target "$folder" --no-deps --only-binary=:all: --python-version 3.10 \
        --implementation cp --abi none --platform any --require-hashes -r requirements/detectron2.txt
    rm -rf "$folder/tools"
    site_packages=$("$PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mv "$folder"/* "$site_packages"
    rmdir "$folder"

    step "installing apa_det (editable)"
    run_pip --no-deps --no-build-isolation -e .
}

update() { # install apa_det again, which compiles the kernels, if its build changed
    local source changed=""
    for source in pyproject.toml setup.py apa_det/kernels/native_*.{cpp,h}; do
        if [[ $source -nt $MARK ]]; then changed=$source; fi
    done
    [[ -n $changed ]] || return 0
    step_name="installing apa_det again"
    take_lock
    echo "Installing apa_det again because $changed changed."
    run_pip --no-deps --no-build-isolation -e .
    touch "$MARK"
}

check() {
    step "checking the installation"
    "$PY" scripts/check_env.py test >"$LOG" 2>&1 ||
        die "$(tail -n 15 "$LOG")" "run this again. If it fails again, report it with $LOG."
    tail -n 1 "$LOG"
}

main() {
    unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON
    export PIP_USER=0
    PATH=${PATH//"$PWD/$VENV/bin:"/} # do not create .venv with the Python of an activated .venv
    if ready; then
        update
        return
    fi
    take_lock
    if ready; then return; fi # created while waiting

    if [[ -e $VENV && ! -f $MARK && -n $(ls -A "$VENV/" 2>/dev/null || echo file) ]]; then
        die "This script did not create the existing $VENV." \
            "move it away, or use its Python: make TARGET PYTHON=$PY"
    fi
    local owner
    owner=$(sed 's/^[^/]*//' "$MARK" 2>/dev/null || true)
    if [[ -n $owner && $owner != "$PWD" && $owner/$VENV -ef $VENV ]]; then
        die "$VENV is a link to that of the checkout $owner, with other packages." \
            "remove the link, or use its Python: make TARGET PYTHON=$PY"
    fi
    choose_python
    trap 'die "Interrupted." "run it again. It starts from the beginning, with the cache of pip."' INT TERM
    trap 'die "Command failed: $BASH_COMMAND" "read $LOG, fix the problem, then run this again."' ERR
    SECONDS=0
    make_venv
    install_packages
    check
    stamp "$base_version" >"$MARK.new"
    mv "$MARK.new" "$MARK"
    echo "$VENV is ready after $SECONDS s."
}

main "$@"
