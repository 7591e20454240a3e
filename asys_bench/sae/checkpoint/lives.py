"""`lives.safetensors` in a checkpoint: what a reader wants to know of the features' lives.

The trainer's own state has the same and the directions that lives began with; this file is small and is
read without it. Other tools ignore it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from asys_bench.sae.checkpoint.checkpoint_files import (
    CheckpointError,
    read_tensors,
    write_tensors,
)
from asys_bench.sae.training.lives import NOT_TURNED, FeatureLives
from asys_bench.system.files.below import is_file

LIVES_FILE = "lives.safetensors"


@dataclass(frozen=True)
class Lives:
    """F features; see `sae.training.lives.FeatureLives`. W windows of training, the oldest first."""

    generation: torch.Tensor
    born_step: torch.Tensor
    born_host_step: torch.Tensor
    born_rows: torch.Tensor
    turned_host_step: torch.Tensor
    """-1: not turned."""
    birth_cosine: torch.Tensor
    """float32[F]: of the decoder now and when the life began."""
    energy: torch.Tensor
    """float32[W, F]: sums of squared activations in training, with the weights of then."""
    window_rows: torch.Tensor
    """int64[W]: rows trained on in each window."""
    window_step: torch.Tensor
    """int64[W]: the host step at which each window began."""

    @property
    def features(self) -> int:
        return len(self.generation)


def lives_now(lives: FeatureLives, W_dec_FD: torch.Tensor) -> Lives:
    """What a trainer knows now; copies."""
    cosine_F = lives.look_for_turned(W_dec_FD)
    used = slice(0, lives.windows)
    return Lives(
        lives.generation_F.clone(),
        lives.born_step_F.clone(),
        lives.born_host_step_F.clone(),
        lives.born_rows_F.clone(),
        lives.turned_host_step_F.clone(),
        cosine_F,
        lives.energy_WF[used].cpu().clone(),
        lives.window_rows_W[used].clone(),
        lives.window_step_W[used].clone(),
    )


def write_lives(folder: Path, lives: Lives) -> None:
    """Write the file into `folder`. Raises CheckpointError: the disk refused."""
    write_tensors(folder / LIVES_FILE, vars(lives))


def read_lives(folder: Path) -> Lives | None:
    """The lives in a checkpoint; None where an earlier version, or another tool, wrote it.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / LIVES_FILE
    if not is_file(path):
        return None
    found = read_tensors(path)
    try:
        lives = Lives(**found)
    except TypeError:
        raise CheckpointError(path, f"has tensors {sorted(found)}") from None
    per_feature = (lives.generation, lives.born_step, lives.born_host_step, lives.born_rows,
                   lives.turned_host_step, lives.birth_cosine)  # fmt: skip
    windows = len(lives.window_rows) if lives.window_rows.ndim == 1 else -1
    if (
        any(one.shape != (lives.features,) for one in per_feature)
        or lives.energy.shape != (windows, lives.features)
        or lives.window_step.shape != (windows,)
        or any(one.is_floating_point() for one in (*per_feature[:-1], lives.window_rows))
        or any(
            bool((one < 0).any()) for one in (*per_feature[:-2], lives.energy, lives.window_rows)
        )
        or bool((lives.turned_host_step < NOT_TURNED).any())
    ):
        raise CheckpointError(path, "its tensors are no lives of one SAE")
    return lives
