"""Training goes on from an SAE that exists, in the trainer's own units."""

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.sae import AUTOENCODERS, SAEConfig, SAETrainer, build_sae
from asys_bench.sae.architectures.scaling import InputScaling
from asys_bench.sae.exchange import ExchangeError, adopt, import_saelens, rebased


def data(rows: int, seed: int = 0) -> torch.Tensor:
    truth = torch.randn(5, 12, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    return torch.relu(torch.randn(rows, 5, generator=generator)) @ truth * 30 + 100


def config(architecture: str = "topk", **more: object) -> SAEConfig:
    base = {"architecture": architecture, "d_sae": 32, "k": 3, "batch_rows": 128, "threads": 1}
    return SAEConfig.model_validate({**base, "buffer_rows": 1024, **more})


def trained(architecture: str, rows: int = 8_000) -> SAETrainer:
    trainer = SAETrainer(config(architecture), hook_name="h")
    for seq, chunk in enumerate(data(rows).split(500)):
        trainer.ingest(chunk, (0, 0, seq))
        trainer.train()
    return trainer


@settings(deadline=None)
@given(
    scale=st.floats(0.01, 100.0),
    center=st.floats(-50.0, 50.0),
    architecture=st.sampled_from(sorted(AUTOENCODERS)),
)
def test_rebasing_undoes_folding(scale: float, center: float, architecture: str) -> None:
    sae = build_sae(config(architecture), 12)
    with torch.no_grad():
        sae.b_dec.copy_(torch.linspace(-1, 1, 12))
    scaling = InputScaling(scale, torch.full((12,), center))
    parameters = rebased(sae.folded(scaling), scaling)
    for name, parameter in sae.named_parameters():
        # b_dec passes through center + b_dec / scale in float32.
        slack = 1e-5 * max(1.0, scale * abs(center)) if name == "b_dec" else 1e-5
        torch.testing.assert_close(parameters[name], parameter.detach(), atol=slack, rtol=1e-4)


@pytest.mark.parametrize(
    "architecture",
    ["topk", *(pytest.param(a, marks=pytest.mark.rest) for a in AUTOENCODERS if a != "topk")],
)
def test_a_trainer_that_adopts_a_good_sae_is_good_at_once(
    tmp_path: Path, architecture: str
) -> None:
    source = trained(architecture)
    source.save(tmp_path)
    sae, _ = import_saelens(tmp_path / "latest")
    before = source.evaluate()
    assert before is not None

    trainer = SAETrainer(config(architecture), hook_name="h")
    for seq, chunk in enumerate(data(4_000, seed=1).split(20)):
        trainer.ingest(chunk, (0, 0, seq))
    adopt(trainer, sae)
    after = trainer.evaluate()
    assert after is not None
    assert after.fvu < before.fvu * 1.3 + 0.02
    raw = trainer.sae
    assert raw is not None
    x_BD = data(100, seed=2)
    torch.testing.assert_close(raw(x_BD), sae(x_BD), atol=0.05, rtol=1e-3)
    assert trainer.train(max_steps=3) == 3


def test_what_does_not_fit_is_refused_with_the_settings_that_would(tmp_path: Path) -> None:
    trained("topk", 3_000).save(tmp_path)
    sae, _ = import_saelens(tmp_path / "latest")
    with pytest.raises(ExchangeError, match="after the first rows"):
        adopt(SAETrainer(config()), sae)
    wide = SAETrainer(config(d_sae=64))
    wide.ingest(data(600), (0, 0, 1))
    with pytest.raises(ExchangeError, match="set architecture: topk and d_sae: 32"):
        adopt(wide, sae)
    begun = trained("topk", 3_000)
    with pytest.raises(ExchangeError, match="before the first step"):
        adopt(begun, sae)


def test_uneven_decoder_norms_of_a_topk_sae_are_mentioned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sae = build_sae(config(), 12)
    with torch.no_grad():
        sae.W_dec[0] *= 3
    trainer = SAETrainer(config())
    trainer.ingest(data(600), (0, 0, 1))
    with caplog.at_level(logging.WARNING):
        adopt(trainer, sae)
    assert "TopK may choose other features" in caplog.text
