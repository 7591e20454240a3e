"""What a user's torchrun script looks like; run by test_observe_ranks.py, on the CPU with gloo."""

import os
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import asys_bench

runs, backend, steps, die_at = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rank = int(os.environ["RANK"])
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
if die_at < 0:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
settings = {"run": {"dir": runs, "drain_timeout_s": 60}, "bus": {"backend": backend}}
with asys_bench.observe(model, settings, hooks="0") as observation:
    print(rank, "observing", observation.run_dir, flush=True)
    (observation.run_dir / f"joined-{rank}").touch()
    while len(list(observation.run_dir.glob("joined-*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    for step in range(steps):
        if step == die_at and rank == 1:
            os.kill(os.getpid(), 9)
        loss = model(torch.full((16, 8), float(rank + 1))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if die_at >= 0:
            time.sleep(0.005)
    print(rank, "loss", loss.item(), flush=True)
if dist.is_initialized():
    dist.destroy_process_group()
