#!/bin/sh
# Model-check ring.hpp, then prove that the model can see: every mutant must be caught, or be one of
# those that README.md gives a reason for. Usage: run_model.sh [executions per test] (default 100000).
# Needs relacy (Debian: apt-get install relacy-dev) and g++; RELACY_INCLUDE names another place.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
ring=$here/../../backends/cpp_spmc
executions=${1:-100000}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

# -w: relacy's own headers warn under every recent compiler.
"${CXX:-g++}" -std=c++20 -O1 -w -I"$ring" -I"$ring/segment" -I"$here" ${RELACY_INCLUDE:+-I"$RELACY_INCLUDE"} \
  "$here/ring_test.cpp" -o "$build/ring_test"

echo "model:"
"$build/ring_test" "$executions"

justified=" 9 11 12 13 14 18 "
failed=0
for mutant in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 20 21 22 23 24; do
  if report=$("$build/ring_test" "$executions" "$mutant"); then
    case $justified in
      *" $mutant "*) echo "mutant $mutant: not caught, justified (README.md)" ;;
      *) echo "mutant $mutant: SURVIVED"; failed=1 ;;
    esac
  else
    echo "mutant $mutant: caught in$(echo "$report" | head -n 1)"
    case $justified in
      *" $mutant "*) echo "  but README.md says that it cannot be: update it"; failed=1 ;;
    esac
  fi
done
exit $failed
