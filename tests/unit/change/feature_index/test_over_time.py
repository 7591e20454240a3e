"""Activations over time in a byte a cell, and when each feature fired last."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asys_bench.change.feature_index.byte_counts import add_counts, coded, join_pairs
from asys_bench.change.feature_index.index import Index
from asys_bench.rundir.feature_index import FeatureIndex
from asys_bench.rundir.feature_index_layout import (
    BYTE_COUNTS,
    HEAT_OCTAVES,
    HEAT_WINDOWS,
    LATEST_FILE,
    Sizes,
)
from asys_bench.rundir.feature_latest import Firing, latest_firing
from asys_bench.rundir.live_run import ReadingError

from .feature_rig import HOOK, Fed, identity_sae, write_sae

WIDTH = 12


def test_counts_are_unbiased_and_near_their_truth() -> None:
    """4,000 counters take 1,000 weights of 1 to 5 each; the seed is fixed."""
    draw = np.random.default_rng(0)
    codes = np.zeros(4000, np.uint8)
    total = np.zeros(4000)
    for turn in range(1000):
        weight = draw.integers(1, 6, 4000).astype(float)
        add_counts(codes, np.arange(4000), weight, np.uint64(turn * 0x9E3779B97F4A7C15 % 2**64))
        total += weight
    ratio = BYTE_COUNTS[codes] / total
    assert ratio.mean() == pytest.approx(1.0, abs=0.01)
    assert 0.1 < ratio.std() < 0.2  # sqrt(a / 2) = 0.177


def test_small_counts_are_exact_enough_and_large_ones_stop() -> None:
    assert coded(np.zeros(3), np.full(3, 1e-9)).tolist() == [0, 0, 0]
    assert BYTE_COUNTS[1] == pytest.approx(1.0)
    assert coded(np.full(2, 1e12), np.array([0.1, 0.9])).tolist() == [255, 255]
    assert (np.diff(BYTE_COUNTS) > 0).all()


def test_joined_windows_hold_the_sum_of_both() -> None:
    draw = np.random.default_rng(1)
    codes = draw.integers(0, 200, (5000, HEAT_WINDOWS, HEAT_OCTAVES)).astype(np.uint8)
    before = BYTE_COUNTS[codes]
    join_pairs(codes, np.uint64(77))
    after = BYTE_COUNTS[codes]
    assert not after[:, HEAT_WINDOWS // 2 :].any()
    wanted = before[:, ::2] + before[:, 1::2]
    ratio = after[:, : HEAT_WINDOWS // 2] / np.maximum(wanted, 1)
    assert np.abs(ratio[wanted > 20] - 1).max() < 0.12  # one code up or down
    assert after.sum() == pytest.approx(before.sum(), rel=0.01)


def test_what_a_feature_comes_to_in_each_part_of_the_run_is_told_by_octaves(tmp_path) -> None:
    write_sae(tmp_path / "known", identity_sae(WIDTH))
    fed = Fed(tmp_path, saes={"*": str(tmp_path / "known")})
    generator = torch.Generator().manual_seed(0)
    batches = [
        torch.randn(256, WIDTH, generator=generator) * (1 + step // 64) for step in range(128)
    ]
    for step, x in enumerate(batches):
        fed.feed(x, host_step=step)
    index = fed.write()
    fed.page.close()
    begins, edges, counts = index.activations_over_time(3)
    assert begins.tolist() == list(range(0, 128, 8))
    assert np.allclose(edges[1:] / edges[:-1], 2.0)
    every = torch.stack(batches)[:, :, 3].numpy()
    for part in range(16):
        values = every[8 * part : 8 * part + 8]
        assert counts[part].sum() == pytest.approx((values > 0).sum(), rel=0.35)
    inside = np.histogram(every[:64][every[:64] > 0], edges)[0][1:]
    assert counts[:8].sum(0)[1:] == pytest.approx(inside, rel=0.35, abs=40)
    typical = [(counts[part] * np.log2(edges[:-1])).sum() / counts[part].sum() for part in (0, 15)]
    assert typical[1] - typical[0] == pytest.approx(1.0, abs=0.35)  # twice as strong


def test_a_feature_that_never_fired_has_no_such_history() -> None:
    index = Index(Sizes(WIDTH, 1, False))
    assert (index.columns["latest_step"] == -1).all()


def test_the_last_firing_is_told_before_the_index_is_written(tmp_path) -> None:
    write_sae(tmp_path / "known", identity_sae(WIDTH))
    fed = Fed(tmp_path, saes={"*": str(tmp_path / "known")})
    ids = torch.arange(40, 44)
    fed.text(ids, torch.arange(4), step=5)
    x = torch.full((4, WIDTH), -1.0)
    x[1, 2], x[3, 2] = 0.5, 0.25
    fed.feed(x, host_step=5, text=1)
    (hook,) = fed.worker._known()
    hook.settle()
    hook.write()
    index = FeatureIndex.open(tmp_path, HOOK)
    assert latest_firing(tmp_path, index, 2) == Firing(5, 0.25, 43)
    assert latest_firing(tmp_path, index, 3) is None
    x[3, 2] = 8.0
    fed.text(ids, torch.arange(4), step=9)
    fed.feed(x, host_step=9, text=1)
    hook.settle()
    hook.write_after_s = float("inf")  # as a large index waits for its turn
    hook.write_if_due(hook.latest_at_s + 1e9)
    assert latest_firing(tmp_path, index, 2) == Firing(9, 8.0, 43)
    assert FeatureIndex.open(tmp_path, HOOK).column("latest_step")[2] == 5
    path = tmp_path / "feature_index" / HOOK / LATEST_FILE
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ReadingError, match="latest"):
        latest_firing(tmp_path, index, 2)
    with pytest.raises(IndexError, match=f"there are {WIDTH}"):
        latest_firing(tmp_path, index, WIDTH)
    fed.worker.close()
    fed.page.close()
    assert not path.exists()
    assert latest_firing(tmp_path, FeatureIndex.open(tmp_path, HOOK), 2) == Firing(9, 8.0, 43)
