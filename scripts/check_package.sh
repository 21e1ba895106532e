#!/usr/bin/env bash
# Build sdist and wheel, check them, and use the wheel without the checkout.
#
#   scripts/check_package.sh [PYTHON]   a Python with torch and detectron2; default: that of .venv
#
# It trains two iterations of the quickstart, evaluates them, and runs a few tests of the sdist.

set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=$(realpath -s "${1:-.venv/bin/python}")

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$PYTHON" -m venv "$folder/build"
"$folder/build/bin/pip" install -q build twine
"$folder/build/bin/python" -m build -o "$folder/dist" . >"$folder/build.log" 2>&1 || {
    tail -n 30 "$folder/build.log"
    exit 1
}
"$folder/build/bin/twine" check --strict "$folder"/dist/*

# An environment with the packages of PYTHON, without its apa_det: pip finds all requirements there
"$PYTHON" -m venv "$folder/env"
packages=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
site=$("$folder/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$packages" >"$site/packages.pth"
before=$(ls "$site")
"$folder/env/bin/pip" install -q --no-index "$folder"/dist/*.whl
diff <(echo "$before") <(ls "$site") | grep '^>' || true

mkdir "$folder/work"
cd "$folder/work"
unset PYTHONPATH
"$folder/env/bin/python" - <<'PYTHON'
import apa_det
from apa_det.kernels import native_library

assert apa_det.__file__.endswith("site-packages/apa_det/__init__.py"), apa_det.__file__
for name in apa_det.model_zoo.list():
    apa_det.model_zoo.get_config(name)
print(f"{len(apa_det.model_zoo.list())} configs; compiled kernels: {native_library.LIBRARY is not None}")
PYTHON
overrides=(MODEL.DEVICE cpu SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 TEST.SUBSET 10)
"$folder/env/bin/apa-det" prepare-dataset synthetic --output datasets/quickstart \
    --num-train 24 --num-val 6
"$folder/env/bin/apa-det" quickstart "${overrides[@]}"
"$folder/env/bin/apa-det" eval --config-file output/config.yaml MODEL.WEIGHTS output/model_final.pth
test -s output/val_predictions.png

mkdir "$folder/sdist"
tar -xzf "$folder"/dist/apa_det-*.tar.gz -C "$folder/sdist" --strip-components 1
cd "$folder/sdist"
"$PYTHON" -m pytest -q -p no:cacheprovider tests/test_text.py tests/test_model_zoo.py
echo "The package is complete."
