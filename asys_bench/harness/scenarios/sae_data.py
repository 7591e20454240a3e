"""The files that SAE trainings read: rows with a known dictionary, made from a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from pydantic import Field

from asys_bench.contracts.scenario import ScenarioOptions
from asys_bench.harness.scenarios.sae_training import HELD_OUT_FILE, TRAIN_FILE, TRUTH_FILE
from asys_bench.sae.evaluation import SyntheticFeatures

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
