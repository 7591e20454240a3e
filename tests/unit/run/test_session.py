"""A session around any module: real workers, restart on demand, orderly end."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch

from asys_bench.capture.points.hookpoints import HookError
from asys_bench.config import config_from_data
from asys_bench.config.assembly import AssemblyError, plan_workers
from asys_bench.contracts.stats import WorkerState
from asys_bench.run.run_dir import RunDir
from asys_bench.run.session import ObservationSession
from asys_bench.system.liveness import is_running
from asys_bench.system.process import start_time
from tests.conformance.support import eventually

SAE = {"k": 4, "batch_rows": 64, "buffer_rows": 512, "checkpoint_interval_s": 0.5}


def config(tmp_path, **changes):
    data = {
        "host": {"kind": "ppo"},
        "run": {"dir": str(tmp_path), "name": "session", "drain_timeout_s": 60},
        "hooks": [{"match": "*"}],
        "sinks": {
            "trainer": {"kind": "sae_trainer", "workers": 2, "options": {"sae": SAE}},
            "archive": {"kind": "archiver"},
        },
        **changes,
    }
    return config_from_data(data)


def model():
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))


def feed(session, module, calls):
    for _ in range(calls):
        module(torch.randn(64, 8))
        session.clock.step()


def accepted(session):
    account = session.bus.account()
    return account.produced - account.dropped_total


def wait_for_readers(session, deadline, most=16):
    """Until those that live are nearly through (a packet in a lease still fills the bus, unseen)."""
    while any(g.ready > most for g in session.bus.account().groups if g.group != "archive"):
        time.sleep(0.002)
        assert time.monotonic() < deadline


@pytest.mark.parametrize("once", [False, True])
def test_a_model_that_is_called_once_per_step_is_not_counted(tmp_path, once):
    module = model()
    changes = {"sinks": {"archive": {"kind": "archiver"}}, "monitors": {}}
    session = ObservationSession(
        config(tmp_path, **changes),
        module,
        RunDir.create(tmp_path, "once"),
        one_call_per_step=once,
    )
    try:
        session.hooker.attach()
        assert len(module._forward_pre_hooks) == (0 if once else 1)
        module(torch.randn(2, 8))
        module(torch.randn(2, 8))
        with session.bus.pull_batch("archive", 8) as lease:
            found = sorted((p.microbatch, p.call_index) for p in lease)
        later = [(0, 1)] if once else [(1, 0)]
        assert found == sorted(3 * [(0, 0)] + 3 * later)
    finally:
        session.abort()
        session.close()


@pytest.mark.parametrize("held", ["producer", pytest.param("supervisor", marks=pytest.mark.rest)])
def test_a_signal_handler_may_end_everything_whatever_lock_its_thread_holds(tmp_path, held):
    """The second Ctrl-C may come in the middle of a hook, or of the end itself."""
    session = ObservationSession(config(tmp_path), model(), RunDir.create(tmp_path, "interrupted"))
    supervisor = session._supervisor
    session.hooker.attach()
    before = signal.signal(signal.SIGUSR1, lambda *_: session.abort())
    try:
        supervisor.start()
        watchdog, started = supervisor._watchdog.pid, start_time(supervisor._watchdog.pid)
        with session.hooker._writer.lock if held == "producer" else supervisor._lock:
            signal.raise_signal(signal.SIGUSR1)
        assert not is_running(watchdog, started)
        eventually(lambda: not supervisor._thread.is_alive(), "the end of the supervisor's thread")
    finally:
        signal.signal(signal.SIGUSR1, before)
        session.close()
    assert not session.hooker.attached


@pytest.mark.rest
def test_two_trainers_share_the_hooks_and_one_is_restarted_on_demand(tmp_path):
    module = model()
    before = set(os.listdir("/proc/self/fd"))
    run_dir = RunDir.create(tmp_path, "session")
    session = ObservationSession(config(tmp_path), module, run_dir)
    try:
        session.start()
        assert session.trainers.hooks == {"trainer-0": ("0", "2"), "trainer-1": ("1",)}
        feed(session, module, 100)
        old = session.page.slot("trainer-0").get(1)
        new = session.trainers.restart_worker("trainer-0", 180)
        assert new != old
        assert session.trainers.state("trainer-0") is WorkerState.READY
        with pytest.raises(KeyError):
            session.trainers.restart_worker("archive-0")
        feed(session, module, 100)
        end = session.stop({"steps": 200})
    finally:
        session.abort()
        session.close()
    assert end.orderly
    assert end.account is not None
    assert end.account.produced == 600
    for group in end.account.groups:
        assert end.account.imbalance(group) == 0
    assert end.account.group("archive").delivered == 600
    assert end.account.group("trainer-1").missed == 400
    assert {path.name for path in (run_dir.path / "sae").iterdir()} == {"0", "1", "2"}
    assert json.loads((run_dir.path / "run.json").read_text())["result"] == {"steps": 200}
    del session
    eventually(lambda: set(os.listdir("/proc/self/fd")) - before == set(), "closed descriptors")


@pytest.mark.rest
def test_an_archiver_that_cannot_work_is_quarantined_and_holds_nobody_up(tmp_path):
    module = model()
    run_dir = RunDir.create(tmp_path, "session")
    (run_dir.path / "archive").write_text("a file where its folder should be")
    hopeless = config(
        tmp_path,
        hooks=[{"match": "0"}],
        bus={"capacity_packets": 64, "on_full": "drop"},
        watchdog={"restart_limit": 1, "backoff_initial_s": 0.01, "backoff_max_s": 0.01},
    )
    session = ObservationSession(hopeless, module, run_dir)
    log = run_dir.path / "logs" / "watchdog.log"
    try:
        session.start()
        deadline = time.monotonic() + 240
        while session.page.slot("archive-0").state is not WorkerState.QUARANTINED:
            feed(session, module, 1)
            time.sleep(0.01)
            assert time.monotonic() < deadline
        while "nobody reads group archive" not in log.read_text():
            time.sleep(0.01)
            assert time.monotonic() < deadline
        wait_for_readers(session, deadline)
        before = accepted(session)
        while accepted(session) < before + 200:
            feed(session, module, 1)
            wait_for_readers(session, deadline)  # a dead group fills the 64 slots and ends here
        end = session.stop()
    finally:
        session.abort()
        session.close()
    assert not end.orderly
    assert end.account is not None
    assert all(end.account.imbalance(group) == 0 for group in end.account.groups)
    assert end.account.group("archive").missed >= 200


def test_a_sink_whose_globs_match_no_hook_is_refused(tmp_path):
    sinks = {"archive": {"kind": "archiver", "hooks": ["nothing*"]}}
    with pytest.raises(AssemblyError, match="match none of the hooks"):
        plan_workers(config(tmp_path, sinks=sinks), ["0", "1"])


def test_a_sink_that_a_run_has_once_is_refused_twice(tmp_path):
    """The budget of false alarms is the run's, so a second sink `alarm` would double it."""
    alarm = {"kind": "alarm", "options": {"watch": [{"metric": "sae_fvu"}]}}
    plan_workers(config(tmp_path, sinks={"one": alarm}), ["0"])
    off = {**alarm, "enabled": False}
    plan_workers(config(tmp_path, sinks={"one": alarm, "two": off}), ["0"])
    with pytest.raises(AssemblyError, match=r"sinks\.two: a run has one sink 'alarm'.*sinks\.one"):
        plan_workers(config(tmp_path, sinks={"one": alarm, "two": alarm}), ["0"])


def test_a_session_that_cannot_be_built_leaves_no_process_or_descriptor(tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    bad = config(tmp_path, hooks=[{"match": "no.such.module"}])
    with pytest.raises(HookError, match="matches no module"):
        ObservationSession(bad, model(), RunDir.create(tmp_path, "bad"))
    assert set(os.listdir("/proc/self/fd")) == before


def test_run_directories_never_collide_and_are_private(tmp_path):
    first, second = (RunDir.create(tmp_path / "runs", "same") for _ in range(2))
    assert first.path != second.path
    assert first.path.stat().st_mode & 0o777 == 0o700


def test_the_configured_device_path_reaches_the_hooks(tmp_path):
    settings = config(tmp_path, device={"staging_mib": 3}, sinks={})
    session = ObservationSession(settings, model(), RunDir.create(tmp_path, "session"))
    try:
        assert session.hooker._offload._config == settings.device
    finally:
        session.abort()
        session.close()
