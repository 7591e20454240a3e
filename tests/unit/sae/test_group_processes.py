"""The ranks of a group as processes over gloo: they train as one process, and end as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from asys_bench.sae import SAEConfig, SAETrainer
from asys_bench.sae.group import distributed, processes
from asys_bench.sae.group.distributed import DistributedRanks
from asys_bench.sae.group.processes import GroupProcesses, backend_for, devices_for
from asys_bench.sae.ranks import GroupError, Split
from asys_bench.sae.training.device import DeviceUnavailableError
from asys_bench.system.liveness import is_running
from asys_bench.system.process import start_time

from .step_by_step import rows_for

PATIENCE_S = 120.0
Start = Callable[..., GroupProcesses]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a group of the given size, and waits for its ranks."""
    groups: list[GroupProcesses] = []

    def started(size: int = 2, split: Split = "latents", wait: bool = True) -> GroupProcesses:
        places: list[dict[str, object]] = [{} for _ in range(size - 1)]
        groups.append(GroupProcesses(split, places, device=torch.device("cpu")))
        if wait:
            groups[-1].wait_until_ready(PATIENCE_S)
        return groups[-1]

    yield started
    for group in groups:
        pids = group.pids
        group.close()
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def _trainer(group: GroupProcesses | None = None, **fields: object) -> SAETrainer:
    base = {"d_sae": 96, "k": 6, "batch_rows": 128, "buffer_rows": 2048, "held_out_rows": 512,
            "dtype": "float32", "min_buffer_fill_ratio": 0.0}  # fmt: skip
    return SAETrainer(SAEConfig.model_validate(base | fields), hook_name="h", group=group)


def _feed(trainer: SAETrainer, packets: int = 10) -> None:
    rows = rows_for("topk")
    for index in range(packets):
        trainer.ingest(rows[index * 100 : (index + 1) * 100], (0, 0, index))


@pytest.mark.rest
@pytest.mark.parametrize("split", ["latents", "rows"])
def test_two_gloo_ranks_train_as_one_process(start: Start, split: Split) -> None:
    alone, together = _trainer(), _trainer(start(split=split))
    for trainer in (alone, together):
        _feed(trainer, 40)
        assert trainer.train(max_steps=60) == 60
    one, other = alone.evaluate(), together.evaluate()
    assert one is not None
    assert other is not None
    assert other.fvu == pytest.approx(one.fvu, abs=1e-5)
    assert alone.sae is not None
    assert together.sae is not None
    theirs = together.sae.state_dict()
    for name, tensor in alone.sae.state_dict().items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=0)


