"""The Triton kernels compile for real GPUs, and to the arithmetic that the references ask for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CAPABILITIES = ["80", "90"]
TIMEOUT_S = 3000
"""Against a compiler that hangs, not a machine that is busy."""

pytestmark = [
    pytest.mark.skipif(
        find_spec("triton") is None,
        reason="Triton is not installed: make test-triton",
    ),
    pytest.mark.timeout(TIMEOUT_S + 100),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("triton_compile.py")), *CAPABILITIES],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Warning" not in done.stderr, "a warning in a hook may be an error in the host"
    return json.loads(done.stdout.splitlines()[-1])


def test_every_kernel_becomes_machine_code(compiled):
    for kernels in compiled.values():
        assert {kernel["capability"] for kernel in kernels} == {int(c) for c in CAPABILITIES}
        assert all(kernel["cubin_bytes"] > 0 for kernel in kernels)


def test_no_product_and_sum_are_fused_and_subnormals_are_kept(compiled):
    for kernels in compiled.values():
        for kernel in kernels:
            assert not re.search(r"\bfma\.", kernel["ptx"])
            assert ".ftz" not in kernel["ptx"]


@pytest.mark.parametrize("encoding", ["int8", "fp8.e4m3fn"])
def test_scales_are_divided_with_correct_rounding(compiled, encoding):
    for kernel in compiled[encoding]:
        assert set(re.findall(r"div\.\S*f32", kernel["ptx"])) == {"div.rn.f32"}


@pytest.mark.parametrize("encoding", ["identity", "cast.bfloat16", "int8", "fp8.e4m3fn"])
def test_rows_are_read_and_written_sixteen_bytes_at_a_time(compiled, encoding):
    for kernel in compiled[encoding]:
        assert "ld.global.v4.b32" in kernel["ptx"]
        assert "st.global.v4.b32" in kernel["ptx"]
