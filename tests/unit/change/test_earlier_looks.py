"""A run that goes on is looked at again: births that stand, move, or are withdrawn."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from asys_bench.change.timeline.earlier import packed, unpacked, with_earlier
from asys_bench.cli.commands.run_timeline import _show
from asys_bench.eye.births import births_document
from asys_bench.reports.run_report.births import birth_parts, births_of
from asys_bench.rundir.timeline_document import FeatureLife, Timeline, read_timeline, write_timeline

EYE = torch.eye(6)
STEPS = (100.0, 300.0, 500.0, 700.0, 900.0)


def life(feature: int, verdict: str = "born", step: float | None = 400.0, **fields) -> FeatureLife:
    made = FeatureLife(
        feature, verdict, born_step=step, born_low=step, born_high=step, rate_after=0.1,
        rates=(0.0, 0.0, 0.1, 0.1, 0.1),
    )  # fmt: skip
    direction = packed(EYE[feature % 6]) if verdict == "born" else ""
    return replace(made, **{"direction": direction, **fields})


def look(*lives: FeatureLife, until: int = 1000) -> Timeline:
    steps = tuple(step * until / 1000 for step in STEPS)
    return Timeline(
        "h", "h", "step_1", 6, 1000, 10, 0, until, counts={"born": 0}, curve_steps=steps, lives=lives
    )  # fmt: skip


def test_a_direction_is_kept_to_a_thousandth():
    direction_D = torch.randn(300, generator=torch.Generator().manual_seed(0))
    unit_D = torch.nn.functional.normalize(direction_D, dim=0)
    found_D = unpacked(packed(direction_D))
    assert found_D is not None
    assert torch.allclose(torch.from_numpy(found_D), unit_D, atol=1e-3)
    assert [unpacked(text) for text in ("", "%%", "AA==", packed(torch.tensor([math.nan])))] == [
        None
    ] * 4


def test_a_birth_whose_life_has_ended_in_the_sae_stands_as_of_its_look():
    now = look(life(2, generation=1, step=1500.0, direction=packed(EYE[5])), until=2000)
    found = with_earlier(now, look(life(2, generation=0)), EYE)
    assert [(one.feature, one.generation, one.look_step) for one in found.births] == [
        (2, 0, 1000), (2, 1, None),
    ]  # fmt: skip
    stands = found.births[0]
    assert stands.born_step == 400
    assert len(stands.rates) == sum(step <= 1000 for step in found.curve_steps)
    again = with_earlier(look(until=3000), found, EYE)
    assert [one.look_step for one in again.births] == [1000, 2000]


@pytest.mark.parametrize("verdict", ["gradual", "turned"])
def test_a_birth_that_more_rows_call_gradual_is_withdrawn_and_stays_so(verdict):
    before = look(life(3), life(4))
    now = look(life(3, verdict, 450.0), life(4), until=2000)
    found = with_earlier(now, before, EYE)
    assert [one.feature for one in found.births] == [4]
    (taken_back,) = found.withdrawn
    assert (taken_back.feature, taken_back.verdict, taken_back.withdrawn_step) == (3, verdict, 400)
    third = with_earlier(look(life(3, verdict, 450.0), until=3000), found, EYE)
    assert [one.withdrawn_step for one in third.withdrawn] == [400]
    assert [one.feature for one in third.births] == [4], "of which the third look says nothing"
    born_again = with_earlier(look(life(3), until=3000), found, EYE)
    assert born_again.withdrawn == []


def test_another_generation_or_direction_withdraws_nothing():
    for now in (life(3, "gradual", generation=1), life(2, "gradual")):
        found = with_earlier(look(now, until=2000), look(life(3)), EYE)
        assert [one.feature for one in found.births] == [3]
    turned_EYE = EYE[[0, 1, 2, 5, 4, 3]]
    found = with_earlier(look(life(3, "gradual"), until=2000), look(life(3)), turned_EYE)
    assert [one.feature for one in found.births] == [3]


def test_a_birth_that_this_look_has_is_told_once():
    """By the same life at another step, or by another one with its direction at its time."""
    moved = with_earlier(look(life(3, step=900.0), until=2000), look(life(3)), EYE)
    assert [one.born_step for one in moved.births] == [900]
    table_FD = EYE[[0, 1, 3, 2, 4, 5]]
    taken_over = life(2, step=420.0, direction=packed(EYE[3]))
    found = with_earlier(look(taken_over, until=2000), look(life(3)), table_FD)
    assert [one.feature for one in found.births] == [2]
    later = with_earlier(
        look(replace(taken_over, born_step=500.0), until=2000), look(life(3)), table_FD
    )
    assert len(later.births) == 2


def test_what_an_earlier_document_cannot_have_is_left_out():
    wide = packed(torch.ones(7))
    odd = [life(1, direction="%"), life(2, direction=wide), life(3, step=math.nan), life(99)]
    found = with_earlier(look(until=2000), look(*odd), EYE)
    assert [one.feature for one in found.births] == [99]
    json.dumps(found.to_dict(), allow_nan=False)
    for before in (look(life(1), until=3000), replace(look(life(1)), problem="p")):
        assert with_earlier(look(until=2000), before, EYE).lives == ()


def test_everybody_who_shows_births_shows_it(tmp_path):
    now = look(life(3, "gradual", 450.0), life(4), until=2000)
    timeline = with_earlier(now, look(life(3), life(1)), EYE)
    write_timeline(tmp_path, timeline)
    assert read_timeline(tmp_path, "h") == timeline
    written = io.StringIO()
    _show(timeline, None, None, Console(file=written, width=200))
    assert "feature 3: an earlier look called step 400 its birth" in written.getvalue()
    assert "as of step 1,000" in written.getvalue()
    page = "".join(str(part) for part in birth_parts(births_of([timeline], None), {}))
    assert "2 born" in page
    assert "1 withdrawn" in page
    assert "as a look at step 1,000 saw it" in page
    why = {
        one["feature"]: one["cause"] for one in births_document(tmp_path, "h", None, [])["lives"]
    }
    assert why[3] == "gradual: an earlier look called step 400 its birth"
    assert "as a look at step 1,000 saw it" in why[1]


def test_a_birth_with_which_the_same_appeared_is_told_once_whatever_its_decoder_row_is():
    same, other = packed(EYE[1] + 0.2 * EYE[4]), packed(EYE[5])
    before = look(life(3, direction=packed(EYE[2]), appeared=same))
    for appeared, features in ((same, [4]), (other, [3, 4]), ("", [3, 4])):
        now = look(life(4, step=402.0, appeared=appeared), until=2000)
        found = with_earlier(now, before, EYE)
        assert sorted(one.feature for one in found.births) == features
