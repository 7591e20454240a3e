"""Two implementations of one training, step by step: from one state, and each on its own way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from asys_bench.sae import SAEConfig, SparseKernels, StepResult
from asys_bench.sae.training.device import CPU, TrainingDevice
from asys_bench.sae.training.learner import Learner
from asys_bench.sae.training.normalizer import JointNormalizer, Normalizer, PairNormalizer

D, D_OUT, F, B, K = 24, 10, 96, 128, 6
POOL = 4096


def make_small() -> None:
    """For an interpreter: a step of some thousand Python calls."""
    global D, D_OUT, F, B, K
    D, D_OUT, F, B, K = 8, 6, 16, 8, 2


def config_of(architecture: str, dead_policy: str = "auto") -> SAEConfig:
    return SAEConfig.model_validate(
        {
            "architecture": architecture,
            "d_sae": F,
            "k": K,
            "batch_rows": B,
            "learning_rate": 1e-2,  # what rounding leaves in a step is proportional to it
            "dtype": "float32",
            "dead_policy": dead_policy,
            "dead_after_rows": 1500,
            "resample_every_steps": 20,
            "hook_widths": (D - 3, 3) if architecture == "crosscoder" else None,
        }
    )


def pool_of_rows(width: int = D) -> torch.Tensor:
    """Sparse sums of directions, away from the origin, with a little noise: pre-activations have no ties."""
    generator = torch.Generator().manual_seed(5)
    truth = torch.randn(20, width, generator=generator)
    acts = torch.relu(torch.randn(POOL, 20, generator=generator) - 0.8)
    return acts @ truth * 5 + 3 + 0.1 * torch.randn(POOL, width, generator=generator)


def rows_for(architecture: str) -> torch.Tensor:
    return pool_of_rows(D + D_OUT if architecture == "skip_transcoder" else D)


def learner_of(
    config: SAEConfig,
    rows: torch.Tensor,
    kernels: Callable[[], SparseKernels] | None = None,
    device: TrainingDevice = CPU,
) -> Learner:
    """Started on `rows`; kernels: for its steps, in place of those that it would choose."""
    is_coder = config.architecture == "skip_transcoder"
    d_out = D_OUT if is_coder else None
    learner = Learner(config, D, d_out, device)
    normalizer: Normalizer | PairNormalizer | JointNormalizer = Normalizer(D, "std", POOL)
    if is_coder:
        normalizer = PairNormalizer(D, D_OUT, "std", POOL)
    elif config.hook_widths is not None:
        normalizer = JointNormalizer(config.hook_widths, "std", POOL)
    normalizer.update(rows, torch.ones(len(rows)))
    # A threshold begins at a row's own pre-activation: of rows that are stepped on, rounding would decide.
    learner.start(1.01 * rows, normalizer.scaling)
    if kernels is not None:
        learner.kernels = learner.adam.kernels = kernels()
    return learner


def batches(rows: torch.Tensor, steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(rows, weights) of each step; in every other one the rows stand for different numbers of rows."""
    generator = torch.Generator().manual_seed(9)
    found = []
    for step in range(steps):
        picked = torch.randint(len(rows), (B,), generator=generator)
        weight_B = 1.0 + torch.rand(B, generator=generator) * (step % 2)
        found.append((rows[picked], weight_B))
    return found


def _step(learner: Learner, rows_BD: torch.Tensor, weight_B: torch.Tensor) -> StepResult | None:
    return learner.step(rows_BD.clone().to(learner.sae.W_dec.device), weight_B)


def weights_of(learner: Learner) -> torch.Tensor:
    """Every weight on end, on the CPU."""
    return torch.cat([p.detach().cpu().reshape(-1) for p in learner.sae.parameters()])


@dataclass
class Compared:
    """Largest differences over all steps."""

    loss: float = 0.0
    """Relative."""
    gradient: float = 0.0
    """||gradient - gradient'|| / ||gradient|| of a parameter."""
    update: float = 0.0
    """|update - update'| of a weight; decoder rows have norm 1, so their rounding alone is 1e-7."""
    steps: int = 0


def from_one_state(one: Learner, other: Learner, rows: torch.Tensor, steps: int) -> Compared:
    """Before each step `other` gets the state of `one`."""
    found = Compared()
    for rows_BD, weight_B in batches(rows, steps):
        other.load_state_dict({n: _copied(v) for n, v in one.state_dict().items()})
        before = weights_of(one)
        results = [_step(learner, rows_BD, weight_B) for learner in (one, other)]
        assert results[0] is not None
        assert results[1] is not None
        mine, theirs = weights_of(one) - before, weights_of(other) - before
        found.loss = max(found.loss, abs(results[1].loss / results[0].loss - 1))
        found.update = max(found.update, float((theirs - mine).abs().max()))
        for p, q in zip(one.sae.parameters(), other.sae.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            apart = float((q.grad.cpu() - p.grad).norm() / p.grad.norm())
            found.gradient = max(found.gradient, apart)
        found.steps += 1
    return found


def each_on_its_way(one: Learner, other: Learner, rows: torch.Tensor, steps: int) -> list[float]:
    """|loss'/loss - 1| of each step."""
    found = []
    for rows_BD, weight_B in batches(rows, steps):
        results = [_step(learner, rows_BD, weight_B) for learner in (one, other)]
        assert results[0] is not None
        assert results[1] is not None
        found.append(abs(results[1].loss / results[0].loss - 1))
    return found


def same_support(one: Learner, other: Learner, rows: torch.Tensor) -> float:
    """Share of rows of which both SAEs, each in training, choose the same features."""
    supports = []
    for learner in (one, other):
        scaled = learner.scaling.apply(rows)
        inputs, _ = learner.sae.split(scaled)
        device = learner.sae.W_dec.device
        with torch.no_grad():
            supports.append((learner.sae.encode(inputs.to(device)) > 0).cpu())
    return float((supports[0] == supports[1]).all(1).double().mean())


def _copied(value: torch.Tensor | int | float) -> torch.Tensor | int | float:
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value
