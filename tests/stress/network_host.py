"""A training process that is told when to train: FOLDER CONFIG PAUSE_S.

Lines on standard input: `run SECONDS ROWS` trains for so long on batches of so many rows, after a quarter of
a second that is not timed, and prints a line of JSON: how many steps it timed, microseconds of a step by the
clock (median and mean), and microseconds of this thread's CPU time for each, pauses included. `end` closes
the observation and prints the steps of all. Prints its run's folder first (of a node's ranks the first one).
Under torchrun (gloo) rank 0 is told, and `run STEPS ROWS` is a number of steps.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import asys_bench

WIDTH, WARM_S = 256, 0.25
HOOKS = [{"match": ["0"], "sampling": {"min_rate": 1.0}}]
"""Every step is captured: one that is left out costs less, and would be compared with one that is not."""


@functools.cache
def batches(rows: int) -> list[torch.Tensor]:
    return [torch.randn(rows, WIDTH) for _ in range(8)]


class Training:
    """The loop. pause_s: from each step to the next."""

    def __init__(self, model: torch.nn.Module, pause_s: float) -> None:
        self._model, self._pause_s = model, pause_s
        self._optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        self.steps = 0

    def step(self, rows: int) -> float:
        """Seconds that it took."""
        batch = batches(rows)[self.steps % 8]
        self.steps += 1
        began = time.perf_counter()
        loss = self._model(batch).square().mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return time.perf_counter() - began

    def run(self, seconds: float, rows: int) -> tuple[list[float], float]:
        """Seconds of each step, and CPU seconds of this thread."""
        times, began_s, until = [], time.thread_time(), time.monotonic() + seconds
        while time.monotonic() < until:
            times.append(self.step(rows))
            time.sleep(self._pause_s)
        return times, time.thread_time() - began_s


def said(times: list[float], cpu_s: float) -> str:
    return json.dumps(
        {
            "steps": len(times),
            "median_us": 1e6 * statistics.median(times),
            "mean_us": 1e6 * statistics.fmean(times),
            "cpu_us": 1e6 * cpu_s / len(times),
        }
    )


def main() -> None:
    folder, config, pause_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    model: torch.nn.Module = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH)
    )
    if world > 1:
        dist.init_process_group("gloo")
        model = DistributedDataParallel(model)
    training = Training(model, pause_s)
    with asys_bench.observe(model, config, hooks=HOOKS, run__dir=folder, quiet=True) as observation:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(observation.run_dir, flush=True)
        lines = iter(sys.stdin.readline, "")
        while True:
            words = next(lines, "end").split() if rank == 0 else []
            told = [words]
            if world > 1:
                dist.broadcast_object_list(told, src=0)
            words = told[0]
            if words[0] == "end":
                break
            rows = int(words[2])
            if world > 1:
                times, cpu_s = [training.step(rows) for _ in range(int(words[1]))], 0.0
            else:
                training.run(WARM_S, rows)
                times, cpu_s = training.run(float(words[1]), rows)
            if rank == 0:
                print(said(times, cpu_s), flush=True)
    if rank == 0:
        print(json.dumps({"steps": observation.steps}), flush=True)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
