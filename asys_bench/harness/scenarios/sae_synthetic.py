"""sae_synthetic: one of our trainers on rows with a known dictionary: speed, error, what it recovers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from pydantic import Field

from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioError,
    ScenarioOptions,
    ScenarioPlugin,
)
from asys_bench.harness.scenarios.sae_training import (
    HELD_OUT_FILE,
    TRAIN_FILE,
    TRUTH_FILE,
    TrainerSpec,
    TrainingError,
    TrainingOutcome,
    train_in_process,
)
from asys_bench.sae.evaluation import SyntheticFeatures

# The files that SAE trainings read: rows with a known dictionary, made from a seed.

BLOCK_ROWS = 65_536
HELD_OUT_ROWS = 16_384


class SyntheticOptions(ScenarioOptions):
    """The rows, and what every trainer makes of them."""

    features: int = Field(default=1024, ge=2, le=1 << 16, description="true directions")
    width: int = Field(default=256, ge=2, le=8192, description="features per row (d_in)")
    mean_l0: float = Field(default=16.0, gt=0, description="true features active per row, mean")
    data_seed: int = Field(default=0, ge=0, lt=1 << 31, description="of dictionary and rows")
    rows: int = Field(default=1_000_000, ge=1, description="rows trained on, each once")
    batch_rows: int = Field(default=4096, ge=1, le=1 << 20, description="rows per step")
    d_sae: int = Field(default=2048, ge=2, le=1 << 20, description="features of the SAE")
    k: int = Field(default=16, ge=1, le=4096, description="active features per row")
    threads: int = Field(default=2, ge=1, le=256, description="torch threads of each trainer")
    timeout_s: float = Field(default=900, gt=0, description="longest training, in seconds")


def write_synthetic(folder: Path, options: SyntheticOptions) -> None:
    """train.npy, held_out.npy and truth.npy; equal options give equal files."""
    truth = SyntheticFeatures(
        options.features, options.width, options.mean_l0, seed=options.data_seed
    )
    np.save(folder / TRUTH_FILE, truth.directions_GD.numpy())
    np.save(folder / HELD_OUT_FILE, truth.rows(HELD_OUT_ROWS, stream=1).numpy())
    shape = (options.rows, options.width)
    rows = open_memmap(folder / TRAIN_FILE, mode="w+", dtype=np.float32, shape=shape)
    for number, first in enumerate(range(0, options.rows, BLOCK_ROWS)):
        part = rows[first : first + BLOCK_ROWS]
        part[...] = truth.rows(len(part), stream=2 + number).numpy()
    rows.flush()


class RecoveryOptions(SyntheticOptions):
    """`params` of a sae_synthetic case."""

    architecture: str = Field(default="topk", description="of `SAEConfig`")
    sae: dict[str, Any] = Field(default_factory=dict, description="more fields of `SAEConfig`")


def run(context: RoundContext) -> None:
    """Make the rows, train in a process of its own, measure on held-out rows."""
    options = context.options
    assert isinstance(options, RecoveryOptions)
    write_synthetic(context.scratch, options)
    spec = trainer_spec(context, options, "asys", options.sae)
    try:
        with context.timed():
            outcome = train_in_process(spec, options.timeout_s)
    except TrainingError as error:
        raise ScenarioError(str(error)) from error
    record(context, outcome)


def trainer_spec(
    context: RoundContext, options: RecoveryOptions, trainer: str, settings: dict[str, Any]
) -> TrainerSpec:
    """What `trainer` is to do in this round, on the rows in the round's folder."""
    return TrainerSpec(
        trainer=trainer,
        folder=str(context.scratch),
        rows=options.rows,
        batch_rows=options.batch_rows,
        d_sae=options.d_sae,
        k=options.k,
        architecture=options.architecture,
        threads=options.threads,
        seed=context.seed % (1 << 31),
        settings=settings,
    )


def record(context: RoundContext, outcome: TrainingOutcome) -> None:
    """The figures that `METRICS` names."""
    context.value("rows_per_s", outcome.rows_per_s)
    context.value("fvu", outcome.fvu)
    context.value("l0", outcome.l0)
    context.value("dead_ratio", outcome.dead_ratio)
    if outcome.mmcs is not None and outcome.recovered_ratio is not None:
        context.value("mmcs", outcome.mmcs)
        context.value("recovered_ratio", outcome.recovered_ratio)


METRICS = {
    "rows_per_s": MetricSpec("higher", MetricKind.ROUND, "rows trained on per second"),
    "fvu": MetricSpec("lower", MetricKind.ROUND, "fraction of variance unexplained, held out"),
    "l0": MetricSpec("lower", MetricKind.ROUND, "active features per held-out row"),
    "dead_ratio": MetricSpec("lower", MetricKind.ROUND, "features silent on all held-out rows"),
    "mmcs": MetricSpec("higher", MetricKind.ROUND, "mean max cosine similarity to the truth"),
    "recovered_ratio": MetricSpec("higher", MetricKind.ROUND, "true features with cosine > 0.9"),
}

plugin = ScenarioPlugin(
    name="sae_synthetic",
    summary="an SAE on rows with a known dictionary: speed, error and recovery",
    options=RecoveryOptions,
    takes="nothing",
    metrics=METRICS,
    run=run,
)
