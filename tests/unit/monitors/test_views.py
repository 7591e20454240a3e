from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from asys_bench.contracts.bus import BusAccount, BusError
from asys_bench.contracts.stats import StatsPage, WorkerState
from asys_bench.monitors.figures import figures_of
from asys_bench.monitors.live_view import LiveModel, live_view
from asys_bench.monitors.readable import plain_line
from asys_bench.monitors.snapshot import take_snapshot
from asys_bench.monitors.tensorboard_files import raw_histogram, scalars_of


def frame(run: Any, width: int, **changes: Any) -> str:
    before = figures_of(take_snapshot(run.page, run.account))
    run.host_steps(100)
    now = figures_of(take_snapshot(run.page, run.account))
    model = LiveModel("run", "env step", 65.0, now, before, 1.0, **changes)
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(live_view(model, width))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_live_view_shows_everything_within_its_width(run: Any, width: int) -> None:
    run.host_steps(100)
    run.train()
    run.set_worker("trainer-0", WorkerState.READY, restarts=1)
    run.dropped["full"] = 9
    text = frame(run, width, capacity_packets=1000)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= min(width, 120)
    for wanted in ("200 env steps", "100/s", "1:05", "policy.net.0", "0.150", "9 full", "0.2 %"):
        assert wanted in text
    assert "…" not in text
    assert "reward_mean 150" in " ".join(text.split())


def test_the_live_view_of_a_run_that_has_not_begun_is_not_an_error(run: Any) -> None:
    figures = figures_of(take_snapshot(run.page, None))
    out = io.StringIO()
    Console(file=out, width=80).print(
        live_view(LiveModel("run", "step", 0.0, figures, figures, 0.0), 80)
    )
    assert "0 steps" in out.getvalue()


def test_the_plain_line_is_one_line_without_escape_codes(run: Any) -> None:
    run.host_steps(100)
    before = figures_of(take_snapshot(run.page, run.account))
    run.host_steps(100)
    run.train()
    run.set_worker("trainer-0", WorkerState.READY, restarts=2)
    line = plain_line(figures_of(take_snapshot(run.page, run.account)), before, 5.0, 65, "env step")
    assert line == (
        "[1:05] 200 env steps (20/s) | reward_mean 150 | packets 200 dropped 0"
        " | hook p99 20.0 us | FVU 0.150 | workers 1/2 (2 restarts)"
    )


def test_a_bus_that_is_gone_leaves_the_account_unknown(run: Any) -> None:
    def gone() -> BusAccount:
        raise BusError("the owner is dead")

    assert take_snapshot(run.page, gone).account is None


def test_figures_of_metrics_not_yet_published_are_unknown_not_zero(run: Any) -> None:
    run.page.slot("trainer-0").counter("sae_rows", hook="h").add(5)
    (sae,) = figures_of(take_snapshot(run.page, None)).saes
    assert sae.rows == 5
    assert math.isnan(sae.fvu)


def test_archives_of_several_workers_add_up(run: Any) -> None:
    for worker in ("archive-0", "trainer-0"):
        run.page.slot(worker).counter("archive_rows", hook="h").add(5)
    (archive,) = figures_of(take_snapshot(run.page, None)).archives
    assert archive.rows == 10


def test_scalars_leave_out_what_is_unknown(run: Any) -> None:
    run.host_steps(100)
    run.train()
    tags = scalars_of(figures_of(take_snapshot(run.page, run.account)), None)
    assert tags["sae_fvu/policy.net.0"] == 0.15
    assert tags["host/reward_mean"] == 150.5
    assert "host/steps_per_s" not in tags
    assert "sae_dense_ratio/policy.net.0" not in tags
    assert all(map(math.isfinite, tags.values()))


def test_bars_of_the_latency_histogram_hold_every_count(run: Any) -> None:
    run.host_steps(100, latency_ns=20_000)
    run.host_steps(50, latency_ns=90_000)
    (hook,) = figures_of(take_snapshot(run.page, None)).hooks
    raw = raw_histogram(hook.latency_ns, 1e-3)
    assert sum(raw["bucket_counts"]) == raw["num"] == 150
    assert len(raw["bucket_counts"]) == len(raw["bucket_limits"]) < 20
    assert raw["bucket_limits"] == sorted(raw["bucket_limits"])


