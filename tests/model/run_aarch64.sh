#!/bin/sh
# The C++ on aarch64, cross-compiled: threads on one mapping and damaged segments run by qemu's user-mode
# emulation; with PYTHON (an interpreter with the build backend) a wheel is built, too.
# It shows that the code compiles there and that its layout, atomics, checksums and copies are right. It
# cannot show a missing barrier: qemu on x86-64 runs ARM's loads and stores in x86-64's order, which hides
# nearly every reordering. What explores the orders that ARM allows is the model check, run_model.sh.
# Usage: run_aarch64.sh [packets] [damaged segments]
# Needs (Debian): apt-get install g++-aarch64-linux-gnu qemu-user
set -eu
here=$(cd "$(dirname "$0")" && pwd)
ring=$here/../../backends/cpp_spmc
packets=${1:-200000}
segments=${2:-2000}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
sources="$ring/segment/segment.cpp $ring/segment/tables.cpp $ring/producer.cpp $ring/consumer.cpp $ring/account.cpp $ring/copy.cpp"

for program in threads_test fuzz_attach copy_test; do
  # shellcheck disable=SC2086
  aarch64-linux-gnu-g++ -std=c++20 -O3 -Wall -DFUZZ_MAIN -I"$ring" -I"$ring/segment" -pthread \
    -Wl,--wrap=open "$here/qemu_stat.cpp" "$here/$program.cpp" $sources -o "$build/$program"
done
run() { qemu-aarch64 -L /usr/aarch64-linux-gnu "$@"; }
echo "aarch64, threads on one mapping:"
run "$build/threads_test" "$packets"
echo "aarch64, damaged segments:"
run "$build/fuzz_attach" "$segments"
echo "aarch64, copies and checksums:"
run "$build/copy_test"

echo "aarch64, the wheel:"
if [ -z "${PYTHON:-}" ]; then
  echo "  left out: PYTHON names no interpreter"
  exit 0
fi
tag=$("$PYTHON" -c 'import sys; print("cpython-3%d-aarch64-linux-gnu" % sys.version_info.minor)')
_PYTHON_HOST_PLATFORM=linux-aarch64 SETUPTOOLS_EXT_SUFFIX=".$tag.so" CXX=aarch64-linux-gnu-g++ ASYS_REQUIRE_CPP=1 \
  "$PYTHON" -m pip wheel --quiet --no-deps --no-build-isolation -C build-dir="$build/tree" \
  -C cmake.define.CMAKE_SYSTEM_NAME=Linux -C cmake.define.CMAKE_SYSTEM_PROCESSOR=aarch64 \
  --wheel-dir "$build" "$here/../.."
"$PYTHON" -m auditwheel show "$build"/*.whl
