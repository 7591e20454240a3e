"""Everything that can be set for the SAE of one hook point."""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator


class SAEConfig(BaseModel, extra="forbid", frozen=True):
    """One SAE and how it is trained. Rows are activation vectors (one per token or sample)."""

    architecture: Literal["topk", "relu"] = Field(
        "topk", description="topk: exactly k active features per row; relu: L1-penalised ReLU."
    )
    d_sae: int | None = Field(
        None,
        ge=2,
        le=1 << 24,
        description="Number of features, 2..2^24. Unset: expansion_factor x width of the rows.",
    )
    expansion_factor: float = Field(
        8.0, gt=0, le=1024, description="d_sae / d_in when d_sae is unset, (0, 1024]."
    )
    k: int = Field(
        16, ge=1, le=4096, description="topk: active features per row, 1..min(4096, d_sae)."
    )
    l1_coefficient: float = Field(
        1.0,
        ge=0,
        le=1e6,
        description="relu: weight of sum(f) against the squared error of a row of "
        "squared norm ~d_in, 0..1e6. With target_l0: where the controller starts.",
    )
    l1_warmup_steps: int = Field(
        200, ge=0, description="relu: steps over which the L1 weight rises linearly from 0."
    )
    target_l0: float | None = Field(
        None,
        gt=0,
        description="relu: mean active features per row that a controller steers l1_coefficient "
        "to, (0, d_sae]. Unset: l1_coefficient is constant.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Adam's peak step size, (0, 1]. Unset: 8e-4 / sqrt(d_sae / 2^14), see schedule.",
    )
    lr_warmup_steps: int = Field(
        50, ge=0, description="Steps over which the learning rate rises linearly from 0."
    )
    lr_decay_steps: int | None = Field(
        None,
        ge=1,
        description="Steps after warm-up over which the rate falls linearly to lr_min_ratio of its "
        "peak, >= 1. Unset: constant, as a stream without an end wants it.",
    )
    lr_min_ratio: float = Field(0.1, ge=0, le=1, description="Final rate / peak rate, 0..1.")
    batch_rows: int = Field(1024, ge=1, le=1 << 20, description="Rows per optimizer step, 1..2^20.")
    buffer_rows: int = Field(
        32768,
        ge=1,
        le=1 << 26,
        description="Rows in the shuffle reservoir, batch_rows..2^26; 4 x d_in bytes each.",
    )
    min_buffer_fill_ratio: float = Field(
        0.25, ge=0, le=1, description="Share of buffer_rows present before the first step, 0..1."
    )
    passes: float = Field(
        4.0,
        gt=0,
        le=1000,
        description="Budget: at most this many trained rows per incoming row, (0, 1000].",
    )
    held_out_fraction: float = Field(
        0.05, ge=0, lt=1, description="Share of packets that are only evaluated on, [0, 1)."
    )
    held_out_rows: int = Field(
        4096, ge=1, le=1 << 22, description="Most recent held-out rows kept, 1..2^22."
    )
    dead_after_rows: int = Field(
        50_000, ge=1, description="A feature silent for this many trained rows is dead, >= 1 row."
    )
    dead_policy: Literal["auto", "auxk", "resample", "none"] = Field(
        "auto",
        description="What is done for dead features. auto: auxk for topk, resample for relu. "
        "auxk works for topk only.",
    )
    aux_k_coefficient: float = Field(
        1 / 32, ge=0, le=10, description="topk: weight of the AuxK loss against the error, 0..10."
    )
    aux_k: int | None = Field(
        None, ge=1, description="topk: dead features per row in the AuxK loss. Unset: d_in / 2."
    )
    resample_every_steps: int = Field(
        500, ge=1, description="Steps between two resamplings of dead features, >= 1."
    )
    normalize: Literal["none", "std", "norm"] = Field(
        "std",
        description="What the SAE sees. std: rows centred and scaled to E||x - mean||^2 = d_in, "
        "following the drift of the host; norm: scaled to E||x|| = sqrt(d_in) (SAELens's "
        "expected_average_only_in); none: rows as they come. Folded into the weights on export.",
    )
    normalizer_window_rows: int = Field(
        65_536,
        ge=1,
        description="The running mean and scale are of about this many most recent rows, >= 1.",
    )
    gradient_clip_norm: float | None = Field(
        1.0,
        gt=0,
        description="Global L2 norm that gradients are scaled down to. Unset: no clipping.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Type of the encoder product that selects features in training. bfloat16 is "
        "faster with AMX or AVX512-BF16, slower elsewhere; weights and values stay float32.",
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="Seed of initialisation and shuffling.")
    threads: int | None = Field(
        1,
        ge=1,
        le=1024,
        description="torch threads of the worker, 1..1024; null: torch's own choice. More than the "
        "cores left free by the host slows both: the threads spin at barriers.",
    )
    checkpoint_interval_s: float = Field(
        30.0,
        gt=0,
        description="Seconds between checkpoints, > 0. Kept by the owner of the trainer.",
    )
    checkpoint_keep: int = Field(
        2, ge=1, le=1000, description="Checkpoints kept per hook, 1..1000."
    )
    checkpoint_buffer: bool = Field(
        True,
        description="Write the reservoir too: resume is then bit-exact; otherwise it fills up again.",
    )

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.buffer_rows < self.batch_rows:
            raise ValueError(
                f"buffer_rows {self.buffer_rows} is less than batch_rows {self.batch_rows}; "
                "a batch is drawn from the buffer without replacement"
            )
        if self.d_sae is not None and self.architecture == "topk" and self.k > self.d_sae:
            raise ValueError(f"k {self.k} is more than d_sae {self.d_sae}")
        if self.dead_policy == "auxk" and self.architecture != "topk":
            raise ValueError(
                f"dead_policy auxk needs architecture topk, not {self.architecture!r}; "
                "valid here: auto, resample, none"
            )
        if self.target_l0 is not None and self.architecture != "relu":
            raise ValueError(
                f"target_l0 steers the L1 weight of relu; {self.architecture!r} is sparse by k"
            )
        return self

    def features(self, d_in: int) -> int:
        """d_sae for rows of width `d_in`.

        Raises:
            ValueError: fewer features than k.
        """
        d_sae = self.d_sae or max(2, math.ceil(self.expansion_factor * d_in))
        if self.architecture == "topk" and self.k > d_sae:
            raise ValueError(
                f"k {self.k} is more than d_sae {d_sae} (d_in {d_in}); lower k or raise d_sae"
            )
        return d_sae

    @property
    def resolved_dead_policy(self) -> Literal["auxk", "resample", "none"]:
        if self.dead_policy == "auto":
            return "auxk" if self.architecture == "topk" else "resample"
        return self.dead_policy

    def apply_threads(self) -> None:
        """Set torch's thread count (process-wide); for the owner of the process to call."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