def test_other_ranks_are_hosts_and_their_hooks_add_up() -> None:
    page = StatsPage.create(["host", "host-1", "host-2", "host-mine", "trainer-0"])
    try:
        for name, steps in (("host", 10), ("host-1", 7)):
            slot = page.slot(name)
            slot.state = WorkerState.READY
            slot.counter("host_steps").add(steps)
            slot.counter("hook_captured", hook="a").add(steps)
            slot.gauge("hook_sampling_rate", hook="a").set(steps / 10)
            slot.histogram("hook_latency_ns", hook="a").record(1000 * steps)
        page.slot("host-1").counter("hook_captured", hook="b").add(1)
        figures = figures_of(take_snapshot(page, None))
        assert [worker.name for worker in figures.workers] == ["host-mine", "trainer-0"]
        (rank,) = figures.ranks
        assert (rank.name, rank.state, rank.steps) == ("host-1", WorkerState.READY, 7)
        hook, other = figures.hooks
        assert (hook.captured, hook.sampling_rate, hook.latency_ns.count) == (17, 0.7, 2)
        assert (other.hook, other.captured) == ("b", 1)
        out = io.StringIO()
        Console(file=out, width=100).print(
            live_view(LiveModel("run", "step", 0.0, figures, figures, 0.0), 100)
        )
        assert "host-1 ready 7 steps" in out.getvalue()
        assert "other ranks 1/1" in plain_line(figures, figures, 1.0, 1.0, "step")
        assert "workers 0/2" in plain_line(figures, figures, 1.0, 1.0, "step")
    finally:
        page.close()


def forward(slot: Any, acked: int, connected: bool = True) -> None:
    """A forwarder's metrics: of 100 more than `acked` taken, 3 were dropped and 97 are in flight."""
    slot.counter("remote_taken").set(acked + 100)
    slot.counter("remote_acked").set(acked)
    slot.counter("remote_dropped", reason="slow").set(2)
    slot.counter("remote_dropped", reason="unreachable").set(1)
    slot.gauge("remote_in_flight").set(97)
    slot.gauge("remote_credit_bytes").set(2_000_000)
    slot.gauge("remote_connected").set(float(connected))


def receive(slot: Any, accepted: int) -> None:
    slot.counter("receiver_accepted").set(accepted)
    slot.counter("receiver_accepted_bytes").set(64 * accepted)
    slot.counter("receiver_refused", reason="key").set(4)
    slot.gauge("receiver_connections").set(2)
    slot.gauge("receiver_lag_s").set(0.25)


def test_what_leaves_and_what_comes_from_other_machines_is_shown(run: Any) -> None:
    assert figures_of(take_snapshot(run.page, None)).remotes == ()
    assert figures_of(take_snapshot(run.page, None)).receiver is None
    forward(run.page.slot("trainer-0"), 1000)
    receive(run.page.slot("host"), 500)
    before = figures_of(take_snapshot(run.page, None))
    forward(run.page.slot("trainer-0"), 3000)
    receive(run.page.slot("host"), 900)
    now = figures_of(take_snapshot(run.page, None))
    (one,) = now.remotes
    assert one.taken == one.acked + sum(one.dropped.values()) + one.in_flight == 3100
    out = io.StringIO()
    model = LiveModel("run", "step", 0.0, now, before, 2.0)
    Console(file=out, width=120, color_system=None).print(live_view(model, 120))
    text = " ".join(out.getvalue().split())
    assert (
        "trainer-0 connected 3,000 acked 1,000/s in flight 97 credit 2.00 MB dropped 2 slow 1 unreachable"
        in text
    )
    assert "receiver 2 connected 900 accepted 200/s 12.8 kB/s lag 0.2 s refused 4 key" in text
    forward(run.page.slot("trainer-0"), 3000, connected=False)
    line = plain_line(figures_of(take_snapshot(run.page, None)), now, 1.0, 1.0, "step")
    assert "trainer-0 away acked 3,000 dropped 2 slow  1 unreachable" in line
    assert "2 connected, accepted 900" in line


def test_a_forwarder_that_has_only_begun_is_not_an_error(run: Any) -> None:
    run.page.slot("trainer-0").counter("remote_taken")
    figures = figures_of(take_snapshot(run.page, None))
    (one,) = figures.remotes
    assert (one.taken, one.acked, one.in_flight, one.connected) == (0, 0, 0, False)
    out = io.StringIO()
    Console(file=out, width=80).print(
        live_view(LiveModel("run", "step", 0.0, figures, figures, 0.0), 80)
    )
    assert "trainer-0 away" in out.getvalue()
