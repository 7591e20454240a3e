"""The files survive a killed writer: whole lines only, appended to, never overwritten."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from asys_bench.contracts.stats import WorkerState
from asys_bench.monitors.changes import Change
from asys_bench.monitors.event_log import EventLog
from asys_bench.monitors.metrics_csv import COLUMNS, MetricsCsv, Row, rows_of, value_text
from asys_bench.monitors.snapshot import take_snapshot
from asys_bench.system.files.append_file import AppendFile


@pytest.mark.parametrize("tail", ["", "half a li", "x" * 200_000])
def test_half_a_line_of_a_killed_writer_is_cut_and_whole_ones_stay(
    tmp_path: Path, tail: str
) -> None:
    path = tmp_path / "f"
    path.write_text("one\ntwo\n" + tail)
    file = AppendFile(path)
    file.write("three\n")
    file.close()
    file.close()
    assert file.resumed
    assert path.read_text() == "one\ntwo\nthree\n"


def test_a_file_with_nothing_but_half_a_line_counts_as_new(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("time_s,wal")
    file = AppendFile(path)
    file.close()
    assert not file.resumed
    assert path.read_text() == ""


def test_a_reopened_csv_has_one_header(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    for time_s in (1.0, 2.0):
        file = MetricsCsv(path)
        file.write(time_s, 1e9 + time_s, [Row("host", "host_steps", 5)])
        file.close()
    lines = path.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert lines[1] == "1.000,2001-09-09T01:46:41.000+00:00,host,host_steps,,,,,run,,5,0"
    assert len(lines) == 3


def test_the_csv_holds_the_published_names(tmp_path: Path, run: Any) -> None:
    run.host_steps(100, latency_ns=1_000_000)
    before = take_snapshot(run.page, run.account)
    run.host_steps(100, latency_ns=20_000)
    run.train()
    run.dropped["full"] = 7
    file = MetricsCsv(tmp_path / "metrics.csv")
    file.write(1.0, 1e9, rows_of(take_snapshot(run.page, run.account), before))
    file.close()
    with (tmp_path / "metrics.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))

    def value(metric: str, **where: str) -> str:
        (found,) = [
            r["value"]
            for r in rows
            if r["metric"] == metric and all(r[k] == v for k, v in where.items())
        ]
        return str(found)

    assert value("data_bus_push_count") == "207"
    assert value("data_bus_drop_count", reason="full") == "7"
    assert value("data_bus_ready_count", group="train") == "2"
    assert value("sae_loss", hook="policy.net.0", slot="trainer-0") == "0.5"
    assert value("worker_state", slot="trainer-0") == str(int(WorkerState.EMPTY))
    assert value("worker_heartbeat_age_s", slot="trainer-0") == ""
    interval = float(value("hook_latency_ms", window="interval", stat="p99"))
    assert 0.02 <= interval <= 0.0213
    assert float(value("hook_latency_ms", window="run", stat="p99")) == 1.0
    assert value("hook_latency_ms", window="run", stat="count") == "200"


def test_values_are_written_so_that_a_spreadsheet_reads_numbers() -> None:
    assert value_text(WorkerState.READY) == "2"
    assert value_text(0.1) == "0.1"
    assert value_text(float("nan")) == ""
    assert value_text(float("inf")) == ""


def test_a_label_that_has_no_column_is_kept(tmp_path: Path) -> None:
    file = MetricsCsv(tmp_path / "m.csv")
    file.write(0.0, 1e9, [Row("s", "m", 1.5, (("hook", "h"), ("rank", "3")))])
    file.close()
    assert (tmp_path / "m.csv").read_text().splitlines()[1].endswith(",s,m,h,,,rank=3,run,,1.5,0")


def test_the_log_remembers_when_the_run_started(tmp_path: Path) -> None:
    path = tmp_path / "monitor.log"
    log = EventLog(path)
    assert log.started_ns() is None
    log.opened(0.0, 1e9, 12345, "run")
    log.close()
    again = EventLog(path)
    assert again.resumed
    assert again.started_ns() == 12345
    again.opened(3.0, 1e9 + 3, 12345, "run")
    again.close()
    events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert events == ["run_opened", "monitor_restarted"]


def test_the_log_leaves_out_what_is_below_its_level_and_writes_strict_json(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "monitor.log", logging.WARNING)
    changes = [
        Change("quiet", logging.INFO),
        Change("loud", logging.ERROR, {"rate": float("nan"), "n": 3}),
    ]
    log.write(1.0, 1e9, changes)
    log.close()
    (line,) = (tmp_path / "monitor.log").read_text().splitlines()
    record = json.loads(line)
    assert (record["event"], record["level"], record["rate"]) == ("loud", "error", None)
