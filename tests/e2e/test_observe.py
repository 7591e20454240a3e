"""`observe()` around a training loop: real workers, and a host that does not notice."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
import yaml

import asys_bench
from asys_bench.contracts.stats import SlotField, WorkerState
from asys_bench.placement.manager import ResourceError

SAE = {"k": 4, "batch_rows": 64, "buffer_rows": 512, "checkpoint_interval_s": 0.5}
TRAINER = {"trainer": {"options": {"sae": SAE, "final_train_s": 0.5}}}
PATIENCE_S = 240.0


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16), torch.nn.Linear(16, 1)
    )


def train(model, steps, mark=None):
    """The loss of every step; the user's own code."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        x = torch.randn(64, 8, generator=generator)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if mark is not None:
            mark()
    return losses


def observe(model, tmp_path, drain_s=60.0, **options):
    run = {"dir": str(tmp_path), "drain_timeout_s": drain_s}
    return asys_bench.observe(model, run=run, sinks=TRAINER, **options)


def descriptors():
    gc.collect()  # what a hook's closures hold goes with the next collection
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("backend", ["cpp_spmc", pytest.param("mp_queue", marks=pytest.mark.rest)])
def test_training_is_bit_identical_archived_and_accounted_and_the_model_left_as_it_was(
    tmp_path, backend
):
    unobserved_model = make_model()
    unobserved = train(unobserved_model, 200)
    model = make_model()
    before = descriptors()
    with observe(model, tmp_path, hooks=["0", "2"], bus={"backend": backend}) as observation:
        assert list(observation.hooks) == ["0", "2"]
        losses = train(model, 200)
        assert "199 steps" in repr(observation)
    assert losses == unobserved
    for ours, theirs in zip(model.parameters(), unobserved_model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert observation.steps == 200
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    account = observation.account
    assert account.produced == 400
    assert account.dropped_total == 0
    for group in account.groups:
        assert (group.delivered, group.ready, account.imbalance(group)) == (400, 0, 0)
    run = observation.run
    assert not run.live
    rows = run.archive.numpy("2", ("values", "host_step", "weights_version"))
    assert rows["values"].shape == (200 * 64, 16)
    assert rows["host_step"].tolist() == [step for step in range(200) for _ in range(64)]
    assert rows["weights_version"].tolist() == rows["host_step"].tolist()
    assert set(run.saes()) == {"0", "2"}
    assert run.summary["bus"]["produced"] == 400
    assert run.summary["host"]["steps"] == 200
    assert yaml.safe_load((run.path / "config.yaml").read_text())["host"]["kind"] == "observed"
    del run, account
    assert descriptors() - before == set()


@pytest.mark.rest
def test_marked_steps_replace_counted_ones_and_figures_are_shown(tmp_path):
    model = make_model()
    observation = observe(model, tmp_path, hooks="0", step_unit="batch")
    try:
        train(model, 10, mark=observation.step)
        observation.step(5)
        observation.report("loss", 0.25)
        observation.report("nonsense", "text")
        observation.weights_updated()
        metrics = observation.page.slot("host").metrics()
        assert metrics["host_loss"].value == 0.25
        assert metrics["weights_version"].value == 11
    finally:
        observation.close()
    observation.close()
    assert observation.closed
    assert observation.steps == 15
    observation.step()
    observation.report("loss", 1.0)
    assert observation.steps == 15
    assert observation.run.summary["host"]["step_unit"] == "batch"


@pytest.mark.rest
def test_a_resumed_loop_is_archived_from_its_own_step_on_and_without_what_it_pauses_for(tmp_path):
    model = make_model()
    with asys_bench.observe(
        model,
        hooks="0",
        start_step=40,
        sae=False,
        run={"dir": str(tmp_path), "drain_timeout_s": 60},
    ) as observation:
        for _ in range(3):
            model(torch.randn(4, 8))
            with observation.pausing():
                model(torch.randn(9, 8))
            observation.step()
        assert observation.steps == 43
    run = observation.run
    assert run.archive.numpy("0", ("host_step",))["host_step"].tolist() == [
        step for step in (40, 41, 42) for _ in range(4)
    ]
    assert run.metrics("hook_skipped", hook="0")["value"][-1] == 3
    assert run.summary["host"]["steps"] == 3
    assert json.loads((run.path / "run.json").read_text())["first_step"] == 40
    assert run.saes() == {}


@pytest.mark.rest
def test_an_error_in_the_training_comes_out_and_the_run_is_written(tmp_path):
    model = make_model()
    observation = observe(model, tmp_path, hooks="0")

    def fail():
        with observation:
            train(model, 5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert observation.closed
    assert len(observation.run.archive.numpy("0", ("seq",))["seq"]) == 5 * 64


def test_what_cannot_start_raises_or_if_not_required_leaves_the_training_alone(tmp_path, caplog):
    (tmp_path / "file").write_text("where the runs should go")
    model = make_model()
    options = {"run": {"dir": str(tmp_path / "file")}, "hooks": "0"}
    with pytest.raises(OSError, match="file"):
        asys_bench.observe(model, **options)
    with asys_bench.observe(model, required=False, **options) as observation:
        train(model, 3, mark=observation.step)
        observation.report("loss", 1.0)
        observation.weights_updated()
    assert "not observed" in caplog.text
    assert isinstance(observation.error, OSError)
    assert observation.steps == 0
    assert observation.account is None
    assert "no observation of Sequential" in repr(observation)
    with pytest.raises(RuntimeError, match="never started"):
        _ = observation.run


def test_a_wrong_glob_always_raises_and_lists_the_modules(tmp_path):
    before = descriptors()
    with pytest.raises(ValueError, match=r"'layers\.\*' matches no module"):
        observe(make_model(), tmp_path, hooks="layers.*", required=False)
    assert descriptors() - before == set()


def affinities(page):
    """Process of the run -> the CPUs of all its threads, as the kernel says."""
    found = {}
    for name, slot in page.slots():
        pid = slot.get(SlotField.PID)
        tasks = os.listdir(f"/proc/{pid}/task")
        found[name] = {cpu for task in tasks for cpu in os.sched_getaffinity(int(task))}
    return found


@pytest.mark.rest
def test_every_process_is_where_the_plan_says_and_the_host_is_let_go(tmp_path):
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        pytest.skip("there is one CPU")
    first, second = usable[:2]
    threads = torch.get_num_threads()
    pinning = {"host": str(first), "workers": {"*": str(second)}, "services": str(second)}
    resources = {"pinning": pinning, "host_threads": 1}
    model = make_model()
    with observe(model, tmp_path, hooks="0", resources=resources) as observation:
        train(model, 5)
        found = affinities(observation.page)
        assert torch.get_num_threads() == 1
    assert found.pop("host") == {first}
    assert {"trainer-0", "archive-0", "watchdog"} <= set(found)
    assert set(map(frozenset, found.values())) == {frozenset({second})}
    assert os.sched_getaffinity(0) == set(usable)
    assert torch.get_num_threads() == threads
    plan = json.loads((observation.run_dir / "plan.json").read_text())
    assert plan["placements"]["trainer-0"]["cpus"] == str(second)


def test_a_pinning_map_that_cannot_be_had_raises_and_leaves_the_process_alone(tmp_path):
    before = os.sched_getaffinity(0)
    with pytest.raises(ResourceError, match="CPU 4000 of host is offline"):
        observe(make_model(), tmp_path, hooks="0", resources={"pinning": {"host": "4000"}})
    assert os.sched_getaffinity(0) == before


@pytest.mark.rest
def test_wrapped_models_have_the_names_of_their_inside(tmp_path):
    model = make_model()
    wrapped = torch.nn.DataParallel(model)
    with observe(wrapped, tmp_path, hooks="0") as observation:
        train(wrapped, 5)
    assert observation.steps == 5
    assert observation.account.produced == 5


SCRIPT = """\
    import asys_bench
    import torch

    print("the script runs", flush=True)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh())
    settings = {{"run": {{"dir": {runs!r}, "drain_timeout_s": 60}}, "bus": {{"backend": "cpp_spmc"}}}}
    observation = asys_bench.observe(model, settings, hooks="0")
    print("started", observation.run_dir, flush=True)
    for _ in range(50):
        model(torch.randn(32, 8))
    {end}
"""


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def run_script(tmp_path, end):
    path = tmp_path / "no_main_guard.py"
    path.write_text(textwrap.dedent(SCRIPT).format(runs=str(tmp_path / "runs"), end=end))
    done = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=tmp_path,
    )
    return done, asys_bench.open_run(tmp_path / "runs")


@pytest.mark.rest
def test_a_script_without_main_guard_runs_once_and_closes_at_its_exit(tmp_path):
    done, run = run_script(tmp_path, "print('end')")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["the", "started", "end"]
    assert run.summary["host"]["steps"] == 50
    assert len(run.archive.numpy("0", ("seq",))["seq"]) == 50 * 32


@pytest.mark.rest
def test_a_script_that_fails_still_writes_what_it_saw(tmp_path):
    done, run = run_script(tmp_path, "raise SystemExit(3)")
    assert done.returncode == 3
    assert run.summary["bus"]["produced"] == 50


@pytest.mark.rest
def test_a_killed_script_leaves_no_worker_and_a_readable_archive(tmp_path):
    """On a ring: its packets outlive the host, and the workers drain it."""
    done, run = run_script(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -9
    assert not run.live
    assert run.summary is None
    deadline = time.monotonic() + 60
    while _worker_pids(run) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _worker_pids(run) == []
    assert len(run.archive.numpy("0", ("seq",))["seq"]) == 50 * 32


def _worker_pids(run):
    """Processes that still write to the run's log files."""
    logs = str(run.path / "logs")
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/fd/2").startswith(logs) and is_running(pid):
                found.append(int(pid))
        except OSError:
            continue
    return found


@pytest.mark.rest
def test_a_forked_child_has_no_part_in_it(tmp_path):
    model = make_model()
    with observe(model, tmp_path, hooks="0") as observation:
        train(model, 3)
        pid = os.fork()
        if pid == 0:
            observation.close()  # as atexit would
            os._exit(0 if not observation.closed else 1)
        _, status = os.waitpid(pid, 0)
        assert status == 0
        assert observation.page.slot("archive-0").state is WorkerState.READY
        train(model, 3)
    assert observation.account.produced == 6


@pytest.mark.rest
def test_a_stuck_observer_does_not_hold_up_the_training(tmp_path):
    """Every worker stopped: the training goes on, packets are refused and counted."""
    model = make_model()
    bus = {"capacity_packets": 32, "on_full": "drop"}
    nobody_is_replaced = {"heartbeat_timeout_s": 180, "startup_timeout_s": 180}
    observation = observe(
        model, tmp_path, hooks="0", bus=bus, drain_s=1.0, watchdog=nobody_is_replaced
    )
    try:
        pids = [
            observation.page.slot(name).get(1) for name in ("watchdog", "trainer-0", "archive-0")
        ]
        for pid in pids:
            os.kill(pid, 19)
        losses = train(model, 100)
        assert losses == train(make_model(), 100)
        assert observation.account.dropped_total > 0
    finally:
        observation.close()
    assert not any(is_running(pid) for pid in pids)
    assert json.loads((observation.run_dir / "run.json").read_text())["result"]["steps"] == 100
