"""Training on from an SAE that exists: ours or anyone's, brought into the trainer's own units.

A trainer's SAE sees centred and scaled rows and has a decoder of unit norm; a checkpoint takes raw
rows and carries the scale in its norms. `rebased` converts exactly. With x' = s (x - c) and, for
transcoders, y' = s_y (y - c_y) (else y is x), n = s_y ||W_dec|| per feature:

    W_enc' = W_enc n / s     b_enc', b_gate', b_mag', threshold' = n times theirs
    W_dec' = s_y W_dec / n   b_dec' = s (b_dec - c)
    transcoders:  b_enc' = n (b_enc + c W_enc)   W_skip' = W_skip s_y / s
                  b_dec' = s_y (b_dec + W_skip c - c_y)

TopK chooses by size, so where decoder norms differ between features, it may choose others afterwards
(checkpoints of ours, and SAELens's once its norms are folded, have equal ones).
"""

from __future__ import annotations

import logging
import math
import tempfile
from pathlib import Path

import torch

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.architectures.scaling import PairScaling, RowScaling
from asys_bench.sae.checkpoint.checkpoint_files import StateDict, pick, put
from asys_bench.sae.checkpoint.checkpoint_store import seal
from asys_bench.sae.checkpoint.trainer_state import TrainerState, read_state, write_state
from asys_bench.sae.config import SAEConfig
from asys_bench.sae.exchange.weights import ACTIVATION_UNITS, ExchangeError
from asys_bench.sae.training.learner import Learner
from asys_bench.sae.training.trainer import SAETrainer
from asys_bench.sae.training.trainer_parts import TrainerParts

log = logging.getLogger(__name__)
NORM_SPREAD = 1.01
"""Largest over smallest decoder norm from which TopK's choice counts as changed."""
_ONE_THRESHOLD = ("batchtopk", "matryoshka")
"""Architectures whose checkpoint is a JumpReLU SAE with one threshold."""


@torch.no_grad()
def rebased(sae: SparseAutoencoder, scaling: RowScaling) -> dict[str, torch.Tensor]:
    """The state of `sae` (which takes raw rows) for rows as `scaling` gives them."""
    state = {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}
    norm_F = torch.linalg.vector_norm(state["W_dec"], dim=1) * scaling.scale
    norm_F = norm_F.clamp_min(1e-12)
    s = scaling.scale
    if isinstance(scaling, PairScaling):
        s = scaling.input.scale
        center_D = scaling.input.center_D.double()
        shift_F = center_D @ state["W_enc"].double()
        state["b_enc"].copy_(state["b_enc"].double() + shift_F)
        shift_D = state["W_skip"].double() @ center_D
        state["b_dec"].copy_(state["b_dec"].double() + shift_D)
        state["b_dec"].copy_(scaling.output.apply(state["b_dec"]))
        state["W_skip"].mul_(scaling.scale / s)
    else:
        state["b_dec"].copy_(scaling.apply(state["b_dec"]))
    state["W_enc"].mul_(norm_F / s)
    state["W_dec"].mul_((scaling.scale / norm_F).unsqueeze(1))
    for name in ACTIVATION_UNITS:
        if name in state:
            state[name].mul_(norm_F)
    return state


def own_outliers(config: SAEConfig, sae: SparseAutoencoder) -> SAEConfig:
    """`config` for a trainer that is to go on from `sae`: an SAE that leaves no rows alone goes on
    without doing so, unless `outliers` asks for it."""
    if config.outliers == "auto" and math.isinf(sae.outlier_norm):
        return config.model_copy(update={"outliers": "keep"})
    return config


def adopt(trainer: SAETrainer, sae: SparseAutoencoder) -> None:
    """Make `trainer` go on from `sae`, with a fresh optimizer; its rows and settings stay.

    trainer: has rows but no steps yet (the rows give the input scale).
    sae: takes raw rows of the same width, as `import_saelens` returns it.

    Raises:
        ExchangeError: the trainer has no rows yet or has begun, or is configured for another
            architecture or size.
        CheckpointError: no room for the temporary state.
    """
    trainer.train(max_steps=0)  # takes in what waits, so that the input scale is known
    config = trainer.config
    what = f"SAE of {sae.d_sae} features for {trainer.hook_name or 'this trainer'}"
    if not trainer.metrics.buffer_fill_ratio or trainer.steps:
        raise ExchangeError(
            what,
            f"the trainer has {trainer.steps} steps and a reservoir that is "
            f"{trainer.metrics.buffer_fill_ratio:.0%} full",
            "adopt after the first rows and before the first step",
        )
    with tempfile.TemporaryDirectory(prefix="asys-adopt-") as folder:
        path = trainer.save(Path(folder), sync=False)
        assert path is not None
        saved = read_state(path)
        parts = TrainerParts(config, saved.d_in, saved.d_out)
        assert isinstance(parts.learner, Learner)
        parts.normalizer.load_state_dict(pick(saved.state, "normalizer"))
        parts.learner.load_state_dict(pick(saved.state, "learner"))
        parts.outliers.load_state_dict(pick(saved.state, "outliers"))
        if math.isinf(parts.outliers.limit):
            parts.outliers.limit = sae.outlier_norm
        _begin(parts.learner, sae, parts.normalizer.scaling, what)
        state: StateDict = {k: v for k, v in saved.state.items() if not k.startswith("learner.")}
        put(state, "learner", parts.learner.state_dict())
        put(state, "outliers", parts.outliers.state_dict())
        write_state(path, TrainerState(config, saved.d_in, state, saved.d_out))
        seal(path)
        trainer.load(Path(folder))


def adopt_when_filled(trainer: SAETrainer, sae: SparseAutoencoder, fill_ratio: float) -> bool:
    """`adopt` once the trainer's reservoir is that full (0..1); whether it was.

    Raises: as `adopt`.
    """
    trainer.train(max_steps=0)
    present = trainer.metrics.buffer_fill_ratio
    if not present or present < fill_ratio:
        return False
    adopt(trainer, sae)
    return True


@torch.no_grad()
def _begin(learner: Learner, sae: SparseAutoencoder, scaling: RowScaling, what: str) -> None:
    mine = learner.sae
    own = mine.state_dict()
    fits = sae.name == mine.name or (sae.name == "jumprelu" and mine.name in _ONE_THRESHOLD)
    if not fits or (sae.d_in, sae.d_sae, sae.d_out) != (mine.d_in, mine.d_sae, mine.d_out):
        raise ExchangeError(
            what,
            f"it is {sae.name} with {sae.d_in} -> {sae.d_sae} -> {sae.d_out}, the trainer is "
            f"configured for {mine.name} with {mine.d_in} -> {mine.d_sae} -> {mine.d_out}",
            f"set architecture: {sae.name} and d_sae: {sae.d_sae}",
        )
    norm_F = torch.linalg.vector_norm(sae.W_dec, dim=1)
    if sae.name == "topk" and float(norm_F.max()) > NORM_SPREAD * float(norm_F.min()):
        log.warning("%s: decoder norms differ, so TopK may choose other features", what)
    for name, tensor in rebased(sae, scaling).items():
        own[name].copy_(tensor)
    if mine.name in (*_ONE_THRESHOLD, "skip_transcoder"):
        own["threshold"].fill_(float(own["threshold"].mean()))
    learner.scaling = scaling
    learner.steps = 1  # begun: b_dec and the scale are not set from the data again
