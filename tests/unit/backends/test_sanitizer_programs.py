"""The programs of `make sanitize`, which runs by hand only, keep up with the C++ that they include."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RING = ROOT / "backends/cpp_spmc"


@pytest.mark.rest
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("program", ["threads_test.cpp", "fuzz_attach.cpp"])
def test_a_program_of_the_sanitizers_compiles(program: str) -> None:
    checked = subprocess.run(
        ["g++", "-std=c++20", "-Wall", "-Werror", f"-I{RING}", f"-I{RING}/segment", "-pthread", "-DFUZZ_MAIN",
         "-fsyntax-only", str(ROOT / "tests/model" / program)],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr[-3000:]
