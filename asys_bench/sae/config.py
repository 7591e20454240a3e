"""Everything that can be set for the SAE of one hook point."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator

from asys_bench.contracts.torch_internals import cpu_multiplies_bfloat16
from asys_bench.sae.kernels.native import kernels

TOPK_FAMILY = ("topk", "batchtopk", "matryoshka", "skip_transcoder", "crosscoder")
"""Architectures whose sparsity is k."""
LEARN_A_THRESHOLD = TOPK_FAMILY[1:]
"""Architectures that choose over a batch, and by a running threshold afterwards."""
PENALISED = ("relu", "jumprelu", "gated")
"""Architectures whose sparsity a penalty leaves."""
AUXK_WORKS = (*TOPK_FAMILY, "jumprelu")
OF_SEVERAL_HOOKS = ("skip_transcoder", "crosscoder")
"""Architectures whose rows are those of more than one hook."""
MATRYOSHKA_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


class SAEConfig(BaseModel, extra="forbid", frozen=True):
    """One SAE and how it is trained. Rows are activation vectors (one per token or sample)."""

    architecture: Literal[
        "topk",
        "batchtopk",
        "matryoshka",
        "jumprelu",
        "gated",
        "relu",
        "skip_transcoder",
        "crosscoder",
    ] = Field(
        "topk",
        description="topk: exactly k active features per row; batchtopk: k on average; matryoshka: "
        "batchtopk over nested dictionaries; jumprelu: learnt thresholds, L0 penalty; gated: "
        "separate gates, L1 penalty; relu: L1 penalty; skip_transcoder: batchtopk from one hook to "
        "another with a linear skip (needs `transcoders`); crosscoder: batchtopk over the rows of "
        "several hooks at once (needs `crosscoders`).",
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
        16,
        ge=1,
        le=4096,
        description="topk: active features per row; batchtopk, matryoshka, skip_transcoder, "
        "crosscoder: their mean. 1..min(4096, d_sae).",
    )
    hook_widths: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        description="crosscoder: columns of each hook's rows. The trainer fills it in when the first "
        "rows come.",
    )
    matryoshka_widths: tuple[int, ...] | None = Field(
        None,
        description="matryoshka: features of each nested dictionary, ascending to d_sae. Unset: "
        "1/16, 1/8, 1/4, 1/2 and all of d_sae.",
    )
    l1_coefficient: float = Field(
        4.0,
        ge=0,
        le=1e6,
        description="relu, gated: weight of sum(f) against the squared error of a row of "
        "squared norm ~d_in, 0..1e6. With target_l0: where the controller starts.",
    )
    l0_coefficient: float = Field(
        1.0,
        ge=0,
        le=1e6,
        description="jumprelu: weight of each active feature against the squared error of a row of "
        "squared norm ~d_in, 0..1e6. With target_l0: where the controller starts.",
    )
    bandwidth: float = Field(
        0.4,
        gt=0,
        le=100,
        description="jumprelu: width of the window around a threshold whose rows move it, (0, 100]; "
        "pre-activations have unit variance at the start. Narrower is less biased and noisier.",
    )
    sparsity_warmup_steps: int = Field(
        10,
        ge=0,
        description="relu, jumprelu, gated: steps over which the penalty rises linearly from 0.",
    )
    target_l0: float | None = Field(
        None,
        gt=0,
        description="relu, jumprelu, gated: mean active features per row that a controller steers "
        "the penalty to, (0, d_sae]. Unset: the coefficient is constant.",
    )
    start: Literal["rows", "random"] = Field(
        "rows",
        description="Directions that features begin at. rows: of the first rows (see data_start); "
        "random: drawn from `seed` alone.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Adam's peak step size, (0, 1]. Unset: 1.2e-2 sqrt(2048 / d_sae) "
        "min(1, batch_rows / 4096)^(1/4), see schedule.",
    )
    lr_warmup_steps: int = Field(
        10, ge=0, description="Steps over which the learning rate rises linearly from 0."
    )
    lr_half_steps: float | None = Field(
        50,
        gt=0,
        description="After warm-up the rate falls as 1 / sqrt(1 + steps / lr_half_steps), to "
        "lr_min_ratio at the lowest: right for a stream of any length, > 0. null: constant.",
    )
    total_steps: int | None = Field(
        None,
        ge=1,
        description="Steps of the whole run where they are known, >= 1: over the last fifth the rate "
        "falls to lr_min_ratio of what it was and no dead feature is resampled. Unset: a stream.",
    )
    lr_min_ratio: float = Field(0.1, ge=0, le=1, description="Lowest rate / peak rate, 0..1.")
    batch_rows: int = Field(
        1024,
        ge=1,
        le=1 << 20,
        description="Rows per optimizer step, 1..2^20. Of a live trainer: left at its default, "
        "`asys-run train` takes 512.",
    )
    buffer_rows: int = Field(
        32768,
        ge=1,
        le=1 << 26,
        description="Rows in the shuffle reservoir, batch_rows..2^26; 4 x d_in bytes each.",
    )
    min_buffer_fill_ratio: float = Field(
        0.25, ge=0, le=1, description="Share of buffer_rows present before the first step, 0..1."
    )
    max_row_age_versions: int | None = Field(
        None,
        ge=0,
        description="Rows captured more than this many weight updates of the host ago are dropped "
        "from the reservoir instead of trained on. Unset: any age.",
    )
    passes: float = Field(
        4.0,
        gt=0,
        le=1000,
        description="Budget: at most this many trained rows per incoming row, (0, 1000]. Of a live "
        "trainer: `asys-run train` trains on each row once per epoch.",
    )
    held_out_fraction: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of each packet's rows, one after the other, that are only evaluated on, "
        "[0, 1).",
    )
    held_out_rows: int = Field(
        4096, ge=1, le=1 << 22, description="Most recent held-out rows kept, 1..2^22."
    )
    window_rows: int = Field(
        65_536,
        ge=1,
        description="Trained rows per window of the windowed FVU, >= 1.",
    )
    dead_after_rows: int | None = Field(
        None,
        ge=1,
        description="A feature silent for this many trained rows is dead, >= 1 row. Unset: the rows in "
        "which it is active 64 times if all features are alike (64 d_sae / k), at least 10,000; 50,000 "
        "where neither k nor `target_l0` says how many are.",
    )
    dead_policy: Literal["auto", "auxk", "resample", "none"] = Field(
        "auto",
        description="What is done for dead features. auto: resample. auxk works for all but relu and "
        "gated.",
    )
    aux_k_coefficient: float = Field(
        1 / 32, ge=0, le=10, description="auxk: weight of the AuxK loss against the error, 0..10."
    )
    aux_k: int | None = Field(
        None, ge=1, description="auxk: dead features per row in the AuxK loss. Unset: d_in / 2."
    )
    resample_every_steps: int = Field(
        500,
        ge=1,
        description="Longest gap between two resamplings of dead features, in steps, >= 1; it begins "
        "at 10 and grows with the steps taken.",
    )
    normalize: Literal["none", "std", "norm"] = Field(
        "std",
        description="What the SAE sees. std: rows centred and scaled to E||x - mean||^2 = d_in, "
        "following the drift of the host; norm: scaled to E||x|| = sqrt(d_in) (SAELens's "
        "expected_average_only_in); none: rows as they come. Folded into the weights on export.",
    )
    outliers: Literal["auto", "skip", "keep"] = Field(
        "auto",
        description="Rows of far larger norm than the others, such as attention sinks. auto: they are "
        "not trained on and pass through the SAE unchanged where they are a mode of their own: on "
        "text at most 25 % of the rows with hardly any row between them and the others, elsewhere at "
        "most 2 %, 30 times the median norm or more and nearly one vector; a heavy tail stays. skip: "
        "always. keep: never.",
    )
    outlier_ratio: float = Field(
        10.0,
        ge=2,
        le=1e6,
        description="outliers: norm from which a row is one, as a multiple of the running median of "
        "the norms, 2..1e6.",
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
    rollback_after_skips: int = Field(
        5,
        ge=1,
        description="Steps in a row without a finite loss and gradient after which the SAE goes back "
        "to its last good state, >= 1. Non-finite weights go back at once.",
    )
    good_state_steps: int = Field(
        200, ge=1, description="Steps between two copies of the last good state, >= 1 (in memory)."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Type of the encoder product that proposes features in training. bfloat16 takes "
        "a half to a quarter of the time on CPUs that multiply it (AMX, AVX512_BF16) and on GPUs, and "
        "what it proposes is decided by float32 values: on a CPU exactly as without it. auto: bfloat16 "
        "on such devices. Weights, gradients and checkpoints are float32.",
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="Seed of initialisation and shuffling.")
    threads: int | None = Field(
        1,
        ge=1,
        le=1024,
        description="Threads of a training step, 1..1024; null: torch's own choice. More than the "
        "cores left free by the host slows both.",
    )
    checkpoint_interval_s: float = Field(
        30.0,
        gt=0,
        description="Seconds between checkpoints, > 0. Kept by the owner of the trainer.",
    )
    checkpoint_keep: int = Field(
        2, ge=1, le=1000, description="Checkpoints kept per hook, 1..1000."
    )
    checkpoint_keep_every: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Besides the last `checkpoint_keep`, every N-th checkpoint is kept for good: "
        "the SAE's history, for analysis. They are whole, and nothing deletes them. null: none.",
    )
    checkpoint_buffer: bool = Field(
        True,
        description="Write the reservoir too: resume is then bit-exact; otherwise it fills up again.",
    )

    @model_validator(mode="after")
    def _relations(self) -> Self:
        name = self.architecture
        if self.buffer_rows < self.batch_rows:
            raise ValueError(
                f"buffer_rows {self.buffer_rows} is less than batch_rows {self.batch_rows}; "
                "a batch is drawn from the buffer without replacement"
            )
        if self.d_sae is not None and name in TOPK_FAMILY and self.k > self.d_sae:
            raise ValueError(f"k {self.k} is more than d_sae {self.d_sae}")
        if self.dead_policy == "auxk" and name not in AUXK_WORKS:
            raise ValueError(
                f"dead_policy auxk needs one of {', '.join(AUXK_WORKS)}, not {name!r}; "
                "valid here: auto, resample, none"
            )
        if self.target_l0 is not None and name not in PENALISED:
            raise ValueError(
                f"target_l0 steers the penalty of {', '.join(PENALISED)}; {name!r} is sparse by k"
            )
        if self.target_l0 is not None and self.d_sae is not None and self.target_l0 > self.d_sae:
            raise ValueError(f"target_l0 {self.target_l0:g} is more than d_sae {self.d_sae}")
        if self.matryoshka_widths is not None:
            self._check_widths(self.matryoshka_widths)
        if name in OF_SEVERAL_HOOKS and self.normalize == "norm":
            raise ValueError(
                f"normalize norm keeps one scale for all rows; {name} has one for each hook: use std "
                "or none"
            )
        if self.hook_widths is not None and name != "crosscoder":
            raise ValueError(f"hook_widths needs crosscoder, not {name!r}")
        return self

    def _check_widths(self, widths: tuple[int, ...]) -> None:
        if self.architecture != "matryoshka":
            raise ValueError(f"matryoshka_widths needs matryoshka, not {self.architecture!r}")
        ascending = all(a < b for a, b in itertools.pairwise(widths))
        if not widths or widths[0] < 1 or not ascending or self.d_sae != widths[-1]:
            raise ValueError(
                f"matryoshka_widths {list(widths)} must ascend from at least 1 to d_sae "
                f"{self.d_sae}; set d_sae too"
            )

    def features(self, d_in: int) -> int:
        """d_sae for rows of width `d_in`.

        Raises:
            ValueError: fewer features than k or target_l0.
        """
        d_sae = self.d_sae or max(2, math.ceil(self.expansion_factor * d_in))
        if self.architecture in TOPK_FAMILY and self.k > d_sae:
            raise ValueError(
                f"k {self.k} is more than d_sae {d_sae} (d_in {d_in}); lower k or raise d_sae"
            )
        if self.target_l0 is not None and self.target_l0 > d_sae:
            raise ValueError(
                f"target_l0 {self.target_l0:g} is more than d_sae {d_sae} (d_in {d_in}); lower it or "
                "raise d_sae"
            )
        return d_sae

    def prefix_widths(self, d_sae: int) -> tuple[int, ...]:
        """matryoshka: the cumulative widths for `d_sae` features, the last one d_sae."""
        if self.matryoshka_widths is not None:
            return self.matryoshka_widths
        return tuple(sorted({max(1, round(share * d_sae)) for share in MATRYOSHKA_SHARES}))

    @property
    def sparsity_coefficient(self) -> float:
        """Where the weight of the penalty starts."""
        return self.l0_coefficient if self.architecture == "jumprelu" else self.l1_coefficient

    @property
    def wanted_l0(self) -> float | None:
        """Mean active features per row that this configuration asks for, where it does."""
        return float(self.k) if self.architecture in TOPK_FAMILY else self.target_l0

    def dead_after(self, d_sae: int) -> int:
        """`dead_after_rows`, or the default for `d_sae` features."""
        if self.dead_after_rows is not None:
            return self.dead_after_rows
        if self.wanted_l0 is None:
            return 50_000
        return max(10_000, round(64 * d_sae / self.wanted_l0))

    @property
    def resolved_dead_policy(self) -> Literal["auxk", "resample", "none"]:
        return "resample" if self.dead_policy == "auto" else self.dead_policy

    @property
    def rough_products(self) -> bool:
        """Whether the encoder's product is bfloat16 here. `auto` where it pays and float32 decides all the
        same, as the compiled kernels see to."""
        pays = cpu_multiplies_bfloat16() and kernels() is not None
        return self.dtype == "bfloat16" or (self.dtype == "auto" and pays)

    @property
    def work_threads(self) -> int:
        """Threads of a training step."""
        return torch.get_num_threads() if self.threads is None else self.threads

    def apply_threads(self) -> None:
        """Set torch's thread count (process-wide); for the owner of the process to call.

        The compiled kernels bring their own threads, beside which torch's team would only spin.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads if kernels() is None else 1)
