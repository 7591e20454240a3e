"""trainer_rows: rows per second that one SAE trainer takes in, normalises, shuffles and trains on."""

from __future__ import annotations

import time

import torch
from pydantic import Field

from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioError,
    ScenarioOptions,
    ScenarioPlugin,
)
from asys_bench.sae import SAEConfig, SAETrainer

PACKET_ROWS = 256


class TrainerOptions(ScenarioOptions):
    """`params` of a trainer_rows case."""

    width: int = Field(default=512, ge=2, le=16384, description="features per row")
    rows: int = Field(default=32768, ge=1024, description="rows trained on per timed round")
    threads: int = Field(default=1, ge=1, le=256, description="torch threads")
    sae: SAEConfig = Field(default_factory=SAEConfig, description="the SAE")


def run(context: RoundContext) -> None:
    """Fill the buffer, take steps until steady, then train on `rows` rows and count."""
    options = context.options
    assert isinstance(options, TrainerOptions)
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(context.seed)
    pool = torch.randn(16, PACKET_ROWS, options.width, generator=generator)
    trainer = SAETrainer(options.sae)
    packets = 0

    def feed_and_train(rows: int) -> int:
        """Ingest `rows` rows and train as far as their budget allows; rows trained."""
        nonlocal packets
        before = trainer.metrics.rows_trained
        for _ in range(max(1, rows // PACKET_ROWS)):
            trainer.ingest(pool[packets % len(pool)], (0, 0, packets))
            packets += 1
        trainer.train()
        return trainer.metrics.rows_trained - before

    for _ in range(200):
        if feed_and_train(options.sae.batch_rows):
            break
    else:
        feed_and_train(options.sae.buffer_rows)

    def warm() -> float:
        started = time.perf_counter()
        feed_and_train(2048)
        return time.perf_counter() - started

    context.warm_up(warm)
    with context.timed():
        started = time.perf_counter()
        trained = 0
        while trained < options.rows:
            more = feed_and_train(4096)
            if more == 0:
                raise ScenarioError("the trainer takes no steps; lower sae.min_buffer_fill_ratio")
            trained += more
        elapsed = time.perf_counter() - started
    context.value("rows_per_s", trained / elapsed)


plugin = ScenarioPlugin(
    name="trainer_rows",
    summary="rows per second through one SAE trainer",
    options=TrainerOptions,
    takes="nothing",
    metrics={"rows_per_s": MetricSpec("higher", MetricKind.ROUND, "rows trained on per second")},
    run=run,
)
