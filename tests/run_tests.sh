#!/usr/bin/env bash
# Tests in two processes side by side: most of them wait for other processes.
# What is given is passed on to both, e.g. `-m rest` or `-k ring`; a half that then has no test is fine.
set -uo pipefail
cd "$(dirname "$0")/.."
pytest=${PYTEST:-pytest}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

"$pytest" tests/unit tests/fuzz tests/gpu tests/interop "$@" >"$log" 2>&1 &
other=$!
trap 'kill "$other" 2>/dev/null; rm -f "$log"' INT TERM
"$pytest" tests/e2e tests/conformance tests/stress "$@"
first=$?
wait "$other"
second=$?
cat "$log"

for code in "$first" "$second"; do
  if [ "$code" -ne 0 ] && [ "$code" -ne 5 ]; then exit "$code"; fi
done
if [ "$first" -eq 5 ] && [ "$second" -eq 5 ]; then exit 5; fi
exit 0
