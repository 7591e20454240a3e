"""The verdicts at the end of a bench, at several widths, and the bar while it runs."""

from __future__ import annotations

import importlib.util
import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from asys_bench.harness.results.result import Result
from asys_bench.harness.runner import Progress
from asys_bench.reports.bench_terminal.progress import BenchProgress
from asys_bench.reports.bench_terminal.verdicts import render_text


@pytest.fixture(scope="module")
def result() -> Result:
    path = Path(__file__).parents[1] / "harness" / "example_result.py"
    spec = importlib.util.spec_from_file_location("example_result", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Result = module.example_result()
    return made


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_the_worst_comes_first_and_nothing_is_wider_than_the_screen(
    result: Result, width: int
) -> None:
    text = render_text(result, width)
    report = text.partition("run it again")[0]
    assert max(map(len, report.splitlines())) <= width
    body = report[report.index("NOT VALID") + 9 :]
    verdicts = ("INVALID", "FAIL", "INCONCLUSIVE", "PASS")
    starts = [body.index(f"\n{verdict} ") for verdict in verdicts]
    assert starts == sorted(starts)
    words = " ".join(report.split())
    for wanted in (
        "INVALID example The measurement cannot be used. Of 5 targets, 1 is invalid, 1 fails,",
        "integrity: bus.throughput[torn_bus], round 5: 1 torn frame",
        "39 rounds, 1 replaced on noise evidence",
        "56 % outside",
        "1 of 2 as wanted",
        "close other programs",
        "bus.throughput[numba_ring]: crashed: round 3 was ended by signal 11 (SIGSEGV)",
    ):
        assert wanted in words
    assert "\x1b" not in text


def test_a_line_per_target_where_there_is_room(result: Result) -> None:
    lines = [" ".join(line.split()) for line in render_text(result, 120).splitlines()]
    assert (
        "FAIL hook.latency[mp_queue] hook_latency_ms.p99 <= 0.05 0.0780 ms 0.0710 .. 0.0940 "
        "56 % outside -"
    ) in lines
    assert (
        "INCONCLUSIVE hook.latency[numba_ring] hook_latency_ms.p99 <= 0.05 0.0470 ms "
        "0.0410 .. 0.0610 6 % inside 36"
    ) in lines


def test_the_bar_shows_case_round_and_time_left_and_starts_no_thread() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    before = threading.active_count()
    with BenchProgress(console) as shown:
        progress: Progress = shown
        assert threading.active_count() == before
        progress.plan(8, 2)
        progress.round("bus.long", 0, 8, None)
        progress.round("hook[cpp_spmc]", 1, 9, 38.0)
        progress.message("[red]hook crashed")
    text = out.getvalue()
    for wanted in ("bus.long", "round 1/8", "hook[cpp_spmc]", "round 2/9", "about 38 s left"):
        assert wanted in text
    assert "[red]hook crashed" in text


def test_a_log_gets_a_few_plain_lines() -> None:
    out = io.StringIO()
    with BenchProgress(Console(file=out, width=80)) as progress:
        progress.plan(100, 1)
        for done in range(100):
            progress.round("hook[a]", done, 100, 100.0 - done)
    lines = out.getvalue().splitlines()
    assert len(lines) == 19
    assert lines[0] == "round 6/100, about 1 min 35 s left: hook[a]"
    assert lines[-1] == "round 96/100, about 5.0 s left: hook[a]"
