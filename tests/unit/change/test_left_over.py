"""Directions that no feature of an SAE reads: found in what it leaves, born at their steps, shown as such."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from asys_bench.change.timeline.earlier import packed, unpacked, with_earlier
from asys_bench.change.timeline.firing import Residuals, firing
from asys_bench.change.timeline.left_over import LEAST_ROWS, firing_of, left_over
from asys_bench.change.timeline.timeline import timeline_of
from asys_bench.change.timeline.twins import without_twins
from asys_bench.cli.commands.run_timeline import _show
from asys_bench.eye.births import births_document
from asys_bench.reports.run_report.births import birth_parts, births_of
from asys_bench.rundir.timeline_document import FeatureLife, read_timeline, write_timeline

from .test_earlier_looks import EYE, life, look
from .test_timeline import RATE, D, constant, known_sae, stream

UNREAD = 3
READ = [index for index in range(D) if index != UNREAD]


def sae_without_it():
    return known_sae(torch.eye(D)[READ])


def residuals_of(sae, values_ND):
    residuals = Residuals.of(values_ND)
    found = firing(sae, values_ND, residuals)
    return residuals, sae.W_dec.detach(), torch.from_numpy(found.total > 0)


@pytest.fixture(scope="module")
def born():
    return timeline_of(sae_without_it(), None, stream({UNREAD: (0.4, 1.0), 5: (0.7, 1.0)}))


def test_a_birth_that_no_feature_reads_is_found_at_its_step(born):
    first, second = born.births
    assert (first.unread, first.feature) == (True, D - 1)
    assert first.born_step == pytest.approx(4000, abs=100)
    assert first.rate_after == pytest.approx(RATE, rel=0.15)
    assert unpacked(first.direction)[UNREAD] > 0.99
    assert unpacked(first.appeared)[UNREAD] > 0.99
    assert first.rows[0].activation > 1.3
    assert not second.unread
    assert sum(born.counts.values()) == born.features == D - 1


def test_one_that_ends_before_the_run_does_has_both_steps():
    (found,) = timeline_of(sae_without_it(), None, stream({UNREAD: (0.3, 0.5)})).births
    assert (found.unread, found.generation) == (True, 0)
    assert found.born_step == pytest.approx(3000, abs=100)
    assert found.died_step == pytest.approx(5000, abs=100)


def test_what_is_always_there_is_no_birth_though_no_feature_reads_it():
    assert timeline_of(sae_without_it(), None, stream({})).lives == ()


def test_the_host_learnt_it_where_the_constant_batch_shows_it():
    rows, batch = stream({UNREAD: (0.4, 1.0)}), constant({UNREAD: 0.4})
    (found,) = timeline_of(sae_without_it(), None, rows, batch).births
    assert (found.unread, found.cause) == (True, "learnt")


def test_the_order_of_rows_does_not_matter_so_that_the_null_holds():
    sae, rows = sae_without_it(), stream({UNREAD: (0.4, 1.0)})
    order_N = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    straight, mixed = (
        left_over(*residuals_of(sae, values)) for values in (rows.values, rows.values[order_N])
    )
    assert len(straight) == len(mixed) == 1
    assert torch.allclose(straight.direction_CD, mixed.direction_CD, atol=1e-4)
    assert torch.allclose(straight.strength_C, mixed.strength_C, rtol=1e-3)


def test_it_fires_where_the_rows_have_it_and_nowhere_else():
    sae, rows = sae_without_it(), stream({UNREAD: (0.4, 1.0)})
    residuals, *features = residuals_of(sae, rows.values)
    found = firing_of(left_over(residuals, *features), residuals)
    wanted_N = (rows.values[:, UNREAD] >= 0.5 * found.values_of(0).mean()).nonzero()[:, 0]
    assert abs(len(found.rows_of(0)) - len(wanted_N)) <= 0.02 * len(wanted_N)
    assert set(found.rows_of(0).tolist()) <= set(rows.values[:, UNREAD].nonzero()[:, 0].tolist())
    square_N = rows.values[torch.from_numpy(found.rows_of(0))].float().square().sum(1)
    assert found.gain == pytest.approx((found.values_of(0) ** 2 / square_N.numpy()), abs=2e-3)


def test_a_feature_that_is_read_too_weakly_or_in_too_few_rows_is_nothing_left_over():
    sae = known_sae(torch.eye(D))
    with torch.no_grad():
        sae.W_dec.mul_(0.7)
    assert len(left_over(*residuals_of(sae, stream({}).values))) == 0
    few = torch.zeros(5000, D)
    few[: LEAST_ROWS - 1, UNREAD] = 1.0
    assert len(left_over(*residuals_of(sae_without_it(), few))) == 0
    assert len(left_over(*residuals_of(sae_without_it(), few[:0]))) == 0
    few[:LEAST_ROWS, UNREAD] = 1.0
    assert len(left_over(*residuals_of(sae_without_it(), few))) == 1


def test_a_rare_direction_is_found_beside_many_rows_with_a_common_one():
    """The common one's rows fill the first comparison."""
    generator = torch.Generator().manual_seed(2)
    rows_ND = 0.02 * torch.randn(20_000, D, generator=generator)
    rows_ND[:4000, 0] += 2.0
    rows_ND[-20:, 1] += 1.0
    found = left_over(*residuals_of(known_sae(torch.eye(D)[2:]), rows_ND))
    assert found.direction_CD.abs().argmax(1).tolist() == [0, 1]


def test_it_gives_way_to_a_feature_of_its_direction_that_was_born_with_it():
    both = [
        life(number, usefulness=use, unread=unread, direction=packed(EYE[5]))
        for number, use, unread in ((1, 0.1, False), (2, 0.9, True))
    ]
    told = without_twins(both, 1000)
    assert [one.duplicate_of for one in told] == [None, 1]


def test_a_later_look_knows_it_by_its_direction_whatever_its_number_is():
    def unread(number: int, axis: int, verdict: str = "born", **fields) -> FeatureLife:
        return life(number, verdict, unread=True, direction=packed(EYE[axis]), **fields)

    before = look(unread(6, 2), unread(7, 3))
    now = look(unread(6, 3, step=402.0), unread(7, 2, "gradual"), until=2000)
    found = with_earlier(now, before, EYE)
    assert [(one.feature, one.look_step) for one in found.births] == [(6, None)]
    assert [one.feature for one in found.withdrawn] == [7]
    read_now = with_earlier(look(life(2, step=402.0), until=2000), before, EYE)
    assert {(one.feature, one.look_step) for one in read_now.births} == {(2, None), (7, 1000)}


def test_everybody_who_shows_births_says_that_no_feature_reads_it(born, tmp_path):
    timeline = replace(born, label="h", hook="h")
    write_timeline(tmp_path, timeline)
    assert read_timeline(tmp_path, "h") == timeline
    written = io.StringIO()
    _show(timeline, None, None, Console(file=written, width=200))
    assert "in no feature" in written.getvalue()
    page = "".join(str(part) for part in birth_parts(births_of([timeline], None), {}))
    assert f"unread {D - 1}, born at step" in page
    assert "in no feature of the SAE" in page
    (shown,) = (one for one in births_document(tmp_path, "h", None, [])["lives"] if one["unread"])
    assert shown["name"] == f"unread {D - 1}"
    assert shown["cause"].startswith("in no feature of the SAE; ")
