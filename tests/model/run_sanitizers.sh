#!/bin/sh
# ThreadSanitizer over threads on one mapping, and damaged segments under AddressSanitizer and UBSan.
# Usage: run_sanitizers.sh [packets] [damaged segments]. With clang, FUZZER=1 uses libFuzzer instead.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
ring=$here/../../backends/cpp_spmc
packets=${1:-1000000}
segments=${2:-20000}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
sources="$ring/segment.cpp $ring/tables.cpp $ring/producer.cpp $ring/consumer.cpp $ring/account.cpp $ring/copy.cpp"
flags="-std=c++20 -O1 -g -Wall -I$ring -pthread"

echo "ThreadSanitizer:"
# shellcheck disable=SC2086
"${CXX:-g++}" $flags -fsanitize=thread "$here/threads_test.cpp" $sources -o "$build/threads"
TSAN_OPTIONS="halt_on_error=1" "$build/threads" "$packets"

echo "AddressSanitizer, UBSan:"
if [ "${FUZZER:-0}" = 1 ]; then
  # shellcheck disable=SC2086
  clang++ $flags -fsanitize=fuzzer,address,undefined "$here/fuzz_attach.cpp" $sources -o "$build/fuzz"
  "$build/fuzz" -runs="$segments" -max_len=240
else
  # shellcheck disable=SC2086
  "${CXX:-g++}" $flags -DFUZZ_MAIN -fsanitize=address,undefined -fno-sanitize-recover=all \
    "$here/fuzz_attach.cpp" $sources -o "$build/fuzz"
  "$build/fuzz" "$segments"
fi
