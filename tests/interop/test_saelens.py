"""SAELens opens our checkpoints and computes the same numbers."""

import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch

from asys_bench.sae import AUTOENCODERS, SAEConfig, SAETrainer, load_sae

pytestmark = [pytest.mark.interop, pytest.mark.rest]


@pytest.fixture(scope="module")
def sae_lens() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens")


def _rows(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return (
        torch.tanh(
            torch.randn(count, 5, generator=generator) @ torch.randn(5, 24, generator=generator)
        )
        + 0.4
    )


@pytest.mark.parametrize("architecture", AUTOENCODERS)
def test_saelens_computes_what_we_compute_from_raw_rows(
    tmp_path: Path, sae_lens: ModuleType, architecture: str
) -> None:
    config = SAEConfig.model_validate(
        {"architecture": architecture, "k": 6, "batch_rows": 256, "buffer_rows": 2048}
    )
    trainer = SAETrainer(config, model_name="ppo/CartPole-v1", hook_name="policy_net.1")
    rows_ND = _rows(4000)
    for seq, chunk in enumerate(rows_ND.split(400)):
        trainer.ingest(chunk, (0, 0, seq))
        trainer.train()
    folder = trainer.save(tmp_path, metadata={"run": "test"})
    assert folder is not None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sae_lens.SAE.load_from_disk(folder)
        linked = sae_lens.SAE.load_from_disk(tmp_path / "latest")
    ours = trainer.sae
    assert ours is not None
    assert theirs.cfg.architecture() == ours.saelens_name
    assert theirs.cfg.metadata.hook_name == "policy_net.1"
    assert theirs.cfg.metadata.model_name == "ppo/CartPole-v1"
    with torch.no_grad():
        acts_BF = ours.encode(rows_ND)
        assert float((theirs.encode(rows_ND) - acts_BF).abs().max()) < 1e-5
        assert float((theirs.decode(acts_BF) - ours.decode(acts_BF)).abs().max()) < 1e-5
        assert float((theirs(rows_ND) - ours(rows_ND)).abs().max()) < 1e-5
        assert torch.equal(linked.W_dec, theirs.W_dec)


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_we_open_what_saelens_saved(
    tmp_path: Path, sae_lens: ModuleType, architecture: str
) -> None:
    fields = {"k": 6} if architecture == "topk" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config_class = sae_lens.TopKSAEConfig if fields else sae_lens.StandardSAEConfig
        sae_class = sae_lens.TopKSAE if fields else sae_lens.StandardSAE
        torch.manual_seed(0)
        theirs = sae_class(config_class(d_in=24, d_sae=96, **fields))
        theirs.save_model(tmp_path)
    ours, _ = load_sae(tmp_path)
    rows_ND = _rows(200)
    with torch.no_grad():
        assert float((theirs.encode(rows_ND) - ours.encode(rows_ND)).abs().max()) < 1e-5
        assert float((theirs(rows_ND) - ours(rows_ND)).abs().max()) < 1e-5


def test_saelens_runs_our_skip_transcoder(tmp_path: Path, sae_lens: ModuleType) -> None:
    config = SAEConfig.model_validate(
        {"architecture": "skip_transcoder", "k": 6, "batch_rows": 256, "buffer_rows": 2048}
    )
    trainer = SAETrainer(config, hook_name="mlp:input")
    x_ND = _rows(4000)
    y_ND = torch.cat([torch.relu(x_ND), x_ND[:, :7]], 1)
    for seq, (x, y) in enumerate(zip(x_ND.split(400), y_ND.split(400), strict=True)):
        trainer.ingest(x, (0, 0, seq), target_ND=y)
        trainer.train()
    folder = trainer.save(tmp_path)
    assert folder is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sae_lens.SAE.load_from_disk(folder)
    again, _ = load_sae(folder)
    ours = trainer.sae
    assert ours is not None
    with torch.no_grad():
        assert theirs(x_ND).shape == y_ND.shape
        assert float((theirs.encode(x_ND) - ours.encode(x_ND)).abs().max()) < 1e-5
        assert float((theirs(x_ND) - ours(x_ND)).abs().max()) < 1e-5
        assert float((theirs(x_ND) - again(x_ND)).abs().max()) < 1e-5
