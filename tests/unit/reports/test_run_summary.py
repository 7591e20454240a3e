from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asys_bench.contracts.bus import BusAccount, GroupAccount
from asys_bench.contracts.host import HostResult
from asys_bench.contracts.reporter import ReporterPlugin, ReportError, Subject
from asys_bench.contracts.run_files import HOST_LOCK
from asys_bench.contracts.stats import SlotField, StatsPage, WorkerState
from asys_bench.reports.run_summary.document import (
    from_dict,
    list_files,
    to_dict,
    to_json,
    write_json,
)
from asys_bench.reports.run_summary.plugin import plugin
from asys_bench.reports.run_summary.summarise import next_steps, summarise
from asys_bench.reports.run_summary.summary import DeletedSummary, FileEntry, RunSummary
from asys_bench.reports.run_summary.terminal import MEANINGS, by_folder, render_text

GUARANTEES = Path(__file__).parents[3] / "docs" / "guarantees.md"

HOOK = "policy.net.0"
RUN_DIR = Path("runs/a-run")
FILES = (
    FileEntry("archive/h/archive-0-0-1.arrows", 1000),
    FileEntry("archive/h/archive-0-0-2.arrows", 500),
    FileEntry("metrics.csv", 20),
    FileEntry("sae/h/step_000000010/cfg.json", 9),
    FileEntry("sae/h/step_000000010/sae_weights.safetensors", 9),
    FileEntry("sae/h/step_000000020/cfg.json", 9),
    FileEntry("sae/h/step_000000020/sae_weights.safetensors", 9),
    FileEntry("sae/h/step_000000030/cfg.json", 9),
    FileEntry("tensorboard/events", 7),
)


def account(**changes: int) -> BusAccount:
    numbers = {"delivered": 90, "lost_in_flight": 2, "dead_lettered": 0, "ready": 0} | changes
    train = GroupAccount("train", redelivered=0, missed=1, **numbers)
    return BusAccount(100, {"full": 5, "timeout": 2}, 6400, (train,))


@pytest.fixture
def page() -> Iterator[StatsPage]:
    made = StatsPage.create(["host", "trainer-0", "archive-0"])
    host, trainer = made.slot("host"), made.slot("trainer-0")
    host.counter("hook_captured", hook=HOOK).add(93)
    host.counter("hook_dropped", hook=HOOK).add(7)
    for ns in (10_000, 20_000, 30_000):
        host.histogram("hook_latency_ns", hook=HOOK).record(ns)
    host.gauge("host_reward_mean").set(100.0)
    trainer.state = WorkerState.DONE
    trainer.set(SlotField.RESTARTS, 1)
    trainer.counter("sae_rows", hook=HOOK).add(5000)
    trainer.counter("sae_steps", hook=HOOK).add(20)
    trainer.gauge("sae_fvu", hook=HOOK).set(0.125)
    trainer.gauge("sae_l0", hook=HOOK).set(8.0)
    yield made
    made.close()


def make(
    page: StatsPage,
    bus: BusAccount | None = None,
    ran: bool = True,
    attempts: Sequence[Mapping[str, Any]] = (),
) -> RunSummary:
    result = HostResult(1000, 4.0, figures={"reward_mean": 187.5, "odd": float("nan")})
    return summarise(
        page,
        bus,
        result if ran else None,
        FILES,
        run_id="a-run",
        run_dir=RUN_DIR,
        step_unit="env step",
        elapsed_s=9.0,
        configured_l0={HOOK: 8},
        attempts=attempts,
    )


def attempt(
    number: int, end: str | None, steps: tuple[int, int | None], produced: int | None
) -> Any:
    """As run.json lists it; `produced` None: nobody was left to write the account."""
    groups = [{"group": "train", "imbalance": 0}]
    told = {"produced": produced, "groups": groups} if produced is not None else None
    return {"attempt": number, "end": end, "first_step": steps[0], "last_step": steps[1],
            "account": told}  # fmt: skip


def test_a_run_that_went_on_says_what_each_attempt_was_and_what_all_were(page: StatsPage) -> None:
    first, last = attempt(0, "preempted", (0, 400), 1200), attempt(1, "finished", (400, 1000), 100)
    text = " ".join(render_text(make(page, account(), attempts=(first, last))).split())
    assert "a-run attempt 1 finished" in text
    assert "attempt ended steps packets account" in text
    assert "0 preempted 0 to 400 1,200 OK" in text
    assert "1 finished 400 to 1,000 100 OK all 1,300" in text
    lost = attempt(0, "killed", (0, None), None)
    text = " ".join(render_text(make(page, account(), attempts=(lost, last))).split())
    assert "0 killed 0 to - - -" in text
    assert "all at least 100" in text
    off = last | {"account": {"produced": 100, "groups": [{"imbalance": 3}]}}
    assert "1 finished 400 to 1,000 100 off" in " ".join(
        render_text(make(page, account(), attempts=(first, off))).split()
    )
    odd = first | {"account": {"produced": 1, "groups": [7]}}  # a run.json that somebody edited
    assert "0 preempted 0 to 400 1 off" in " ".join(
        render_text(make(page, account(), attempts=(odd, last))).split()
    )


