"""A trained SAE of every architecture, as the trainer leaves it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from asys_bench.sae import SAEConfig, SAETrainer


def rows_of(count: int, seed: int = 2) -> torch.Tensor:
    """Bounded activations with a mean, float32[count, 24]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(5, 24, generator=torch.Generator().manual_seed(99))
    return torch.tanh(torch.randn(count, 5, generator=generator) @ mixing) + 0.4


def train(folder: Path, architecture: str) -> SAETrainer:
    """Train a little and save; the SAELens folder is `folder/latest`."""
    config = SAEConfig.model_validate(
        {"architecture": architecture, "k": 6, "d_sae": 96, "batch_rows": 256, "buffer_rows": 2048}
    )
    trainer = SAETrainer(config, model_name="ppo/CartPole-v1", hook_name="layers.1.mlp")
    for seq, chunk in enumerate(rows_of(6000).split(400)):
        trainer.ingest(chunk, (0, 0, seq))
        trainer.train()
    assert trainer.save(folder) is not None
    return trainer


def imported(name: str) -> ModuleType:
    """The module, or a skip that says why; its own warnings are not ours to fail on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


@pytest.fixture
def rows() -> Callable[..., torch.Tensor]:
    return rows_of


@pytest.fixture
def trained() -> Callable[[Path, str], SAETrainer]:
    return train


@pytest.fixture
def quiet() -> None:
    """Other packages may warn."""
    warnings.simplefilter("ignore")
