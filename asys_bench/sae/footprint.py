"""What an SAE takes, from its configuration and the width of its rows: memory, disk, time per step.

Bytes follow from shapes alone. Time is measured, on the machine that will train: a few rows through a
product of the encoder's size.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from asys_bench.sae.config import SAEConfig
from asys_bench.sae.training.lives import WINDOWS

FLOAT = 4
ROW_EXTRA = 28
"""Weight, step, version and order of a row in the reservoir, in bytes."""
BLOCK_ROWS = 4096
"""Rows that wait at most before they are shuffled in (`trainer.BLOCK_ROWS`)."""
CONTEXT_BYTES = 512 << 20
"""A process's CUDA context, as a rule; it was not measured with this torch."""
BLOCK_BYTES = 512 << 20
"""Pre-activations that exist at once on a GPU at most (`sparse_kernels.BLOCK_BYTES`)."""
_VECTORS = {"jumprelu": 2, "gated": 3}
"""Parameters that have one entry per feature, where it is not only the encoder's bias."""
ENERGY_BYTES, COUNTS_BYTES = 4 * WINDOWS, 40
"""Of a feature's life (`training.lives`), besides the direction that it began with: the energies are where
the SAE is, counts and direction always in the machine's memory."""
_PROBE_ROWS, _PROBE_FEATURES = 64, 4096


@dataclass(frozen=True, slots=True)
class Footprint:
    """One SAE. d_out: width of a transcoder's target, else d_in."""

    d_in: int
    d_out: int
    d_sae: int
    weights_bytes: int
    optimizer_bytes: int
    """Adam's moments, the gradients, the features' lives, and the copy of the last good state."""
    host_lives_bytes: int
    """Of `optimizer_bytes`: what of the lives a trainer on a GPU has in the machine's memory too."""
    buffer_bytes: int
    """The shuffle reservoir and the rows that wait for it."""
    held_out_bytes: int
    checkpoint_bytes: int
    """One checkpoint on disk."""
    disk_bytes: int
    """All checkpoints that are kept, and the one that is being written."""
    step_bytes: int
    """On a GPU: two batches, and what exists at once of their pre-activations and gradients."""
    staging_bytes: int
    """For a GPU: page-locked memory that batches pass through."""

    @property
    def memory_bytes(self) -> int:
        """What the trainer holds while it trains; writing a checkpoint takes `weights_bytes` more."""
        return self.weights_bytes + self.optimizer_bytes + self.buffer_bytes + self.held_out_bytes

    @property
    def device_bytes(self) -> int:
        """What a trainer on a GPU holds there while it trains: the weights, the decoder of the last
        checkpoint, and a step. The process's CUDA context (`CONTEXT_BYTES`) comes on top, once."""
        decoder = FLOAT * self.d_sae * self.d_out
        return self.weights_bytes + self.device_optimizer_bytes + decoder + self.step_bytes

    @property
    def device_optimizer_bytes(self) -> int:
        """Of `device_bytes`: `optimizer_bytes` but for what stays in the machine's memory."""
        return self.optimizer_bytes - self.host_lives_bytes

    @property
    def host_bytes(self) -> int:
        """What a trainer on a GPU holds in the machine's memory."""
        return self.buffer_bytes + self.held_out_bytes + self.staging_bytes + self.host_lives_bytes


def footprint(
    config: SAEConfig, d_in: int, d_out: int | None = None, features: int | None = None
) -> Footprint:
    """The footprint of an SAE on rows of width `d_in`.

    features: those that are here, of an SAE whose others are at other ranks; None: all.

    Raises:
        ValueError: the configuration does not fit `d_in`.
    """
    d_sae = config.features(d_in) if features is None else features
    is_transcoder = config.architecture == "skip_transcoder"
    d_target = (d_out or d_in) if is_transcoder else d_in
    width = d_in + d_target if is_transcoder else d_in
    vectors = _VECTORS.get(config.architecture, 1)
    parameters = d_sae * (d_in + d_target + vectors) + d_target
    steps = FLOAT * (d_sae * (2 + vectors) + 1)  # of each row of a parameter
    if is_transcoder:
        parameters += d_in * d_target  # W_skip
        steps += FLOAT * d_target
    weights = FLOAT * parameters
    lives, born = d_sae * (ENERGY_BYTES + COUNTS_BYTES), 2 * d_sae * d_target
    rough = 2 * d_sae * d_in if config.rough_products else 0
    buffer = config.buffer_rows * (FLOAT * width + ROW_EXTRA)
    held_out = config.held_out_rows * (FLOAT * width + FLOAT)
    batch = FLOAT * width * config.batch_rows
    # pre-activations, what is compared of them, and (rough) their bfloat16 original
    pre_activations = 2 * min(BLOCK_BYTES, FLOAT * d_sae * config.batch_rows)
    checkpoint = (
        4 * weights + steps + lives + born + held_out + (buffer if config.checkpoint_buffer else 0)
    )
    return Footprint(
        d_in=d_in,
        d_out=d_target,
        d_sae=d_sae,
        weights_bytes=weights,
        # two moments, gradients, and a copy of weights and moments; steps, lives and a copy of both;
        # the directions that lives began with
        optimizer_bytes=6 * weights + 2 * (steps + lives) + born + rough,
        host_lives_bytes=2 * d_sae * COUNTS_BYTES + born,
        buffer_bytes=buffer + BLOCK_ROWS * FLOAT * width,
        held_out_bytes=held_out,
        checkpoint_bytes=checkpoint,
        step_bytes=6 * batch + pre_activations,
        staging_bytes=2 * batch,
        disk_bytes=(config.checkpoint_keep + 1) * checkpoint,
    )


def step_seconds(config: SAEConfig, d_in: int) -> float:
    """Seconds that a training step takes here at least, measured by a part of its encoder's product.

    The rest of a TopK step (sparse products, Adam) takes about as long again for large SAEs; dense
    architectures take three products. It costs a few milliseconds.

    Raises:
        ValueError: the configuration does not fit `d_in`.
    """
    d_sae = config.features(d_in)
    features, rows = min(d_sae, _PROBE_FEATURES), min(config.batch_rows, _PROBE_ROWS)
    dtype = torch.bfloat16 if config.rough_products else torch.float32
    table_FD = torch.zeros(features, d_in, dtype=dtype)
    rows_ND = torch.zeros(rows, d_in, dtype=dtype)
    torch.mm(rows_ND, table_FD.t())
    began = time.perf_counter()
    torch.mm(rows_ND, table_FD.t())
    took_s = time.perf_counter() - began
    return took_s * (config.batch_rows / rows) * (d_sae / features) / config.work_threads
