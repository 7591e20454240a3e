from __future__ import annotations

from typing import Any

from asys_bench.contracts.stats import RunState, WorkerState
from asys_bench.monitors.alarm_page import AlarmsOnPage
from asys_bench.monitors.changes import Change, ChangeDetector
from asys_bench.monitors.snapshot import take_snapshot

SECOND = 1_000_000_000


def names(changes: list[Change]) -> list[str]:
    return [change.event for change in changes]


def test_a_life_of_a_worker_is_logged_event_by_event(run: Any) -> None:
    detector = ChangeDetector()
    run.set_worker("trainer-0", WorkerState.STARTING)
    assert names(detector.observe(take_snapshot(run.page, None))) == ["run_state"]
    seen = []
    for state, restarts in (
        (WorkerState.READY, 0),
        (WorkerState.FAILED, 0),
        (WorkerState.READY, 1),
        (WorkerState.READY, 1),
        (WorkerState.READY, 2),
        (WorkerState.QUARANTINED, 2),
    ):
        run.set_worker("trainer-0", state, restarts)
        seen.append(names(detector.observe(take_snapshot(run.page, None))))
    assert seen == [
        ["worker_ready"],
        ["worker_failed"],
        ["worker_restarted", "worker_ready"],
        [],
        ["worker_restarted", "worker_ready"],
        ["worker_quarantined"],
    ]


def test_a_restarted_monitor_does_not_repeat_what_the_first_one_logged(run: Any) -> None:
    run.set_worker("trainer-0", WorkerState.READY, restarts=1)
    run.dropped["full"] = 5
    detector = ChangeDetector(resumed=True)
    assert detector.observe(take_snapshot(run.page, run.account)) == []
    run.page.run_state = RunState.DRAINING
    assert names(detector.observe(take_snapshot(run.page, run.account))) == ["run_state"]


def test_a_halved_sampling_rate_is_logged_and_so_is_its_recovery(run: Any) -> None:
    run.host_steps(1)
    detector = ChangeDetector()
    rate = run.page.slot("host").gauge("hook_sampling_rate", hook="policy.net.0")
    detector.observe(take_snapshot(run.page, None))
    seen = {}
    for value in (0.5, 0.51, 0.6, 0.3, 0.4, 0.9, 1.0, 1.0):
        rate.set(value)
        found = detector.observe(take_snapshot(run.page, None))
        seen[value] = names(found) or seen.get(value, [])
    assert seen[0.5] == ["sampling_rate_lowered"]
    assert seen[0.51] == seen[0.6] == seen[0.4] == []
    assert seen[0.3] == ["sampling_rate_lowered"]
    assert seen[0.9] == ["sampling_rate_recovered"]
    assert seen[1.0] == ["sampling_rate_recovered"]
    del rate


def test_drops_begin_once_and_end_after_three_quiet_seconds(run: Any) -> None:
    detector = ChangeDetector()
    seen = []
    for second, total in enumerate((0, 4, 9, 9, 9, 9, 9, 10)):
        run.dropped["full"] = total
        snapshot = take_snapshot(run.page, run.account, second * SECOND)
        seen.append([n for n in names(detector.observe(snapshot)) if "drops" in n])
    assert seen == [[], ["drops_began"], [], [], [], ["drops_ended"], [], ["drops_began"]]


def test_alarms_and_the_recording_that_follows_are_events(run: Any) -> None:
    run.set_worker("trainer-0", WorkerState.READY)
    run.host_steps(7)
    detector = ChangeDetector()
    detector.observe(take_snapshot(run.page, None))
    raising = AlarmsOnPage(run.page.slot("trainer-0"))
    raising.watch("h fvu")
    is_raised = run.page.slot("host").gauge("sampling_is_raised")
    is_raised.set(0.0)
    assert detector.observe(take_snapshot(run.page, None)) == []
    raising.raise_one("h fvu", 7, 0.5, 0.1)
    is_raised.set(1.0)
    found = detector.observe(take_snapshot(run.page, None))
    assert sorted(names(found)) == ["alarm", "sampling_raised"]
    (alarm,) = [one for one in found if one.event == "alarm"]
    assert alarm.fields == {
        "worker": "trainer-0", "watcher": "h fvu", "step": 7.0, "value": 0.5, "expected": 0.1,
        "new": 1, "total": 1,
    }  # fmt: skip
    is_raised.set(0.0)
    assert names(detector.observe(take_snapshot(run.page, None))) == ["sampling_restored"]
    raising.is_over("h fvu")
    (over,) = detector.observe(take_snapshot(run.page, None))
    assert (over.event, over.fields) == (
        "alarm_over",
        {"worker": "trainer-0", "watcher": "h fvu"},
    )


def test_failing_hooks_and_bad_rows_and_write_errors_are_logged_with_how_many(run: Any) -> None:
    detector = ChangeDetector()
    detector.observe(take_snapshot(run.page, None))
    run.page.slot("host").counter("hook_failed", hook="h").add(2)
    run.page.slot("trainer-0").counter("sae_nonfinite_rows", hook="h").add(3)
    run.page.slot("archive-0").counter("archive_write_errors").add(4)
    found = detector.observe(take_snapshot(run.page, None))
    assert [(c.event, c.fields["new"]) for c in found] == [
        ("hook_failed", 2),
        ("nonfinite_rows", 3),
        ("archive_write_errors", 4),
    ]
    assert detector.observe(take_snapshot(run.page, None)) == []


def test_a_receiver_that_comes_and_goes_and_what_was_not_sent_on_are_logged(run: Any) -> None:
    detector = ChangeDetector()
    slot = run.page.slot("trainer-0")
    slot.counter("remote_taken")
    dropped = slot.counter("remote_dropped", reason="unreachable")
    seen = []
    for second, (connected, total) in enumerate(
        [(0, 0), (1, 0), (1, 0), (0, 5), (0, 9), (1, 9), (1, 9), (1, 9)]
    ):
        slot.gauge("remote_connected").set(connected)
        dropped.set(total)
        found = detector.observe(take_snapshot(run.page, None, second * SECOND))
        seen.append([n for n in names(found) if n.startswith("remote")])
    assert seen == [
        [],
        ["remote_connected"],
        [],
        ["remote_away", "remote_drops_began"],
        [],
        ["remote_connected"],
        [],
        ["remote_drops_ended"],
    ]


def test_refusals_at_both_ends_are_logged_with_their_reason(run: Any) -> None:
    detector = ChangeDetector()
    run.page.slot("host").counter("receiver_accepted")
    run.page.slot("trainer-0").counter("remote_taken")
    detector.observe(take_snapshot(run.page, None))
    run.page.slot("host").counter("receiver_refused", reason="key").add(2)
    run.page.slot("trainer-0").counter("remote_refused", reason="job").add(1)
    found = detector.observe(take_snapshot(run.page, None))
    assert [(c.event, c.fields["reason"], c.fields["new"]) for c in found] == [
        ("remote_refused", "job", 1),
        ("receiver_refused", "key", 2),
    ]
