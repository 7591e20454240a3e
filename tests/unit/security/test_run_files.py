"""The readers of a run's folder open its files in one way: `asys_bench.system.files.below`."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from asys_bench.reports.run_report.coordinates import ObservationNames, read_observation_names
from asys_bench.reports.run_report.inputs import read_streams

ROOT = Path(__file__).parents[3]
READERS = ("asys_bench/rundir", "asys_bench/offline", "reports/run_report",
           "reports/run_summary")  # fmt: skip
AROUND_IT = {"read_text", "read_bytes", "open", "glob", "rglob", "iterdir", "listdir", "scandir", "walk",
             "load_file", "safe_open"}  # fmt: skip
ALLOWED = {
    ("asys_bench/rundir/verify/archive.py", "LOCKS.read_text"): "the kernel's list of locks",
    ("asys_bench/rundir/live_run.py", "os.open"): "shared memory of the host, through /proc/PID/fd",
    (
        "asys_bench/rundir/subscribe.py",
        "os.open",
    ): "a reader's own lock, O_NOFOLLOW in a real folder",
    **{
        (f"asys_bench/rundir/verify/{name}.py", "walk"): "below's own"
        for name in ("archive", "verify_run")
    },
    ("asys_bench/rundir/open_run.py", "FeatureIndex.open"): "a reader in the same folder",
    ("reports/run_summary/document.py", "walk"): "below's own",
    ("asys_bench/rundir/evaluation_documents.py", "walk"): "below's own",
}
"""(file, call) -> why it is no way around."""


def calls(path: Path) -> list[str]:
    found = [
        node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]
    names = [ast.unparse(func) for func in found if isinstance(func, ast.Name | ast.Attribute)]
    return [name for name in names if name.rpartition(".")[2] in AROUND_IT]


def test_no_reader_of_a_run_opens_or_lists_around_the_one_way():
    around = {
        (path.relative_to(ROOT).as_posix(), name)
        for folder in READERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in calls(path)
    }
    assert around - ALLOWED.keys() == set()
    assert ALLOWED.keys() - around == set(), "an exception that nobody needs any more"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("name", "read", "nothing"), [
    ("observation.json", read_observation_names, ObservationNames()), ("run.json", read_streams, ()),
])  # fmt: skip
def test_the_report_waits_for_no_fifo(tmp_path, name, read, nothing):
    os.mkfifo(tmp_path / name)
    assert read(tmp_path) == nothing
