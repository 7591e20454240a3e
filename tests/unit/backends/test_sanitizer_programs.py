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
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr[-3000:]


@pytest.mark.rest
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize(
    "emulator", [(), ("qemu-x86_64", "-cpu", "qemu64")], ids=["here", "no_simd"]
)
def test_copies_and_checksums_are_those_of_plain_loops(
    tmp_path: Path, emulator: tuple[str, ...]
) -> None:
    """Also on a processor without SSE4.2 and AVX, whose versions of the loops are chosen at run time."""
    if emulator and shutil.which(emulator[0]) is None:
        pytest.skip("needs qemu-user")
    program = str(tmp_path / "copy_test")
    compiled = subprocess.run(
        ["g++", "-std=c++20", "-O3", "-Wall", "-Werror", f"-I{RING}", f"-I{RING}/segment",
         str(ROOT / "tests/model/copy_test.cpp"), str(RING / "copy.cpp"), "-o", program],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stderr[-3000:]
    done = subprocess.run([*emulator, program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_frames_stay_in_the_window_and_stores_follow_their_cost(tmp_path: Path) -> None:
    program = str(tmp_path / "memory_use_test")
    compiled = subprocess.run(
        ["g++", "-std=c++20", "-O1", "-Wall", "-Werror", f"-I{RING}",
         str(ROOT / "tests/model/memory_use_test.cpp"), "-o", program],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stderr[-3000:]
    done = subprocess.run([program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout


@pytest.mark.rest
@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")),
    reason="needs g++-aarch64-linux-gnu and qemu-user",
)
def test_the_ring_runs_on_aarch64() -> None:
    done = subprocess.run(
        [str(ROOT / "tests/model/run_aarch64.sh"), "20000", "500"],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all accounted for" in done.stdout
    assert "500 damaged segments: no crash" in done.stdout
    assert "  0 wrong of " in done.stdout
