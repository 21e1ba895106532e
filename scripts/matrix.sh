#!/usr/bin/env bash
# Run the tests with other versions of Python, torch, NumPy and detectron2; print a table.
#
#   scripts/matrix.sh FOLDER [ROW ...]           all tests
#   TESTS="tests/kernels tests/layers" scripts/matrix.sh FOLDER oldest
#
# Each row has an environment in FOLDER, about 6 GB and 5 minutes, which is kept for the next call.
# The tests are those of the sdist. The row "source" needs DETECTRON2_SOURCE=/path/to/detectron2, a
# checkout of its main branch, and a C++ compiler; detectron2 is built there for the CPU.

set -Eeuo pipefail

readonly ROWS=( # name, Python, torch, torchvision, NumPy, detectron2
    "oldest 3.10 2.4.0 0.19.0 1.26.4 rebuild"
    "middle 3.11 2.11.0 0.26.0 2.* rebuild"
    "source 3.12 2.14.1 0.29.1 2.* source"
    "newest 3.13 2.14.1 0.29.1 2.* rebuild"
)
readonly MINIMA="pillow==10.1.0 pycocotools==2.0.7 tabulate==0.9.0 tqdm==4.60.0 defusedxml==0.7.1"

ROOT=$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "${1:?name a folder for the environments}"
FOLDER=$(cd -P "$1" && pwd)
shift
readonly ROOT FOLDER
read -ra TESTS <<<"${TESTS:-tests}"

find_python() { # VERSION: the path of this Python, of the PATH or of pyenv
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        if "$candidate" -c "import sys, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "There is no Python $1: install it, or leave this row out." >&2
    return 1
}

create() { # NAME PYTHON TORCH TORCHVISION NUMPY DETECTRON2
    local env=$FOLDER/$1 py=$FOLDER/$1/bin/python requirements=$ROOT/requirements minima=()
    "$(find_python "$2")" -m venv --clear "$env"
    "$py" -m pip install -r "$requirements/installer.txt"
    # The other packages, without the releases that requirements/ pins
    grep -v '^#' "$requirements/environment.txt" | sed 's/[=;].*//' |
        grep -vxE 'torch|torchvision|numpy|' | sort -u >"$env/packages.txt"
    if [[ $1 == oldest ]]; then read -ra minima <<<"$MINIMA"; fi
    "$py" -m pip install --no-build-isolation "torch==$3" "torchvision==$4" "numpy==$5" \
        "setuptools<81" -r "$env/packages.txt" "${minima[@]}"
    "$py" -m pip install --no-deps -r "$requirements/without_dependencies.txt"
    if [[ $6 == source ]]; then
        FORCE_CUDA=0 "$py" -m pip install --no-deps --no-build-isolation \
            "${DETECTRON2_SOURCE:?set it to a checkout of detectron2}"
        "$py" -c 'import torch, detectron2._C'
    else
        "$py" -m pip install --target "$env/detectron2" --no-deps --only-binary=:all: \
            --python-version 3.10 --implementation cp --abi none --platform any \
            --require-hashes -r "$requirements/detectron2.txt"
        rm -rf "$env/detectron2/tools"
        mv "$env"/detectron2/* "$("$py" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    fi
    touch "$env/complete"
}

run_tests() { # NAME: run them in the row's copy of the sdist
    local py=$FOLDER/$1/bin/python copy=$FOLDER/$1/sdist
    rm -rf "$copy"
    mkdir "$copy"
    tar -xzf "$FOLDER"/sdist/apa_det-*.tar.gz -C "$copy" --strip-components 1
    cd "$copy"
    "$py" -m pip install --no-deps --no-build-isolation -e .
    OMP_NUM_THREADS=1 "$py" -m pytest -q "${TESTS[@]}"
}

main() { # ROWS; a function, so that bash has read all of it before it runs
    python3 -m venv --clear "$FOLDER/build"
    "$FOLDER/build/bin/pip" install -q build
    rm -rf "$FOLDER/sdist"
    "$FOLDER/build/bin/python" -m build --sdist -o "$FOLDER/sdist" "$ROOT" >"$FOLDER/build.log"

    local row log result failed=0 name python torch torchvision numpy detectron2
    local table="| row | Python | torch | torchvision | NumPy | detectron2 | result |"
    table+=$'\n'"| --- | --- | --- | --- | --- | --- | --- |"
    for row in "${ROWS[@]}"; do
        read -r name python torch torchvision numpy detectron2 <<<"$row"
        if (($#)) && [[ " $* " != *" $name "* ]]; then continue; fi
        log=$FOLDER/$name.log
        result="no environment, see $log"
        echo "Row $name: $log"
        # As background jobs, in which set -e acts
        if [[ ! -e $FOLDER/$name/complete ]]; then
            # shellcheck disable=SC2086
            create $row >"$log" 2>&1 &
            wait $! || true
        fi
        if [[ -e $FOLDER/$name/complete ]]; then
            run_tests "$name" >"$log" 2>&1 &
            wait $! || failed=1
            result=$(tail -n 1 "$log")
            numpy=$("$FOLDER/$name/bin/python" -c 'import numpy; print(numpy.__version__)')
        else
            failed=1
        fi
        table+=$'\n'"| $name | $python | $torch | $torchvision | $numpy | $detectron2 | $result |"
    done
    printf '\nTests: %s\n\n%s\n' "${TESTS[*]}" "$table"
    exit "$failed"
}

main "$@"
