#!/usr/bin/env bash
# Tests in four processes side by side: most of them wait for other processes.
# What is given is passed on to each, e.g. `-m rest` or `-k ring`; a part that then has no test is fine.
set -uo pipefail
cd "$(dirname "$0")/.."
pytest=${PYTEST:-pytest}
logs=$(mktemp -d)
parts=(
  "tests/e2e/test_[a-g]*.py"
  "tests/e2e/test_[h-z]*.py"
  "tests/conformance tests/fuzz tests/gpu tests/interop tests/unit/sae tests/unit/kernels"
  "tests/stress tests/unit --ignore=tests/unit/sae --ignore=tests/unit/kernels"
)
pids=()
trap 'rm -rf "$logs"' EXIT
trap 'kill "${pids[@]}" 2>/dev/null; exit 130' INT TERM

for part in 1 2 3; do
  # shellcheck disable=SC2086
  "$pytest" ${parts[$part]} "$@" >"$logs/$part" 2>&1 &
  pids+=($!)
done
# shellcheck disable=SC2086
"$pytest" ${parts[0]} "$@"
codes=($?)
for part in 1 2 3; do
  wait "${pids[$((part - 1))]}"
  codes+=($?)
  cat "$logs/$part"
done

ran=0
for code in "${codes[@]}"; do
  if [ "$code" -eq 0 ]; then ran=1; elif [ "$code" -ne 5 ]; then exit "$code"; fi
done
[ "$ran" -eq 1 ] || exit 5
