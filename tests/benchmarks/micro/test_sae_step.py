"""One optimizer step of every SAE architecture: 4096 rows of 256, 2048 features."""

import typing

import pytest
import torch

from asys_bench.sae.architectures.scaling import InputScaling
from asys_bench.sae.config import SAEConfig
from asys_bench.sae.training.learner import Learner

D_IN, D_SAE, BATCH = 256, 2048, 4096
ARCHITECTURES = typing.get_args(SAEConfig.model_fields["architecture"].annotation)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_step(benchmark, architecture):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(BATCH, D_IN, generator=generator)
    widths = (D_IN // 2, D_IN // 2) if architecture == "crosscoder" else None
    config = SAEConfig(architecture=architecture, d_sae=D_SAE, k=16, hook_widths=widths)
    learner = Learner(config, D_IN)
    learner.start(rows, InputScaling.identity(D_IN))
    weight = torch.ones(BATCH)
    benchmark.extra_info["rows"] = BATCH
    benchmark.pedantic(learner.step, args=(rows, weight), rounds=20, warmup_rounds=3)
    assert learner.steps == 23