@pytest.mark.rest
def test_a_rank_that_is_killed_ends_the_group_at_once_and_by_name(start: Start) -> None:
    group = start(3)
    trainer = _trainer(group)
    _feed(trainer)
    assert trainer.train(max_steps=3) == 3
    os.kill(group.pids[1], signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(GroupError, match="rank 2 of 3 has ended: signal SIGKILL"):
        trainer.train(max_steps=1000)
    assert time.monotonic() - began < 5 * processes.SILENT_S


@pytest.mark.rest
def test_a_rank_that_is_stopped_ends_the_group_and_holds_nobody(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = start()
    trainer = _trainer(group)
    _feed(trainer)
    assert trainer.train(max_steps=3) == 3
    monkeypatch.setattr(processes, "SILENT_S", 1.5)
    os.kill(group.pids[0], signal.SIGSTOP)
    with pytest.raises(GroupError, match=r"rank 1 of 2 .*silent for 1.5 s \(it is stopped\)"):
        trainer.train(max_steps=1000)


@pytest.mark.rest
def test_a_rank_that_is_late_is_waited_for_with_heartbeats(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group = start()
    beats: list[float] = []
    monkeypatch.setattr(group, "_heartbeat", lambda: beats.append(time.monotonic()))
    trainer = _trainer(group)
    _feed(trainer)
    assert trainer.train(max_steps=1) == 1
    os.kill(group.pids[0], signal.SIGSTOP)
    late = subprocess.Popen(["sh", "-c", f"sleep 4; kill -CONT {group.pids[0]}"])
    before = len(beats)
    assert trainer.train(max_steps=3) == 3
    late.wait()
    assert len(beats) - before >= 4
    os.kill(group.pids[0], signal.SIGSTOP)  # and while its part of a checkpoint is waited for
    late = subprocess.Popen(["sh", "-c", f"sleep 4; kill -CONT {group.pids[0]}"])
    before = len(beats)
    assert trainer.save(tmp_path, sync=False) is not None
    late.wait()
    assert len(beats) - before >= 4


@pytest.mark.rest
def test_ranks_that_start_hold_nobody(start: Start) -> None:
    """A trainer takes its rows, and trains when all are there."""
    group = start(wait=False)
    trainer = _trainer(group)
    _feed(trainer)
    assert trainer.train(max_steps=2) == 0
    assert trainer.metrics.rows_ingested == 1000
    group.wait_until_ready(PATIENCE_S)
    assert trainer.train(max_steps=2) == 2


@pytest.mark.rest
def test_what_ended_a_rank_is_said_by_rank_0(start: Start) -> None:
    group = start()
    trainer = _trainer(group)
    _feed(trainer)
    assert trainer.train(max_steps=1) == 1
    group.tell({"do": "nonsense", "key": 1})
    with pytest.raises(
        GroupError, match="rank 1 of 2 has failed: ValueError: rank 0 asks for 'nonsense'"
    ):
        group.hear()


_PARENT = """
    import sys, time, torch
    from asys_bench.sae.group.processes import GroupProcesses

    if __name__ == "__main__":
        group = GroupProcesses("latents", [{}, {}], device=torch.device("cpu"))
        print(*group.pids, flush=True)
        if sys.argv[1] == "ready":
            group.wait_until_ready(100)
        print("there", flush=True)
        time.sleep(600)
"""


@pytest.mark.rest
@pytest.mark.parametrize("when", ["ready", "starting"])
def test_no_rank_outlives_rank_0_even_stopped(tmp_path: Path, when: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(_PARENT))
    parent = subprocess.Popen([sys.executable, script, when], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert parent.stdout.readline() == "there\n"
    started = {pid: start_time(pid) for pid in pids}
    if when == "ready":
        os.kill(pids[0], signal.SIGSTOP)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + PATIENCE_S
    while any(is_running(pid, since) for pid, since in started.items()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_connection_that_is_gone_before_an_operation_begins_is_the_groups_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not a RuntimeError: a trainer takes one of its first step for a damaged checkpoint."""

    def gone(*arguments: object, **more: object) -> None:
        raise RuntimeError("Connection closed by peer")

    ranks = DistributedRanks(1, 2, "latents", backend="gloo", device=torch.device("cpu"))
    for name in ("isend", "irecv", "all_reduce", "all_gather", "broadcast"):
        monkeypatch.setattr(distributed.dist, name, gone)
    one = torch.zeros(3)
    for operation in (
        lambda: ranks.send(one, 0),
        lambda: ranks.receive(one, 0),
        lambda: ranks.sum_(one),
        lambda: ranks.gather(one),
        lambda: ranks.broadcast_(one),
    ):
        with pytest.raises(GroupError, match="rank 1 lost its group: Connection closed by peer"):
            operation()


@pytest.mark.parametrize(
    ("devices", "backend"),
    [
        (["cpu", "cpu"], "gloo"),
        (["cuda:0", "cuda:1"], "nccl"),
        (["cuda:0", "cuda:0"], "gloo"),
        (["cuda:0", "cpu"], "gloo"),
    ],
)
def test_nccl_is_for_ranks_that_have_a_gpu_each(devices: list[str], backend: str) -> None:
    assert backend_for(devices) == backend


def test_without_gpus_auto_is_the_cpu_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_for("auto", 2) == ["cuda:0", "cuda:1"]
    assert devices_for("auto", 3) == ["cpu"] * 3
    assert devices_for("cuda", 1) == ["cuda"]
    with pytest.raises(DeviceUnavailableError, match="asks for 3 GPUs, and this process sees 2"):
        devices_for("cuda", 3)
