"""Trainers that are killed with SIGKILL at random moments, over a stream with NaN in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asys_bench.sae.config import PENALISED

KILLS, PACKETS = (10, 90) if os.environ.get("ASYS_SOAK") else (6, 60)
# One interpreter that forks the trainers: each is a process of its own, and torch is imported once.
STORM = """
import json, math, os, random, signal, sys, time
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from asys_bench.sae import SAEConfig, SAETrainer

folder, config, kills, packets = Path(sys.argv[1]), json.loads(sys.argv[2]), *map(int, sys.argv[3:])
torch.set_num_threads(1)
config = SAEConfig.model_validate(config)

def packet(seq):
    generator = torch.Generator().manual_seed(seq)
    codes = (torch.rand(96, 24, generator=generator) < 0.1) * torch.rand(96, 24, generator=generator)
    rows_ND = codes @ torch.randn(24, 12, generator=torch.Generator().manual_seed(10**6)) + 1
    if seq % 5 == 0:
        rows_ND[seq % 96, seq % 12] = (math.nan, math.inf, -math.inf)[seq // 5 % 3]
    return rows_ND

def train(place, out=None):
    trainer, first = SAETrainer(config), 0
    if place.exists() and trainer.load(place) is not None:
        cfg = json.loads((place / "latest" / "cfg.json").read_text())
        first = cfg["metadata"]["next_packet"]
    for seq in range(first, packets):
        trainer.ingest(packet(seq), (0, 0, seq), weight=1.0 + seq % 3, host_step=seq)
        trainer.train()
        if seq % 4 == 3:
            trainer.save(place, {"next_packet": seq + 1}, sync=False)
            if out is not None:
                os.write(out, b"s")
    trainer.train(wait_for_fill=False)
    trainer.save(place, {"next_packet": packets}, sync=False)
    return trainer

def finite(place):
    for path in place.glob("step_*/*.safetensors"):
        for name, tensor in load_file(path).items():
            assert not tensor.is_floating_point() or torch.isfinite(tensor).all(), (path, name)

draw, hits, found = random.Random(7), 0, []
for attempt in range(kills):
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        try:
            train(folder / "killed", writer)
        finally:
            os._exit(1)
    os.close(writer)
    os.read(reader, 1)  # a checkpoint is behind it: the next one makes progress
    time.sleep(draw.uniform(0, 0.05))
    os.kill(pid, signal.SIGKILL)
    hits += os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    os.close(reader)
    finite(folder / "killed")
    found.append(json.loads((folder / "killed/latest/cfg.json").read_text())["metadata"]["next_packet"])
straight, resumed = train(folder / "straight"), train(folder / "killed")
finite(folder)
for name, trainer in (("straight", straight), ("killed", resumed)):
    weights = {key: tensor.contiguous() for key, tensor in trainer.sae.state_dict().items()}
    save_file(weights, folder / f"{name}.safetensors")
print(json.dumps({"hits": hits, "at": found, "steps": [straight.steps, resumed.steps],
                  "refused": [straight.metrics.rows_refused, resumed.metrics.rows_refused]}))
"""


OTHERS = ["jumprelu", "gated", "matryoshka"] if os.environ.get("ASYS_SOAK") else []


@pytest.mark.rest
@pytest.mark.stress
@pytest.mark.parametrize("architecture", ["topk", *OTHERS])
def test_a_trainer_killed_at_random_steps_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, architecture: str
) -> None:
    config = {
        "architecture": architecture, "d_sae": 48, "k": 4, "batch_rows": 64, "buffer_rows": 512,
        "passes": 3, "dead_after_rows": 1000, "window_rows": 500,
        **({"target_l0": 4.0} if architecture in PENALISED else {}),
    }  # fmt: skip
    command = [sys.executable, "-W", "error::UserWarning", "-c", STORM, str(tmp_path)]
    done = subprocess.run(
        [*command, json.dumps(config), str(KILLS), str(PACKETS)],
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["hits"] > 3, told
    assert len({at for at in told["at"] if at < PACKETS}) > 3, told  # killed in the middle
    assert told["steps"][0] == told["steps"][1] > PACKETS
    assert told["refused"] == [PACKETS // 5] * 2
    straight, killed = (load_file(tmp_path / f"{n}.safetensors") for n in ("straight", "killed"))
    for name, tensor in straight.items():
        assert torch.equal(tensor, killed[name]), name
