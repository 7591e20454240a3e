"""torchrun: both ranks of a node feed one run, and a dead rank takes nobody along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import asys_bench
from asys_bench.run.rendezvous import RankListener, RendezvousError, find_run
from asys_bench.system.launcher import LocalRanks
from tests.e2e.ports import free_port

SCRIPT = Path(__file__).with_name("ranks_script.py")
PATIENCE_S = 240.0
pytestmark = pytest.mark.timeout(600)
FURTHER_BUS = pytest.mark.soak("half a minute")


def check_rank(run, rank, steps):
    """What one rank pushed, by its own counters, by its archive rows, and to the last packet."""
    slot = "host" if rank == 0 else f"host-{rank}"
    captured = run.metrics("hook_captured", slot=slot)["value"][-1]
    assert captured == steps
    rows = run.archive.numpy("0", ("source", "shard", "seq", "host_step"))
    mine = rows["source"] == rank
    assert set(rows["shard"][mine].tolist()) == {rank}
    assert np.unique(rows["seq"][mine]).tolist() == list(range(steps))
    assert sorted(set(rows["host_step"][mine].tolist())) == list(range(steps))


@pytest.mark.rest
@pytest.mark.parametrize("backend", ["cpp_spmc", pytest.param("mp_queue", marks=FURTHER_BUS)])
def test_both_ranks_of_a_ddp_training_arrive_tagged_and_accounted(tmp_path, backend):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-addr", "127.0.0.1", "--master-port", str(free_port())),
        *(str(SCRIPT), str(tmp_path), backend, "40", "-1"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment
    )
    assert done.returncode == 0, done.stderr
    run = asys_bench.open_run(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1, "one run for the node"
    assert done.stdout.count(f"observing {run.path}") == 2
    document = json.loads((run.path / "run.json").read_text())
    assert document["ranks"] == 2
    bus = run.summary["bus"]
    assert bus["produced"] == 80
    for group in bus["groups"]:
        assert (group["delivered"], group["ready"], group["imbalance"]) == (80, 0, 0)
    for rank in range(2):
        check_rank(run, rank, 40)


@pytest.mark.rest
@pytest.mark.parametrize(
    "backend",
    ["cpp_spmc", *(pytest.param(bus, marks=FURTHER_BUS) for bus in ("mp_queue", "numba_ring"))],
)
def test_a_killed_rank_does_not_wedge_the_workers(tmp_path, backend):
    """Both processes as torchrun would start them, but nobody ends rank 0 when rank 1 dies."""
    job = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "LOCAL_WORLD_SIZE": "2",
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    steps, die_at = 120, 60
    arguments = [str(tmp_path), backend, str(steps), str(die_at)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            env={**os.environ, **job, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        output, errors = processes[0].communicate(timeout=PATIENCE_S)
        assert processes[0].returncode == 0, errors
        processes[1].communicate(timeout=PATIENCE_S)
        assert processes[1].returncode == -9
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert "0 loss" in output
    run = asys_bench.open_run(tmp_path)
    bus = run.summary["bus"]
    assert bus["produced"] == steps + die_at
    for group in bus["groups"]:
        assert (group["delivered"], group["ready"], group["imbalance"]) == (steps + die_at, 0, 0)
    states = {worker["name"]: worker["state"] for worker in run.summary["workers"]}
    assert states["trainer-0"] == states["archive-0"] == "done"
    check_rank(run, 0, steps)
    check_rank(run, 1, die_at)


UNCHANGED = """\
import time, torch
model = torch.nn.Sequential(torch.nn.Linear(8, 32))
model.train()
while True:
    model(torch.ones(4, 8)).sum().backward()
    print("step", flush=True)
    time.sleep(0.02)
"""


@pytest.mark.rest
def test_sigterm_to_the_ranks_of_an_unchanged_script_leaves_a_summary(tmp_path):
    """As torchrun ends its processes."""
    (tmp_path / "train.py").write_text(UNCHANGED)
    (tmp_path / "c.yaml").write_text(
        'extends: base.yaml\nhooks: [{match: "0"}]\nhost: {kind: script}\n'
    )
    command = [sys.executable, "-u", "-m", "asys_bench", "run", "-c", "c.yaml", "--", "train.py"]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
           "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}  # fmt: skip
    ranks = [
        subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **job, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for process in ranks:
            assert process.stdout is not None
            assert any(line == "step\n" for line in iter(process.stdout.readline, ""))
        for process in ranks:
            process.terminate()
        for process in ranks:
            _, errors = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 143, errors
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    bus = asys_bench.open_run(tmp_path / "runs").summary["bus"]
    assert bus["produced"] >= 2
    assert [group["imbalance"] for group in bus["groups"]] == [0] * len(bus["groups"])


# Finding each other.


def ranks_of(job, size=2):
    return [LocalRanks(10 + i, i, size, job) for i in range(size)]


def test_a_rank_finds_the_run_of_its_own_job_and_number(tmp_path):
    (owner, other), (_, stranger) = ranks_of("a"), ranks_of("b")
    with_two = RankListener(owner, 0), RankListener(owner, 1)
    try:
        for number, listener in enumerate(with_two):
            listener.announce(tmp_path / str(number))
        assert find_run(other, 1, 60) == tmp_path / "1"
        assert find_run(other, 0, 60) == tmp_path / "0"
        with pytest.raises(RendezvousError, match="call observe\\(\\) on every rank"):
            find_run(stranger, 0, 0.2)
    finally:
        for listener in with_two:
            listener.close()
            listener.close()


def test_two_jobs_with_one_rendezvous_address_are_told_so():
    listener = RankListener(ranks_of("same")[0], 0)
    try:
        with pytest.raises(RendezvousError, match="--rdzv-id"):
            RankListener(ranks_of("same")[0], 0)
    finally:
        listener.close()


def test_a_rank_is_told_why_there_is_no_run():
    owner, other = ranks_of("no-run")
    listener = RankListener(owner, 0)
    try:
        listener.refuse("no memory")
        with pytest.raises(RendezvousError, match="could not start the run: no memory"):
            find_run(other, 0, 60)
    finally:
        listener.close()


def test_ranks_say_what_they_hook_before_the_run_is_planned(tmp_path):
    owner, *others = ranks_of("told", size=3)
    listener = RankListener(owner, 0)
    found = []
    told = [{"streams": [rank.local_rank]} for rank in others]
    threads = [
        threading.Thread(target=lambda r=rank, t=one: found.append(find_run(r, 0, 60, t)))
        for rank, one in zip(others, told, strict=True)
    ]
    try:
        for thread in threads:
            thread.start()
        heard = listener.collect(60)
        assert sorted(one["streams"] for one in heard) == [[1], [2]]
        assert not found, "the answer comes with the run"
        listener.announce(tmp_path)
        for thread in threads:
            thread.join(60)
        assert found == [tmp_path] * 2
    finally:
        listener.close()


def test_a_rank_that_says_nothing_is_named_with_the_fix():
    listener = RankListener(ranks_of("silent")[0], 0)
    try:
        with pytest.raises(RendezvousError, match=r"1 of the other ranks .* call observe"):
            listener.collect(0.2)
    finally:
        listener.close()