def test_a_run_of_one_attempt_says_nothing_of_attempts(page: StatsPage) -> None:
    summary = make(page, account(), attempts=(attempt(0, "finished", (0, 1000), 100),))
    assert summary.attempts == ()
    assert "attempt" not in render_text(summary)


def test_a_good_run_is_balanced_and_has_no_warnings(page: StatsPage) -> None:
    summary = make(page, account())
    assert summary.balanced
    assert summary.warnings == ()
    assert summary.outcome == "finished"
    assert summary.host.steps_per_s == 250
    assert summary.host.figures == {"reward_mean": 187.5, "odd": None}
    assert summary.saes[0].loss is None
    assert summary.hooks[0].latency_max_us == 30


def test_both_fvus_are_shown_where_there_are_outliers_and_neither_reads_0(page: StatsPage) -> None:
    assert "of all" not in render_text(make(page, account()))
    trainer = page.slot("trainer-0")
    trainer.counter("sae_outlier_rows", hook=HOOK).add(681)
    trainer.gauge("sae_outlier_norm", hook=HOOK).set(1527.5)
    trainer.gauge("sae_fvu_all", hook=HOOK).set(0.00037)
    made = make(page, account())
    (sae,) = made.saes
    assert (sae.fvu, sae.fvu_all, sae.outlier_rows, sae.outlier_norm) == (
        0.125, 0.00037, 681, 1527.5,
    )  # fmt: skip
    for width in (80, 100):
        text = render_text(made, width)
        assert re.search(r"FVU +of all", text)
        assert re.search(r"0\.125 +4e-04", text)
        assert "681 outliers" in text
        assert max(len(line) for line in text.split("what to type next")[0].splitlines()) <= width


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_text_shows_the_run_and_that_the_account_holds(page: StatsPage, width: int) -> None:
    text = render_text(make(page, account()), width)
    tables, _, commands = text.partition("what to type next")
    assert max(map(len, tables.splitlines())) <= width
    words = " ".join(tables.split())
    for wanted in (
        "1,000 env steps in 0:04 250/s",
        "reward_mean 188",
        "7 dropped (full 5, timeout 2)",
        "train 90 7 2 0 0 1 OK",
        "policy.net.0 93 0 7",
        "0.125 8.0 (8)",
        "trainer-0 done, 1 restart",
        "archive/ 1.50 kB 2 files",
    ):
        assert wanted in words
    assert "tensorboard --logdir runs/a-run/tensorboard" in commands
    assert "\x1b" not in text


def test_an_account_that_is_off_says_by_how_many(page: StatsPage) -> None:
    summary = make(page, account(delivered=87))
    assert not summary.balanced
    assert "off by +3" in render_text(summary)
    assert summary.warnings == ("group 'train': +3 packets are not accounted for",)


def test_the_words_of_the_account_are_explained_where_their_numbers_are_not_zero(
    page: StatsPage,
) -> None:
    text = render_text(make(page, account()), 100)
    explained = [name for name in MEANINGS if f"\n{name}: {MEANINGS[name]}\n" in text]
    assert explained == ["dropped", "lost", "missed"]
    row = next(line for line in text.splitlines() if line.startswith("train "))
    assert row.split()[1:7] == ["90", "7", "2", "0", "0", "1"]
    document = GUARANTEES.read_text()
    assert all(f"\n| {name} | " in document for name in MEANINGS)


def test_what_a_person_should_look_into_is_a_warning(page: StatsPage) -> None:
    page.slot("archive-0").state = WorkerState.QUARANTINED
    page.slot("archive-0").counter("archive_write_errors").add(2)
    page.slot("host").counter("hook_failed", hook=HOOK).add(1)
    summary = make(page, account(delivered=80, ready=6, dead_lettered=4))
    assert summary.balanced
    assert len(summary.warnings) == 5
    assert "! worker 'archive-0' ended quarantined; it said nothing" in render_text(summary)


