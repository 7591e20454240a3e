#!/usr/bin/env bash
# On a machine with a GPU and no network: install what is carried, build the extension, measure.
#
#   WHEELS=.whl suites/gpu/run.sh OUT [arguments of measure.py]
#
# Without WHEELS it measures with the interpreter that is there. PYTHON: python3 by default.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-runs/gpu}
shift || true
python=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  install=("$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site")
  "${install[@]}" "$WHEELS"/*.whl
  export PYTHONPATH="$site"
  # The package itself, with its C++: scikit-build-core is carried, pybind11 and cmake are there.
  pybind11_DIR=$("$python" -m pybind11 --cmakedir) ASYS_REQUIRE_CPP=1 "${install[@]}" \
    --no-build-isolation --config-settings=build-dir="$site/build" .
fi
"$python" -P suites/gpu/measure.py --out "$out" "$@"
