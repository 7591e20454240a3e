#!/usr/bin/env bash
# run_tests.sh N PYTEST_ARGUMENT...: the tests in parts, N of them side by side: most tests wait for other
# processes. What is given is passed on to each part, e.g. `-m rest` or `-k ring`; a part that then has no
# test is fine. The first part's output is shown as it comes, the others' when they have ended.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
pytest=${PYTEST:-pytest}
# Set, every process that a test starts would compile our modules anew.
unset PYTHONDONTWRITEBYTECODE
at_once=$1
shift
logs=$(mktemp -d)
named=(e2e stress fuzz gpu interop conformance ray trackers trl)
first_units=(backends capture callbacks)
second_units=(sae kernels cli config contracts)
third_units=(sinks monitors reports rundir)
left=(tests)
for folder in "${named[@]}" "${first_units[@]/#/unit/}" "${second_units[@]/#/unit/}" \
  "${third_units[@]/#/unit/}"; do
  left+=("--ignore=tests/$folder")
done
parts=(
  "tests/e2e/test_[a-g]*.py"
  "tests/e2e/test_[h-r]*.py"
  "tests/e2e/test_[s-z]*.py tests/stress tests/fuzz tests/gpu tests/interop tests/trackers"
  "tests/conformance"
  "${first_units[*]/#/tests/unit/}"
  "${second_units[*]/#/tests/unit/}"
  "${third_units[*]/#/tests/unit/}"
  "${left[*]}"
)
pids=()
trap 'rm -rf "$logs"' EXIT
trap 'kill "${pids[@]}" 2>/dev/null; exit 130' INT TERM

for part in "${!parts[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$at_once" ]; do sleep 0.5; done
  if [ "$part" -eq 0 ]; then exec 3>&1 4>&2; else exec 3>"$logs/$part" 4>&3; fi
  # shellcheck disable=SC2086
  "$pytest" ${parts[$part]} "$@" >&3 2>&4 3>&- 4>&- &
  pids+=($!)
done
ran=0 worst=0
for part in "${!parts[@]}"; do
  wait "${pids[$part]}"
  code=$?
  [ "$part" -eq 0 ] || cat "$logs/$part"
  if [ "$code" -eq 0 ]; then ran=1; elif [ "$code" -ne 5 ]; then worst=$code; fi
done
[ "$worst" -eq 0 ] || exit "$worst"
[ "$ran" -eq 1 ] || exit 5
