"""`asys-bench doctor`: every finding with its fix, word for word."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from asys_bench.cli.commands.bench import doctor as bench_doctor
from asys_bench.cli.commands.bench.doctor import Check, print_report
from asys_bench.registry import KINDS, registry


def report(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> tuple[int, str]:
    monkeypatch.setattr(bench_doctor, "diagnose", lambda: list(checks))
    output = io.StringIO()
    code = print_report(Console(file=output, width=200))
    return code, output.getvalue()


def test_a_fix_with_brackets_is_printed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = report(monkeypatch, Check("x", "note", "not there", "pip install 'asys-i[rl]'"))
    assert "pip install 'asys-i[rl]'" in text
    assert code == 0


def test_something_missing_gives_exit_code_one(monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = report(monkeypatch, Check("torch", "missing", "none", "install it"))
    assert code == 1
    assert "missing" in text


def test_this_machine_is_diagnosed_without_changing_it() -> None:
    checks = {check.name: check for check in bench_doctor.diagnose()}
    assert {"python", "torch", "kernel", "cores", "c++ bus"} <= set(checks)
    assert checks["backend mp_queue"].level == "ok"
    assert all(check.fix for check in checks.values() if check.level == "missing")


def test_every_shipped_plugin_loads_and_has_a_summary() -> None:
    for kind in KINDS:
        known = registry(kind)
        assert known.failures() == {}, kind
        for name in known.names():
            assert known.get(name, object).summary  # type: ignore[type-var, attr-defined]


def test_the_disk_check_says_the_budget_and_what_budgets_deleted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = tmp_path / "runs" / "one" / "archive"
    archive.mkdir(parents=True)
    line = (
        '{"shard": "a/archive-0-0-0.arrows", "hook": "a", "rows": 640, "packets": 1, "bytes": 9}\n'
    )
    (archive / "archive-0.deleted.jsonl").write_text(line)
    check = next(check for check in bench_doctor.diagnose() if check.name == "disk")
    assert "at most 1 GiB of archive a run" in check.found
    assert "1 shards (640 rows) were deleted" in check.found
