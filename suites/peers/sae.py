"""sae_peer_*: our trainer against a peer's stock trainer on the same rows, both in every round.

Each trains in a process of its own with equal threads; who goes first alternates with the round's
seed. Ratios are taken within the round. A peer that is not installed makes the case unavailable,
with the reason, and fails nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field

from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioError,
    ScenarioPlugin,
)
from asys_bench.harness.scenarios.sae_synthetic import METRICS as OWN_METRICS
from asys_bench.harness.scenarios.sae_synthetic import (
    RecoveryOptions,
    record,
    trainer_spec,
    write_synthetic,
)
from asys_bench.harness.scenarios.sae_training import TrainingError, TrainingOutcome

from .trainers import train, unavailable


class PeerOptions(RecoveryOptions):
    """`params` of a sae_peer case."""

    architecture: str = Field(
        default="topk",
        description="topk; with sae_lens and dictionary_learning batchtopk; with sae_lens also "
        "matryoshka, jumprelu, gated and relu, ours steered to an L0 of k",
    )
    peer: dict[str, Any] = Field(default_factory=dict, description="the peer's own settings")


def runner(peer: str) -> Callable[[RoundContext], None]:
    """A scenario's `run` for one peer: make the rows, train both, record ours and the ratios."""
    return lambda context: _run(context, peer)


def _run(context: RoundContext, peer: str) -> None:
    options = context.options
    assert isinstance(options, PeerOptions)
    write_synthetic(context.scratch, options)
    settings = {"asys": options.sae, peer: options.peer}
    order = [*settings] if context.seed % 2 else [*reversed(settings)]
    found: dict[str, TrainingOutcome] = {}
    try:
        with context.timed():
            for trainer in order:
                spec = trainer_spec(context, options, trainer, settings[trainer])
                found[trainer] = train(spec, options.timeout_s)
    except TrainingError as error:
        raise ScenarioError(str(error)) from error
    ours, theirs = found["asys"], found[peer]
    record(context, ours)
    context.value("peer_rows_per_s", theirs.rows_per_s)
    context.value("peer_fvu", theirs.fvu)
    context.value("peer_l0", theirs.l0)
    if theirs.mmcs is not None:
        context.value("peer_mmcs", theirs.mmcs)
    context.value("speed_over_peer", ours.rows_per_s / theirs.rows_per_s)
    context.value("fvu_over_peer", ours.fvu / theirs.fvu)


METRICS = {
    **OWN_METRICS,
    "peer_rows_per_s": MetricSpec("higher", MetricKind.ROUND, "the peer's rows per second"),
    "peer_fvu": MetricSpec("lower", MetricKind.ROUND, "the peer's FVU on the same held-out rows"),
    "peer_l0": MetricSpec("lower", MetricKind.ROUND, "the peer's active features per row"),
    "peer_mmcs": MetricSpec("higher", MetricKind.ROUND, "the peer's mean max cosine similarity"),
    "speed_over_peer": MetricSpec("higher", MetricKind.ROUND, "rows per second over the peer's"),
    "fvu_over_peer": MetricSpec("lower", MetricKind.ROUND, "FVU over the peer's"),
}


def _plugin(trainer: str, shown: str) -> ScenarioPlugin:
    return ScenarioPlugin(
        name=f"sae_peer_{trainer}",
        summary=f"our SAE trainer against {shown}'s on the same rows",
        options=PeerOptions,
        takes="nothing",
        metrics=METRICS,
        run=runner(trainer),
        unavailable=lambda: unavailable(trainer),
    )


sae_lens = _plugin("sae_lens", "SAELens")
dictionary_learning = _plugin("dictionary_learning", "dictionary_learning")
sparsify = _plugin("sparsify", "sparsify")
