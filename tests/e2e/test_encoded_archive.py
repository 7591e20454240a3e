"""A run whose archive holds packets: every command and reader takes it as it takes one of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import asys_bench
from asys_bench.cli import run as asys_run
from asys_bench.rundir.verify import verify_run

WIDTH, BATCH, STEPS = 64, 128, 40
SAE = {"d_sae": 64, "k": 4, "batch_rows": 64, "buffer_rows": 512, "min_buffer_fill_ratio": 0.1}


@pytest.mark.rest
def test_a_run_is_verified_reported_and_trained_from_with_int8_packets(tmp_path, capsys):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, WIDTH), torch.nn.ReLU())
    sent = []
    model[0].register_forward_hook(lambda module, inputs, output: sent.append(output.detach()))
    with asys_bench.observe(
        model,
        hooks=[{"match": "0", "preprocess": ["int8"]}],
        sae=SAE,
        archive={"values": "encoded"},
        run={"dir": str(tmp_path), "drain_timeout_s": 60},
        bus={"on_full": "block", "block_timeout_s": 50},
    ) as observation:
        for _ in range(STEPS):
            model(torch.randn(BATCH, 8))
    run = asys_bench.open_run(observation.run_dir)
    rows = run.archive.numpy("0")
    values = torch.from_numpy(rows["values"])
    wanted = torch.cat(sent)
    assert values.shape == wanted.shape
    step = wanted.abs().amax(1, keepdim=True) / 127
    assert bool(((values - wanted).abs() <= 0.51 * step).all()), "int8's own rounding, no more"
    assert rows["host_step"].tolist() == np.repeat(np.arange(STEPS), BATCH).tolist()
    (shard,) = observation.run_dir.glob("archive/0/*.arrows")
    assert shard.stat().st_size < 0.35 * 4 * wanted.numel()
    assert not verify_run(observation.run_dir).damaged
    folder = str(observation.run_dir)
    assert asys_run.main(["verify", folder]) == 0
    assert asys_run.main(["report", folder]) == 0
    assert asys_run.main(
        ["train", "--archive", f"{folder}/archive", "--set", "epochs=1", "--set", "sae.d_sae=64"]
    ) == 0  # fmt: skip
    capsys.readouterr()
