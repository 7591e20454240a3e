"""The stock trainers of SAELens, dictionary_learning and sparsify, and the process that runs one.

    python -P suites/peers/trainers.py < spec.json > outcome.json

Ours, with which they are compared, is `train_asys` of the module imported below. Learning rates of the
peers are `RATES`, the best of a sweep from their defaults upwards (docs/benchmarks.md): the defaults
are made for hundreds of times as many rows. Warm-ups are cut to a tenth of the run. Everything else
is what they ship. `settings` of a spec goes over all of it.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asys_bench.harness.scenarios.sae_training import (
    Stopwatch,
    Trained,
    Trainer,
    TrainerSpec,
    TrainingOutcome,
    main,
    train_asys,
    train_in_process,
)

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "asys": (),
    "sae_lens": ("sae_lens",),
    "dictionary_learning": ("dictionary_learning", "nnsight"),
    "sparsify": ("sparsify",),
}
"""Trainer -> the modules that it needs."""
_INSTALL = "make test-interop installs it"
_QUIET = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}

RATES: Mapping[str, float] = {"sae_lens": 1e-2, "dictionary_learning": 1e-2, "sparsify": 1.4e-2}
"""Adam's (sparsify: its signum's) peak step size for d_sae = 2048 and batches of 4096."""
SEQUENCE = 128
"""Rows per sequence for a trainer that wants sequences."""


def unavailable(trainer: str) -> str | None:
    """Why `trainer` cannot run here, with the fix; None when it can."""
    missing = [module for module in PACKAGES[trainer] if importlib.util.find_spec(module) is None]
    return f"{', '.join(missing)} is not installed; {_INSTALL}" if missing else None


def _sae_lens(spec: TrainerSpec, rows: Iterator[torch.Tensor], watch: Stopwatch) -> Trained:
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    first = next(rows)
    own, trainer_settings = sae_lens_settings(spec)
    names = {"topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU", "gated": "Gated",
             "relu": "Standard", "matryoshka": "MatryoshkaBatchTopK"}  # fmt: skip
    name = names[spec.architecture]
    torch.manual_seed(spec.seed)
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(
        d_in=first.shape[1], d_sae=spec.d_sae, normalize_activations="none", **own
    )
    sae = getattr(sae_lens, f"{name}TrainingSAE")(config)
    with torch.no_grad():
        sae.b_dec.copy_(first.mean(0))  # their recipe for data with a mean
    steps = spec.rows // spec.batch_rows
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * spec.batch_rows,
            train_batch_size_samples=spec.batch_rows,
            lr_decay_steps=steps // 5,
            logger=LoggingConfig(log_to_wandb=False),
            **trainer_settings,
        ),
        sae,
        _again(first, rows),
    )
    trainer.fit()
    watch.tick(steps * spec.batch_rows)
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)  # BatchTopK becomes JumpReLU, as it would be used
        final = sae_lens.SAE.load_from_disk(folder)

    def reconstruct(x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        acts_BF = final.encode(x_BD)
        return final.decode(acts_BF), acts_BF

    return Trained(reconstruct, final.W_dec.detach())


def sae_lens_settings(spec: TrainerSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """(of the SAE, of the trainer), best stock ones with `spec.settings` over them."""
    from asys_bench.sae import SAEConfig

    own: dict[str, Any] = {}
    if spec.architecture in ("topk", "batchtopk", "matryoshka"):
        own["k"] = spec.k
    if spec.architecture == "matryoshka":
        own["matryoshka_widths"] = list(
            SAEConfig(architecture="matryoshka", k=spec.k).prefix_widths(spec.d_sae)
        )
    rate = spec.settings.get("lr", RATES["sae_lens"])
    trainer: dict[str, Any] = {"lr": rate, "lr_end": rate / 10}
    for key, value in spec.settings.items():
        (trainer if key.startswith(("lr", "adam")) else own)[key] = value
    return own, trainer


def _again(first: torch.Tensor, rest: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    yield first
    yield from rest


def _dictionary_learning(
    spec: TrainerSpec, rows: Iterator[torch.Tensor], watch: Stopwatch
) -> Trained:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer_class = {"topk": TopKTrainer, "batchtopk": BatchTopKTrainer}[spec.architecture]
    first = next(rows)
    steps = spec.rows // spec.batch_rows
    settings = {
        "lr": RATES["dictionary_learning"],
        "warmup_steps": max(1, steps // 10),
        "decay_start": steps * 4 // 5,
        "threshold_start_step": steps // 2,
        "auxk_alpha": 1 / 32,
        **spec.settings,
    }
    trainer = trainer_class(
        steps=steps,
        activation_dim=first.shape[1],
        dict_size=spec.d_sae,
        k=spec.k,
        layer=0,
        lm_name="benchmark",
        device="cpu",
        seed=spec.seed,
        **settings,
    )
    for step, batch_BD in enumerate(_again(first, rows)):
        trainer.update(step, batch_BD)
    watch.tick(steps * spec.batch_rows)

    def reconstruct(x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        acts_BF = trainer.ae.encode(x_BD)
        return trainer.ae.decode(acts_BF), acts_BF

    return Trained(reconstruct, trainer.ae.decoder.weight.detach().t())


def _sparsify(spec: TrainerSpec, rows: Iterator[torch.Tensor], watch: Stopwatch) -> Trained:
    from datasets import Dataset
    from sparsify import SparseCoder, SparseCoderConfig, TrainConfig
    from sparsify import Trainer as SparsifyTrainer

    first = next(rows)
    host = _RowsAsModel(_again(first, rows), spec.batch_rows, first.shape[1])
    steps = spec.rows // spec.batch_rows
    sequences = max(1, spec.batch_rows // SEQUENCE)
    ids = np.zeros((steps * sequences, spec.batch_rows // sequences), np.int64)
    settings = {
        "lr": RATES["sparsify"],
        "lr_warmup_steps": max(1, steps // 10),
        **spec.settings,
    }
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            SparseCoderConfig(num_latents=spec.d_sae, k=spec.k),
            batch_size=sequences,
            hookpoints=["layer"],
            init_seeds=[spec.seed],
            log_to_wandb=False,
            save_dir=folder,
            save_every=1 << 30,
            **settings,
        )
        dataset = Dataset.from_dict({"input_ids": ids}).with_format("torch")
        trainer = SparsifyTrainer(config, dataset, host)
        trainer.fit()
        watch.tick(steps * spec.batch_rows)
        # What they saved: a schedule-free optimizer's weights in use differ from those in training.
        final = SparseCoder.load_from_disk(next(Path(folder).glob("*/layer")))

    def reconstruct(x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        top_acts_BK, top_index_BK, _ = final.encode(x_BD)
        acts_BF = torch.zeros(len(x_BD), final.num_latents)
        acts_BF.scatter_(1, top_index_BK, top_acts_BK)
        return final.decode(top_acts_BK, top_index_BK), acts_BF

    return Trained(reconstruct, final.W_dec.detach())


class _Layer(torch.nn.Module):
    """Gives the next batch for ids of the right number, in the ids' shape."""

    def __init__(self, rows: Iterator[torch.Tensor], batch_rows: int, width: int) -> None:
        super().__init__()
        self._rows, self._batch_rows, self._width = rows, batch_rows, width

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        if input_ids.numel() != self._batch_rows:  # a look at the width, with ids of their own
            return torch.zeros(*input_ids.shape, self._width)
        return next(self._rows).view(*input_ids.shape, self._width)


class _RowsAsModel(torch.nn.Module):
    """As much of a transformer as sparsify's trainer asks for: it hooks `layer`."""

    def __init__(self, rows: Iterator[torch.Tensor], batch_rows: int, width: int) -> None:
        super().__init__()
        self.layer = _Layer(rows, batch_rows, width)
        self.config = types.SimpleNamespace(num_hidden_layers=1)
        self.device = torch.device("cpu")
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

    @property
    def base_model(self) -> torch.nn.Module:
        return self

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return self.layer(input_ids)


TRAINERS: Mapping[str, Trainer] = {
    "asys": train_asys,
    "sae_lens": _sae_lens,
    "dictionary_learning": _dictionary_learning,
    "sparsify": _sparsify,
}


def train(spec: TrainerSpec, timeout_s: float) -> TrainingOutcome:
    """`train_in_process` for every trainer of `TRAINERS`."""
    cpu = {} if torch.cuda.is_available() else {"SPARSIFY_DISABLE_TRITON": "1"}
    return train_in_process(spec, timeout_s, program=(__file__,), environment={**_QUIET, **cpu})


if __name__ == "__main__":
    sys.exit(main(TRAINERS))
