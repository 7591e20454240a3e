"""`check_interop` over a run with several SAEs on one hook."""

from __future__ import annotations

import pytest
import torch

import asys_bench
from asys_bench.cli.check_interop import main


@pytest.mark.rest
@pytest.mark.interop
def test_each_variant_is_compared_on_its_hooks_rows(tmp_path, capsys):
    pytest.importorskip("sae_lens")
    pytest.importorskip("datasets")
    model = torch.nn.Sequential(torch.nn.Linear(8, 16))
    variants = {"wide": {"d_sae": 64}, "narrow": {"d_sae": 32}}
    sae = {"k": 2, "batch_rows": 32, "buffer_rows": 256}
    options = {"sae": sae, "variants": variants, "final_train_s": 0.3}
    settings = {
        "run": {"dir": str(tmp_path), "drain_timeout_s": 60},
        "sinks": {"trainer": {"options": options}},
    }
    with asys_bench.observe(model, settings, hooks="0") as observation:
        for _ in range(30):
            model(torch.randn(32, 8))
    assert main([str(observation.run_dir)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " rows in " in line]
    assert len(lines) == 2
    assert all("960 rows in datasets; saelens differs by" in line for line in lines)
    assert {line[:6] for line in lines} == {"0 (0_w", "0 (0_n"}, "one hook, two SAEs"
