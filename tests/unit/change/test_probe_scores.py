"""AUC and R2 of held-out rows, and that their intervals know how rows depend on each other."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest

from asys_bench.change.probe.blocks import BlockRule, is_held_out
from asys_bench.change.probe.scores import auc, mean_auc, r_squared
from asys_bench.contracts.coin import hashed


def ids(numbers):
    return hashed(np.asarray(numbers))


def ones(count):
    return np.ones(count)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_auc_is_that_of_all_pairs_with_ties_half(weighted):
    draw = np.random.default_rng(0)
    score = draw.integers(0, 8, 60).astype(float)
    positive = draw.random(60) < 0.4
    weight = draw.integers(1, 5, 60).astype(float) if weighted else ones(60)
    pairs = sum(
        weight[i] * weight[j] * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
        for i in np.flatnonzero(positive)
        for j in np.flatnonzero(~positive)
    )
    expected = pairs / (weight[positive].sum() * weight[~positive].sum())
    assert auc(score, positive, weight, ids(range(60))).value == pytest.approx(expected)


DRAWS = 2000 if os.environ.get("ASYS_SOAK") == "1" else 150


def planted(draw, blocks, rows, effect):
    """Scores of two classes; rows of a block share most of their noise and their class."""
    of_block = draw.random(blocks) < 0.5
    noise = draw.normal(size=blocks)
    block = np.repeat(np.arange(blocks), rows)
    score = noise[block] + 0.2 * draw.normal(size=blocks * rows) + effect * of_block[block]
    return score, of_block[block], ids(block)


def covers(blocked):
    draw, hits = np.random.default_rng(1), 0
    for _ in range(DRAWS):
        score, positive, block = planted(draw, 60, 20, 1.0)
        truth = 0.5 * (1 + math.erf(1.0 / math.sqrt(2 * (1 + 0.04)) / math.sqrt(2)))
        block = block if blocked else ids(range(len(score)))
        found = auc(score, positive, ones(len(score)), block)
        hits += found.low <= truth <= found.high
    return hits / DRAWS


@pytest.mark.stress
def test_intervals_over_blocks_hold_where_intervals_over_rows_do_not():
    assert 0.90 <= covers(blocked=True) <= 0.99
    assert covers(blocked=False) < 0.6


def test_the_auc_of_many_classes_is_the_mean_of_each_against_the_others():
    score = np.eye(3)[[0, 1, 2, 0, 1, 2, 0, 0]]
    classes = np.array([0, 1, 2, 0, 1, 2, 1, 2])
    found = mean_auc(score, classes, ones(8), ids(range(8)))
    parts = [auc(score[:, c], classes == c, ones(8), ids(range(8))).value for c in range(3)]
    assert found.value == pytest.approx(np.mean(parts))
    assert found.blocks == 8
    assert math.isnan(mean_auc(score, np.zeros(8, dtype=int), ones(8), ids(range(8))).value)


def test_one_class_alone_has_no_auc_and_few_blocks_no_interval():
    assert math.isnan(auc(np.arange(9.0), np.ones(9, bool), ones(9), ids(range(9))).value)
    found = auc(np.arange(9.0), np.arange(9) > 4, ones(9), ids(np.arange(9) // 3))
    assert found.value == 1.0
    assert math.isnan(found.low)


def test_what_is_told_apart_without_an_error_has_an_interval_all_the_same():
    found = auc(np.arange(40.0), np.arange(40) >= 20, ones(40), ids(range(40)))
    assert found.value == 1.0
    assert found.low == pytest.approx(1 - 3 / 20)
    assert found.high == 1.0


def test_r2_is_one_minus_the_share_of_the_variance_that_is_left():
    value = np.array([1.0, 2.0, 3.0, 4.0])
    assert r_squared(value, value, ones(4), ids(range(4))).value == 1.0
    assert r_squared(np.full(4, 2.5), value, ones(4), ids(range(4))).value == 0.0
    assert r_squared(value[::-1], value, ones(4), ids(range(4))).value == pytest.approx(-3.0)
    assert math.isnan(r_squared(value, ones(4), ones(4), ids(range(4))).value), "nothing varies"


@pytest.mark.stress
def test_the_interval_of_r2_holds_over_blocks():
    draw, hits = np.random.default_rng(2), 0
    for _ in range(DRAWS):
        block = np.repeat(np.arange(80), 10)
        signal = draw.normal(size=80)[block]
        noise = draw.normal(size=80)[block]  # R2 of the truth is a half
        found = r_squared(signal, signal + noise, ones(800), ids(block))
        hits += found.low <= 0.5 <= found.high
    assert hits / DRAWS >= 0.88


# ---- blocks


def test_about_a_quarter_of_the_blocks_is_held_out_always_the_same_ones():
    side = is_held_out(ids(range(20_000)), seed=3)
    assert abs(side.mean() - 0.25) < 0.015
    assert np.array_equal(side, is_held_out(ids(range(20_000)), seed=3))
    assert not np.array_equal(side, is_held_out(ids(range(20_000)), seed=4))


def test_rows_of_an_episode_are_one_block_however_many_steps_apart():
    rule = BlockRule(None, 0)
    label = {"episode": np.array([7.0, 8.0])}
    blocks = [rule.of((0, step, 0, 0), 0, (2,), 0, np.arange(2), label) for step in range(5)]
    assert rule.kind == "episode"
    assert len({tuple(block) for block in blocks}) == 1
    assert blocks[0][0] != blocks[0][1]
    other = rule.of((0, 0, 0, 0), 1, (2,), 0, np.arange(2), label)
    assert not set(other) & set(blocks[0]), (
        "another attempt's episode of that number is another one"
    )
    (missing, there) = rule.of(
        (0, 9, 0, 0), 0, (2,), 0, np.arange(2), {"episode": np.array([np.nan, 8.0])}
    )
    assert there == blocks[0][1]
    assert missing not in blocks[0]


def test_tokens_of_a_sequence_are_one_block():
    rule = BlockRule(None, 0)
    blocks = rule.of((0, 5, 0, 0), 0, (2, 3), 0, np.arange(6), {})
    assert rule.kind == "sequence"
    assert len(set(blocks)) == 2
    assert len(set(blocks[:3])) == 1


def test_without_anything_that_tells_64_calls_in_a_row_are_one_block():
    rule = BlockRule(None, 0)
    blocks = [rule.of((0, 8 * call, 0, 0), 0, (8,), 0, np.arange(8), {})[0] for call in range(200)]
    assert rule.kind == "64 steps"
    assert [len(set(blocks[n : n + 64])) for n in (0, 64, 128)] == [1, 1, 1]
    assert len(set(blocks)) == 4
    rule.of((0, 2000, 0, 0), 0, (2,), 0, np.arange(2), {"episode": np.array([1.0, 1.0])})
    assert rule.kind == "episode", "it came later"


def test_a_padded_batch_whose_sequences_are_not_known_is_one_block():
    rule = BlockRule(None, 0)
    assert len(set(rule.of((0, 5, 0, 0), 0, (37,), 1, np.arange(37), {}))) == 1
    assert rule.kind == "call"
