"""A training process that is told when to train: FOLDER CONFIG ROWS PAUSE_S.

Lines on standard input: `run SECONDS` trains for so long and prints a line of JSON with the times of its
steps; `end` closes the observation. Prints its run's folder first (of a node's
ranks the first one). Under torchrun (gloo) rank 0 is told, and
`run STEPS` is a number of steps.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import asys_bench

WIDTH = 256


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> float:
    """Seconds that a step took."""
    began = time.perf_counter()
    loss = model(batch).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.perf_counter() - began


def main() -> None:
    folder, config, rows, pause_s = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    model: torch.nn.Module = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH)
    )
    hooks = "0"
    if world > 1:
        dist.init_process_group("gloo")
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    batches = [torch.randn(rows, WIDTH) for _ in range(8)]
    with asys_bench.observe(model, config, hooks=hooks, run__dir=folder, quiet=True) as observation:
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
            if world > 1:
                times = [step(model, optimizer, batches[n % 8]) for n in range(int(words[1]))]
            else:
                times, until = [], time.monotonic() + float(words[1])
                while time.monotonic() < until:
                    times.append(step(model, optimizer, batches[len(times) % 8]))
                    time.sleep(pause_s)
            if rank == 0:
                said = {"steps": len(times), "median_us": 1e6 * statistics.median(times),
                        "mean_us": 1e6 * statistics.fmean(times)}  # fmt: skip
                print(json.dumps(said), flush=True)
    if rank == 0:
        print(json.dumps({"steps": observation.steps}), flush=True)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
