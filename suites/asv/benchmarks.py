"""The cases of suites/smoke.yaml as asv benchmarks; `ASYS_ASV_SUITE` names another suite."""

import os
from pathlib import Path

from asys_bench.harness.asv_classes import install

install(
    globals(),
    os.environ.get("ASYS_ASV_SUITE", Path(__file__).resolve().parent.parent / "smoke.yaml"),
)
