#!/bin/sh
# ThreadSanitizer over threads on one mapping, damaged segments under AddressSanitizer and UBSan, and odd
# tensors through the hooks with the extension modules built under AddressSanitizer.
# Usage: run_sanitizers.sh [packets] [damaged segments] [tensors]. With clang, FUZZER=1 uses libFuzzer
# instead; PYTHON is an interpreter with the package and its test extra (without one that part is left out).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
ring=$here/../../backends/cpp_spmc
packets=${1:-1000000}
segments=${2:-20000}
tensors=${3:-1000}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
sources="$ring/segment/segment.cpp $ring/segment/tables.cpp $ring/producer.cpp $ring/consumer.cpp $ring/account.cpp $ring/copy.cpp"
flags="-std=c++20 -O1 -g -Wall -I$ring -I$ring/segment -pthread"

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

echo "AddressSanitizer, odd tensors through every hook and bus:"
if [ -z "${PYTHON:-}" ]; then
  echo "  left out: PYTHON names no interpreter"
  exit 0
fi
"$PYTHON" -m pip install --quiet --no-deps --target "$build/asan" -C build-dir="$build/tree" \
  -C cmake.build-type=Debug \
  "-Ccmake.define.CMAKE_CXX_FLAGS=-fsanitize=address -O1 -g1 -fno-omit-frame-pointer" "$here/../.."
# torch throws exceptions: the sanitizer finds the thrower only if the C++ library is there before it.
preload="$("${CXX:-g++}" -print-file-name=libasan.so) $("${CXX:-g++}" -print-file-name=libstdc++.so)"
ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 LD_PRELOAD="$preload" \
  "$PYTHON" "$here/../conformance/odd_tensors.py" "$tensors" "$build/asan"
