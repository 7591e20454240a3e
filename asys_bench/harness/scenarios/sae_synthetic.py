"""sae_synthetic: one of our trainers on rows with a known dictionary: speed, error, what it recovers."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioError,
    ScenarioPlugin,
)
from asys_bench.harness.scenarios.sae_data import SyntheticOptions, write_synthetic
from asys_bench.harness.scenarios.sae_training import (
    TrainerSpec,
    TrainingError,
    TrainingOutcome,
    train_in_process,
)


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
