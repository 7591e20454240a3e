"""What an observation says, and that saying it can neither raise nor wait."""

import io
import os
import sys
from pathlib import Path

import pytest

from asys_bench.config import load_config
from asys_bench.reports.run_summary.summary import (
    BusSummary,
    FileEntry,
    HostSummary,
    RunSummary,
    SaeSummary,
)
from asys_bench.run import stderr_lines
from asys_bench.run.forecast import RunForecast
from asys_bench.run.stderr_lines import (
    StderrLines,
    closing_lines,
    named,
    opening_lines,
    widths_line,
)

CONFIG = load_config(
    "profile_consumer.yaml",
    (
        "sinks.trainer.options.sae.dtype=float32",
        "sinks.trainer.options.sae.d_sae=null",
        "sinks.trainer.options.sae.expansion_factor=8",
        "sinks.trainer.options.sae.buffer_rows=32768",
        "sinks.trainer.options.sae.held_out_rows=4096",
        "sinks.trainer.options.sae.k=16",
        "resources.host_threads=null",
    ),
    {},
).config


def forecast(**widths):
    made = RunForecast(CONFIG, list(widths))
    return widths, [sae for hook, width in widths.items() for sae in made.saw(hook, width)]


def summary(warnings=(), saes=1, report=False):
    def sae(n):
        numbers = dict.fromkeys(("steps", "checkpoints", "nonfinite_rows", "rows_trained"), 0)
        unknown = dict.fromkeys(("loss", "l0", "configured_l0", "dense_ratio"), None)
        return SaeSummary(
            f"h{n}", "trainer-0", rows=1200, fvu=0.125, dead_ratio=0.25, **numbers, **unknown
        )

    files = (FileEntry("metrics.csv", 3 << 20), *([FileEntry("report.html", 1)] if report else ()))
    return RunSummary(
        "id", "runs/id", "finished", 1.0,
        HostSummary(200, "batch", 2.0, 100.0, False, 0, {}),
        BusSummary(400, 1, {"full": 3}, ()),
        (), tuple(sae(n) for n in range(saes)), (), (), files, (), tuple(warnings),
    )  # fmt: skip


def test_five_lines_at_the_end():
    assert closing_lines(summary(), Path("runs/id")) == [
        "200 batches in 2.0 s, 400 packets, every one accounted for, 3 dropped",
        "h0: 1,200 rows, FVU 0.12, 25.0 % dead",
        "no warnings",
        "3.0 MiB in runs/id",
        "report: asys-run report runs/id; in Python: asys_bench.open_run('runs/id')",
    ]


def test_a_report_that_is_written_is_named_and_many_things_are_counted():
    lines = closing_lines(summary(["a", "b", "c", "d"], saes=5, report=True), Path("runs/id"))
    assert "2 more SAEs in summary.json" in lines[1]
    assert lines[2:6] == ["! a", "! b", "! c", "! 1 more warnings in summary.json"]
    assert lines[-1].startswith("report: runs/id/report.html")


def test_hooks_of_one_shape_are_said_together_with_the_memory_of_all():
    assert widths_line(*forecast(a=64, b=64, c=8)) == (
        "a, b: d_in 64, d_sae 512; c: d_in 8, d_sae 64; 28.2 MiB of memory for the SAEs"
    )
    assert widths_line({"a": 7}, []) == "a: d_in 7"


def test_a_hook_that_cannot_be_trained_is_said_among_the_widths(monkeypatch):
    monkeypatch.setattr("asys_bench.run.forecast.memory_limit_bytes", lambda: 1 << 20)
    assert widths_line(*forecast(a=64)) == "a: cannot be trained"


def test_advice_is_given_where_it_is_due(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(stderr_lines, "LITTLE_DISK_BYTES", 1 << 60)
    first, second = opening_lines("Model", tmp_path, ["a"], CONFIG)
    assert first.startswith(f"observing Model at a; files in {tmp_path}")
    assert second.startswith("8 torch threads of the host and 2 of the workers share 4 CPUs")
    assert "the archive may fill it" in second
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    monkeypatch.setattr(stderr_lines, "LITTLE_DISK_BYTES", 0)
    assert len(opening_lines("Model", tmp_path, ["a"], CONFIG)) == 1


def test_many_names_are_shortened():
    assert named(["a", "b", "c", "d"], "hook") == "a, b, c ... (4 hooks)"


def test_lines_come_in_order_and_widths_once_all_are_known(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    lines = StderrLines()
    lines.expect(["a", "b"])
    lines.write("one")
    lines.width_known("a", 4, [])
    lines.flush()
    assert stream.getvalue() == "asys: one\n"
    lines.width_known("b", 4, [])
    lines.close()
    lines.write("too late")
    assert stream.getvalue() == "asys: one\nasys: a, b: d_in 4\n"


def test_widths_of_the_hooks_that_fired_are_said_when_others_do_not_come(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    monkeypatch.setattr(stderr_lines, "WIDTHS_S", 0.0)
    lines = StderrLines()
    lines.expect(["a", "never"])
    lines.width_known("a", 4, [])
    for _ in range(100):
        lines.flush()
        if stream.getvalue():
            break
    lines.close()
    assert stream.getvalue() == "asys: a: d_in 4\n"


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, Broken(), "closed"])
def test_a_stream_that_is_gone_costs_the_lines_and_nothing_else(monkeypatch, stream):
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    lines = StderrLines()
    lines.write("one")
    lines.close()


def test_a_pipe_that_nobody_reads_holds_up_nobody(monkeypatch):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writing, True)
    monkeypatch.setattr(sys, "stderr", full := os.fdopen(writing, "w"))
    monkeypatch.setattr(stderr_lines, "FLUSH_S", 0.05)
    lines = StderrLines()
    lines.write("one")
    lines.close()  # it comes back
    os.close(reading)  # and lets the thread go
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        full.close()


def test_quiet_is_silent(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    lines = StderrLines(quiet=True)
    lines.expect(["a"])
    lines.write("one")
    lines.width_known("a", 1, [])
    lines.close()
    assert stream.getvalue() == ""