def test_packets_that_no_receiver_got_are_a_warning_though_the_bus_delivered_them(
    page: StatsPage,
) -> None:
    forwarder = page.slot("archive-0")
    forwarder.counter("remote_taken").add(109)
    forwarder.counter("remote_acked").add(58)
    forwarder.counter("remote_dropped", reason="elsewhere").add(9)
    assert make(page, account()).warnings == ()
    forwarder.counter("remote_dropped", reason="slow").add(2)
    forwarder.counter("remote_dropped", reason="unreachable").add(40)
    expected = "42 of 109 packets did not reach a receiver (2 slow  40 unreachable)"
    assert make(page, account()).warnings == (f"archive-0: {expected}",)


def test_what_workers_and_hooks_have_said_is_among_the_warnings(page: StatsPage) -> None:
    page.slot("archive-0").state = WorkerState.QUARANTINED
    summary = summarise(
        page,
        account(),
        HostResult(1, 1.0),
        (),
        run_id="a-run",
        run_dir=RUN_DIR,
        notices=("hook a: nothing was captured",),
        worker_messages={"archive-0": ["OSError: no space"]},
    )
    assert summary.warnings == (
        "archive-0: OSError: no space",
        "hook a: nothing was captured",
        "worker 'archive-0' ended quarantined",
    )


def test_a_host_that_did_not_return_and_a_bus_that_is_gone_are_unknown(page: StatsPage) -> None:
    summary = make(page, None, ran=False)
    assert (summary.outcome, summary.bus, summary.balanced) == ("interrupted", None, False)
    assert summary.host.steps_per_s is None
    assert "not accounted for" in render_text(summary)


def test_the_json_is_strict_and_reads_back_as_the_same_summary(
    page: StatsPage, tmp_path: Path
) -> None:
    summary = make(page, account())
    path = write_json(summary, tmp_path)
    assert path.read_text() == to_json(summary)
    data = json.loads(path.read_text())
    assert data["bus"]["dropped_total"] == 7
    assert data["balanced"] is True
    assert from_dict(data) == summary
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    ("said", "means"),
    [
        (None, ()),
        (
            {"shards": 2, "rows": 30, "packets": 4, "data_bytes": 5},
            (DeletedSummary("budget", 2, 30, 4, 5),),
        ),
    ],
)
def test_a_summary_of_before_deletions_had_reasons_is_read(
    page: StatsPage, said: Any, means: tuple[DeletedSummary, ...]
) -> None:
    summary = make(page, account())
    old = {**to_dict(summary), "archive_deleted": said}
    del old["attempts"]
    assert from_dict(old) == replace(summary, archive_deleted=means)


def test_data_of_another_schema_is_refused(page: StatsPage) -> None:
    with pytest.raises(ReportError, match=r"asys\.run_summary/1"):
        from_dict({"schema": "asys.bench/1"})
    broken = to_dict(make(page, account())) | {"host": None}
    with pytest.raises(ReportError, match="not a run summary"):
        from_dict(broken)


def test_the_reporter_renders_a_stored_summary(page: StatsPage) -> None:
    summary = make(page, account())
    assert isinstance(plugin, ReporterPlugin)
    assert (plugin.name, plugin.subject) == ("run_summary", Subject.RUN)
    assert plugin.render(json.loads(to_json(summary))) == render_text(summary)


def test_commands_can_be_pasted_and_name_the_newest_whole_checkpoint() -> None:
    for folder in ("runs/a-run", "runs/it's $HOME"):
        steps = next_steps(Path(folder), FILES)
        assert len(steps) == 5
        program, command, run = shlex.split(steps[-1].command)
        assert (Path(program).name, command, run) == ("asys-run", "eye", folder)
        sae = next(step for step in steps if "SAELens" in step.what)
        program, flag, code = shlex.split(sae.command)
        assert (program, flag) == ("python", "-c")
        assert f"{folder}/sae/h/step_000000020" in code
        compile(code, "<command>", "exec")
    assert next_steps(RUN_DIR, ()) == ()


def test_files_are_listed_with_sizes_and_links_are_not_counted_twice(tmp_path: Path) -> None:
    folder = tmp_path / "sae" / "step_1"
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text("{}")
    (tmp_path / "sae" / "latest").symlink_to("step_1")
    (tmp_path / "a.csv").write_text("x\n")
    (tmp_path / HOST_LOCK).write_text("{}")
    assert list_files(tmp_path) == (FileEntry("a.csv", 2), FileEntry("sae/step_1/cfg.json", 2))
    assert by_folder(list_files(tmp_path)) == [("a.csv", 1, 2), ("sae/", 1, 2)]


def test_an_sae_that_was_fed_and_never_made_a_step_is_a_warning(page: StatsPage) -> None:
    page.slot("trainer-0").counter("sae_steps", hook=HOOK).set(0)
    expected = f"SAE {HOOK!r} never finished a step of its training"
    assert expected in make(page, account()).warnings
