"""Timelines of SAEs whose features are known, over rows in which they switch on and off at known steps."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from asys_bench.change.reservoir.rows import ABOUT, ReservoirRows
from asys_bench.change.timeline.causes import LEAST_ROWS
from asys_bench.change.timeline.difference import Side, compared
from asys_bench.change.timeline.earlier import packed, unpacked
from asys_bench.change.timeline.firing import firing
from asys_bench.change.timeline.timeline import timeline_of
from asys_bench.change.timeline.twins import without_twins
from asys_bench.change.timeline.units import blocks_of, unit_rows, units_of
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.timeline_document import (
    FeatureLife,
    read_timeline,
    timeline_file,
    write_timeline,
)
from asys_bench.sae import SAEConfig, build_sae
from asys_bench.sae.checkpoint.lives import Lives

D = 24
RATE = 0.02


def known_sae(directions_FD: torch.Tensor, architecture: str = "jumprelu"):
    """Fires where a direction is there with a strength above 0.25."""
    sae = build_sae(SAEConfig(architecture=architecture, d_sae=len(directions_FD), k=6), D)
    with torch.no_grad():
        sae.W_dec.copy_(directions_FD)
        sae.W_enc.copy_(directions_FD.t())
        sae.b_dec.zero_()
        sae.encoder_bias.zero_()
        tensors = sae.state_dict()
        if "threshold" in tensors:
            tensors["threshold"].fill_(0.25)
    return sae.eval().requires_grad_(False)


def about(steps_N: np.ndarray, row_N: np.ndarray | None = None) -> np.ndarray:
    table = np.zeros(len(steps_N), ABOUT)
    table["host_step"], table["weight"], table["sequence"] = steps_N, 1.0, -1
    table["row"] = row_N if row_N is not None else np.arange(len(steps_N)) % 4
    return table


def stream(
    on: dict[int, tuple[float, float]], seed: int = 0, rows: int = 40_000, rate: float = RATE
):
    """Feature -> share of the run in which it is on; 4 rows a step. The others are always on."""
    draws = np.random.default_rng(seed)
    share_N = np.arange(rows) / rows
    active_NF = draws.random((rows, D)) < rate
    for feature, (start, end) in on.items():
        active_NF[:, feature] &= (start <= share_N) & (share_N < end)
    values = torch.from_numpy(active_NF * draws.uniform(0.5, 1.5, (rows, D)))
    return ReservoirRows(values.half(), about(np.arange(rows) // 4))


def found_of(timeline, feature):
    return next((one for one in timeline.lives if one.feature == feature), None)


@pytest.fixture(scope="module")
def planted():
    on = {3: (0.4, 1.0), 5: (0.7, 1.0), 8: (0.0, 0.6), 11: (0.3, 0.5), 13: (1.0, 1.0)}
    return timeline_of(known_sae(torch.eye(D)), None, stream(on))


def test_births_and_ends_are_found_at_their_steps_and_nothing_else_is(planted):
    born = {one.feature: one.born_step for one in planted.births}
    assert born.keys() == {3, 5, 11}
    for feature, share in ((3, 0.4), (5, 0.7), (11, 0.3)):
        assert born[feature] == pytest.approx(10_000 * share, abs=100)
        one = found_of(planted, feature)
        assert one.born_low <= one.born_step <= one.born_high
        assert one.cause == "open"
    ends = {one.feature: one.died_step for one in planted.lives if one.died_step is not None}
    assert ends == {8: pytest.approx(6000, abs=100), 11: pytest.approx(5000, abs=100)}
    assert planted.counts == {"always": 20, "born": 3, "gradual": 0, "turned": 0, "silent": 1}
    assert found_of(planted, 5).rate_after == pytest.approx(RATE, rel=0.15)


def test_the_rows_at_birth_are_the_first_strong_ones_after_it(planted):
    rows = found_of(planted, 3).rows
    assert len(rows) == 6
    assert all(4000 - 60 <= row.host_step <= 5200 for row in rows)
    assert [row.activation for row in rows] == sorted(
        (row.activation for row in rows), reverse=True
    )
    assert rows[0].activation > 1.3


def test_a_document_is_read_back_as_it_was_written(planted, tmp_path):
    timeline = replace(planted, label="a#b", hook="a", checkpoint="step_1")
    write_timeline(tmp_path, timeline)
    assert read_timeline(tmp_path, "a#b") == timeline
    with pytest.raises(ReadingError, match="no timeline of 'c' yet"):
        read_timeline(tmp_path, "c")
    path = timeline_file(tmp_path, "a#b")
    for damage in ({"schema": "x"}, {"rows": "many"}, {"lives": [{"feature": 1}]}):
        path.write_text(json.dumps(timeline.to_dict() | damage))
        with pytest.raises(ReadingError):
            read_timeline(tmp_path, "a#b")


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "relu", "gated", "batchtopk"])
def test_the_pass_finds_what_the_sae_encodes(architecture):
    generator = torch.Generator().manual_seed(1)
    sae = build_sae(SAEConfig(architecture=architecture, d_sae=64, k=4), D)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            if name not in ("W_enc", "W_dec"):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
            if name == "threshold":
                tensor.fill_(0.2)
    sae.outlier_norm = 7.0
    x_BD = torch.randn(300, D, generator=generator)
    x_BD[7] *= 10  # an outlier, which has no activations
    acts_BF = torch.zeros(300, 64)
    found = firing(sae, x_BD)
    for feature in range(64):
        acts_BF[found.rows_of(feature), feature] = torch.from_numpy(found.values_of(feature))
    assert torch.allclose(acts_BF, sae.encode(x_BD).detach(), atol=1e-6)
    assert not acts_BF[7].any()


def test_a_gain_is_what_the_error_grows_by_without_the_feature():
    sae = known_sae(torch.nn.functional.normalize(torch.eye(D) + 0.1, dim=1))
    rows = stream({}, rows=4000)
    found = firing(sae, rows.values)
    x_BD = rows.values[torch.from_numpy(found.rows_of(2))].float()
    acts_BF = sae.encode(x_BD)
    without_BF = acts_BF.clone()
    without_BF[:, 2] = 0
    full, less = (((x_BD - sae.decode(one)) ** 2).sum(1) for one in (acts_BF, without_BF))
    wanted_B = (less - full) / (x_BD - sae.b_dec).square().sum(1)
    assert np.allclose(found.gain[found.starts[2] : found.starts[3]], wanted_B, atol=1e-5)
    assert found.usefulness_of(2) == pytest.approx(float(wanted_B.mean()), abs=1e-5)
    assert firing(sae, rows.values[:0]).usefulness_of(2) == 0.0


def test_a_feature_that_fires_where_it_does_harm_counts_for_nothing():
    """The encoder of 4 reads 9 as well; its decoder writes 4 alone."""
    sae = known_sae(torch.eye(D))
    with torch.no_grad():
        sae.W_enc[9, 4] = 1.0
    found = firing(sae, stream({4: (0.5, 1.0)}).values)
    strong = found.strong()
    assert found.total[4] > 1.5 * strong.total[4]
    assert strong.rows_of(4).min() >= 20_000 - 1


def lives(features: int = D, **fields) -> Lives:
    zeros = torch.zeros(features, dtype=torch.int64)
    base = Lives(
        zeros, zeros, zeros, zeros, zeros - 1, torch.ones(features),
        torch.full((50, features), 20.0), torch.full((50,), 1000),
        torch.arange(50) * 200,
    )  # fmt: skip
    return replace(base, **fields)


def test_a_feature_that_moved_is_turned_and_one_that_was_taken_over_is_born():
    """All four are there from 0.4 on with the weights of now. 3 and 7 were as strong before with those of
    then; 3 and 9 come gradually, as what moves towards the weights of now does."""
    on = dict.fromkeys((3, 5, 7, 9), (0.4, 1.0))
    sae, rows = known_sae(torch.eye(D)), stream(on)
    share_N = torch.arange(len(rows)) / len(rows)
    grows_N = (0.5 + 0.5 * (share_N - 0.4) / 0.3).clamp(0.5, 1.0).half()
    rows.values[:, [3, 9]] *= grows_N.unsqueeze(1)
    energy = torch.full((50, D), 20.0)
    energy[:20, [5, 9]] = 0
    timeline = timeline_of(sae, lives(energy=energy), rows)
    verdicts = {feature: found_of(timeline, feature).verdict for feature in on}
    assert verdicts == {3: "turned", 5: "born", 7: "born", 9: "gradual"}
    assert {one.feature for one in timeline.births} == {5, 7}


def test_what_the_sae_found_late_is_told_from_what_was_not_there():
    sae, rows = known_sae(torch.eye(D)), stream({3: (0.4, 1.0)})
    generation, found = torch.zeros(D, dtype=torch.int64), torch.zeros(D, dtype=torch.int64)
    for feature, step in ((3, 4900), (7, 6000), (9, 100)):
        generation[feature], found[feature] = 1, step
    timeline = timeline_of(sae, lives(generation=generation, born_host_step=found), rows)
    assert found_of(timeline, 3).late_by_steps == pytest.approx(900, abs=100)
    assert found_of(timeline, 7).verdict == "always"
    assert found_of(timeline, 7).late_by_steps == 6000
    assert found_of(timeline, 9) is None


def constant(
    active_from: dict[int, float], moments: int = 60, rows: int = 128, in_rows: int = 128
) -> ReservoirRows:
    """The same rows at each moment; a feature is there from a share of the run on, in the first `in_rows` of
    those that will have it."""
    draws = np.random.default_rng(9)
    base_NF = (draws.random((rows, D)) < 0.1) * draws.uniform(0.5, 1.5, (rows, D))
    values, steps = [], []
    for moment in range(moments):
        now_NF = base_NF.copy()
        for feature, start in active_from.items():
            now_NF[:, feature] *= moment / moments >= start
            now_NF[np.flatnonzero(base_NF[:, feature])[in_rows:], feature] = 0.0
        values.append(now_NF)
        steps += [moment * 10_000 // moments] * rows
    row_N = np.tile(np.arange(rows), moments)
    return ReservoirRows(
        torch.from_numpy(np.concatenate(values)).half(), about(np.array(steps), row_N)
    )


def test_learnt_is_said_where_the_constant_batch_shows_it_and_data_where_it_fired_before():
    sae = known_sae(torch.eye(D))
    rows = stream({3: (0.4, 1.0), 5: (0.4, 1.0), 7: (0.4, 1.0)})
    batch = constant({3: 0.4, 7: 1.1})  # 3 is learnt; 5 was always there; 7 is never in the batch
    timeline = timeline_of(sae, None, rows, batch)
    assert {one.feature: one.cause for one in timeline.births} == {
        3: "learnt",
        5: "data",
        7: "open",
    }
    assert found_of(timeline, 3).learnt_step == pytest.approx(4000, abs=170)
    assert timeline.constant_moments == 60


def test_a_birth_on_the_constant_batch_alone_is_learnt_and_is_at_its_step():
    timeline = timeline_of(known_sae(torch.eye(D)), None, stream({}), constant({4: 0.5}))
    (born,) = timeline.births
    assert (born.feature, born.cause) == (4, "learnt")
    assert born.born_step == pytest.approx(5000, abs=170)


@pytest.mark.parametrize(("in_rows", "causes"), [(LEAST_ROWS, ["learnt"]), (LEAST_ROWS - 1, [])])
def test_one_row_that_begins_to_fire_for_good_is_nothing_that_was_learnt(in_rows, causes):
    batch = constant({4: 0.5}, in_rows=in_rows)
    timeline = timeline_of(known_sae(torch.eye(D)), None, stream({}), batch)
    assert [one.cause for one in timeline.births] == causes
    timeline = timeline_of(known_sae(torch.eye(D)), None, stream({4: (0.5, 1.0)}), batch)
    assert [one.cause for one in timeline.births] == (causes or ["open"])


@pytest.mark.parametrize(("begin", "causes"), [(8, ["learnt"]), (7, [])])
def test_rows_that_cease_to_fire_are_set_against_those_that_begin(begin, causes):
    batch = constant({4: 0.5}, in_rows=begin)
    values_MND = batch.values.reshape(60, 128, D)
    empty_N = (values_MND[-1, :, 4] == 0).nonzero()[:3, 0]
    for number, row in enumerate(empty_N.tolist()):
        values_MND[10 + 3 * number : 13 + 3 * number, row, 4] = 1.0
    timeline = timeline_of(known_sae(torch.eye(D)), None, stream({}), batch)
    assert [one.cause for one in timeline.births] == causes


def test_a_constant_batch_that_does_not_change_has_no_births():
    timeline = timeline_of(known_sae(torch.eye(D)), None, stream({}), constant({}))
    assert timeline.births == []
    assert timeline.counts["always"] == D


def test_two_features_of_one_direction_are_one_birth_and_a_twin():
    directions_FD = torch.eye(D)
    directions_FD[20] = torch.nn.functional.normalize(
        directions_FD[3] + 0.3 * directions_FD[20], dim=0
    )
    sae = known_sae(directions_FD)
    with torch.no_grad():
        sae.W_dec[[3, 20]] *= 0.5  # they share what is there
    timeline = timeline_of(sae, None, stream({3: (0.4, 1.0), 20: (1.0, 1.0)}))
    assert [one.feature for one in timeline.births] == [3]
    assert found_of(timeline, 20).duplicate_of == 3


def test_a_birth_says_what_appeared_where_its_life_reads_two_features():
    """3 reads the direction that begins at 0.4, and one that begins later and has no other life: what it
    leaves of that is told."""
    directions_FD = torch.eye(D)
    directions_FD[3] = torch.nn.functional.normalize(torch.eye(D)[3] + torch.eye(D)[5], dim=0)
    directions_FD[5] *= -1
    sae = known_sae(directions_FD)
    born, later = timeline_of(sae, None, stream({3: (0.4, 1.0), 5: (0.8, 1.0)})).births
    assert (born.feature, later.unread) == (3, True)
    assert later.born_step == pytest.approx(8000, abs=100)
    assert unpacked(later.direction)[5] == pytest.approx(0.5**0.5, abs=1e-3)
    assert unpacked(later.appeared)[5] > 0.98
    assert unpacked(born.direction)[3] == pytest.approx(0.5**0.5, abs=1e-3)
    assert unpacked(born.appeared)[3] > 0.98


def test_a_birth_says_what_appeared_where_two_lives_share_it_and_is_told_once():
    """3 and 5 read halves of the direction that begins at 0.4; 4 is always there."""
    directions_FD = torch.eye(D)
    directions_FD[3] = 0.8 * torch.eye(D)[3] + 0.6 * torch.eye(D)[5]
    directions_FD[5] = 0.8 * torch.eye(D)[3] - 0.6 * torch.eye(D)[5]
    sae = known_sae(directions_FD)
    with torch.no_grad():
        sae.W_dec[[3, 5]] *= 0.8  # their sum is 1.02 of what is there
    timeline = timeline_of(sae, None, stream({3: (0.4, 1.0), 5: (1.0, 1.0)}))
    (born,) = timeline.births
    assert unpacked(born.direction)[3] == pytest.approx(0.8, abs=1e-3)
    assert unpacked(born.appeared)[3] > 0.98
    twins = {3, 5} - {born.feature}
    assert {one.feature for one in timeline.lives if one.duplicate_of == born.feature} >= twins


def test_what_appeared_is_the_decoder_row_where_that_is_right(planted):
    for one in planted.births:
        assert unpacked(one.appeared)[one.feature] > 0.98


def test_two_births_of_one_time_with_which_the_same_appeared_are_twins():
    same = packed(torch.eye(D)[3])
    born = [
        FeatureLife(feature, "born", born_step=step, usefulness=use, appeared=appeared)
        for feature, step, use, appeared in (
            (3, 400.0, 0.3, same), (7, 401.0, 0.2, same), (9, 401.0, 0.1, packed(torch.eye(D)[9])),
            (11, 500.0, 0.1, same), (12, 400.0, 0.1, ""),
        )
    ]  # fmt: skip
    told = without_twins(born, 1000)
    assert {one.feature: one.duplicate_of for one in told} == {
        3: None, 7: 3, 9: None, 11: None, 12: None,
    }  # fmt: skip


def test_of_twins_the_one_that_makes_the_most_of_all_rows_is_the_birth():
    appeared = packed(torch.eye(D)[0])
    born = [
        FeatureLife(
            feature, "born", born_step=100.0, usefulness=use, rate_after=rate, appeared=appeared
        )
        for feature, use, rate in ((12, 0.32, 0.05), (4, 0.29, 0.18), (5, 0.12, 0.16))
    ]
    told = without_twins(born, 1000)
    assert {one.feature: one.duplicate_of for one in told} == {12: 4, 4: None, 5: 4}


def test_rows_of_one_sequence_are_one_block_and_of_others_64_steps():
    table = about(np.repeat(np.arange(300), 4))
    assert (
        np.diff(
            np.flatnonzero(np.diff(blocks_of(ReservoirRows(torch.zeros(1200, 1), table))))
        ).tolist()
        == [256] * 3
    )
    table["sequence"] = table["row"] // 2
    assert blocks_of(ReservoirRows(torch.zeros(1200, 1), table)).max() == 599


def test_units_are_whole_blocks_with_rows_enough():
    draws = np.random.default_rng(0)
    block_N = np.repeat(np.arange(900), draws.integers(1, 30, 900))
    wanted = unit_rows(block_N, 100)
    units = units_of(block_N, wanted)
    assert wanted >= 27
    assert all(len(set(units.of_row[block_N == block])) == 1 for block in range(900))
    sizes = np.bincount(units.of_row)
    assert sizes.min() >= 1
    assert np.median(sizes) >= wanted * 0.8
    assert units_of(np.zeros(0, np.int64), 5).count == 0


def test_a_planted_difference_is_the_only_one_and_other_seeds_have_none():
    sae = known_sae(torch.eye(D))
    a, b = (
        Side(name, stream({6: (2.0, 2.0)} if name == "a" else {}, seed))
        for seed, name in enumerate("ab")
    )
    found = compared(replace(a, sae=sae), replace(b, sae=sae))
    (only,) = found.differences
    assert (only.feature, only.also) == (6, 1)
    assert (only.rate_a, only.rate_b) == (0.0, pytest.approx(RATE, rel=0.2))
    again = compared(Side("x", stream({}, 5), sae), Side("y", stream({}, 6)))
    assert again.differences == ()
    with pytest.raises(ValueError, match="neither side has an SAE"):
        compared(a, b)


def test_a_rate_that_is_half_as_high_again_is_no_difference():
    sae = known_sae(torch.eye(D))
    found = compared(Side("a", stream({}, 1, rate=0.02), sae), Side("b", stream({}, 2, rate=0.03)))
    assert found.differences == ()


def test_a_pass_that_would_cost_too_much_takes_fewer_rows_evenly_over_the_run(monkeypatch):
    from asys_bench.change.timeline import timeline as module

    rows = stream({3: (0.4, 1.0)})
    rows.about["rank"] = np.random.default_rng(0).exponential(size=len(rows))
    monkeypatch.setattr(module, "MOST_PRODUCTS", 10_000 * D * D)
    monkeypatch.setattr(module, "LEAST_ROWS", 100)
    found = timeline_of(known_sae(torch.eye(D)), None, rows)
    assert found.rows == pytest.approx(10_000, rel=0.05)
    assert [one.feature for one in found.births] == [3]
    assert found.births[0].born_step == pytest.approx(4000, abs=150)
