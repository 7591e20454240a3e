"""Where values come from: rows through a known SAE, and metrics of the stats page."""

from __future__ import annotations

import math

import pytest
import torch

from asys_bench.change.alarm.watchers import (
    RESCAN_S,
    PageWatchers,
    ProbeWatch,
    RowWatchers,
    SAEWatch,
    SpreadWatch,
)
from asys_bench.contracts.stats import StatsPage
from asys_bench.sae import SAEConfig, build_sae


@pytest.fixture
def page():
    page = StatsPage.create(["trainer-0", "alarm-0", "host"])
    yield page
    page.close()


@pytest.fixture
def sae():
    torch.manual_seed(0)
    return build_sae(SAEConfig(d_sae=16, k=3), 5)


def rows_of(seed, n=64):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def test_fvu_and_densities_are_those_of_the_rows(page, sae):
    watchers = RowWatchers([SAEWatch("h", sae, (2, 7), 3)], 256, page.slot("alarm-0").counter("r"))
    rows = rows_of(1)
    watchers.take(rows[:40], 1.0, 5)
    watchers.take(rows[40:], 1.0, 9)
    found = {name: value for entry, name, value in watchers.values() if entry == 3}
    with torch.no_grad():
        acts = sae.encode(rows)
        error = (sae.decode(acts) - rows).square().sum()
        fvu = error / (rows - rows.mean(0)).square().sum()
    assert found.keys() == {"h fvu", "h feature 2", "h feature 7"}
    assert found["h fvu"] == pytest.approx(float(fvu), rel=1e-5)
    assert found["h feature 7"] == pytest.approx(float((acts[:, 7] > 0).float().mean()))
    assert watchers.newest_ns == 9
    assert list(watchers.values()) == []


def test_the_spread_is_the_logarithm_of_the_squared_distance_from_the_mean_of_rows_of_any_width(
    page,
):
    watchers = RowWatchers([SpreadWatch("h", 2)], 256, page.slot("alarm-0").counter("r"))
    for width in (5, 7):
        rows = torch.randn(64, width, generator=torch.Generator().manual_seed(width))
        watchers.take(rows[:16], 1.0, 5)
        watchers.take(rows[16:], 0.5, 9)
        weight = torch.cat([torch.ones(16), torch.full((48,), 2.0)])[:, None] / 112
        wanted = (weight * (rows - (weight * rows).sum(0)).square()).sum()
        assert list(watchers.values()) == [
            (2, "h spread", pytest.approx(math.log(wanted), rel=1e-5))
        ]
    watchers.take(torch.ones(4, 7), 1.0, 9)
    assert list(watchers.values()) == [], "rows that are all alike"


def test_rows_count_as_many_as_they_stand_for(page, sae):
    watchers = RowWatchers([SAEWatch("h", sae, (0,))], 256, page.slot("alarm-0").counter("r"))
    first, second = rows_of(2, 32), rows_of(3, 32)
    watchers.take(first, 1.0, 1)
    watchers.take(second, 0.25, 2)
    with torch.no_grad():
        active = [(sae.encode(rows)[:, 0] > 0).float().sum() for rows in (first, second)]
    wanted = float((active[0] + 4 * active[1]) / (32 + 4 * 32))
    assert {name: value for _, name, value in watchers.values()}["h feature 0"] == pytest.approx(
        wanted
    )


def test_a_probe_gives_its_mean_probability_or_number(page, sae):
    rows = rows_of(6)
    weight, bias = torch.randn(1, 5), torch.tensor([0.3])
    features = torch.randn(3, 16)
    watched = [
        ProbeWatch("h probe done", weight, bias, (0.0, 1.0), None, 1),
        ProbeWatch("h probe reward", weight, bias, None, None, 2),
        ProbeWatch("h probe kind", features, torch.zeros(3), ("a", "b", "c"), sae, 3),
    ]
    watchers = RowWatchers(watched, 256, page.slot("alarm-0").counter("r"))
    watchers.take(rows, 1.0, 1)
    found = {name: (entry, value) for entry, name, value in watchers.values()}
    with torch.no_grad():
        said = rows @ weight.T + bias
        kinds = (sae.encode(rows) @ features.T).softmax(1).mean(0)
    assert found["h probe done"] == (1, pytest.approx(float(said.sigmoid().mean()), rel=1e-5))
    assert found["h probe reward"] == (2, pytest.approx(float(said.mean()), rel=1e-5))
    for name, value in zip("abc", kinds.tolist(), strict=True):
        assert found[f"h probe kind {name}"] == (3, pytest.approx(value, rel=1e-5))


def test_no_more_rows_are_looked_at_than_an_interval_needs(page, sae):
    watchers = RowWatchers([SAEWatch("h", sae, ())], 50, page.slot("alarm-0").counter("r"))
    rows = rows_of(4, 1000)
    watchers.take(rows, 1.0, 1)
    assert watchers.is_full
    assert sum(len(part) for part in watchers._rows) == 50
    assert torch.equal(watchers._rows[0], rows[::20])
    list(watchers.values())
    assert not watchers.is_full


def test_rows_that_cannot_be_used_are_counted_and_left_out(page, sae):
    refused = page.slot("alarm-0").counter("r")
    watchers = RowWatchers([SAEWatch("h", sae, ())], 256, refused)
    bad = rows_of(5, 8)
    bad[3, 1] = math.nan
    watchers.take(bad, 1.0, 1)
    watchers.take(torch.ones(4, 6), 1.0, 2)
    watchers.take(torch.ones(2, 5, dtype=torch.complex64), 1.0, 3)
    assert refused.value == 5
    ((_, name, value),) = watchers.values()
    assert name == "h fvu"
    assert math.isfinite(value)
    watchers.take(torch.ones(4, 7), 1.0, 4)
    assert list(watchers.values()) == []
    assert refused.value == 9


def test_a_gauge_is_a_value_when_it_is_set_anew_and_a_counter_is_a_rate(page):
    slot = page.slot("trainer-0")
    fvu, rows = slot.gauge("sae_fvu", hook="h"), slot.counter("sae_rows", hook="h")
    latency = slot.histogram("wait_ns", hook="h")
    fvu.set(0.5)
    gauges, counters = PageWatchers(page, "sae_fvu", 9), PageWatchers(page, "sae_rows", 9)
    means = PageWatchers(page, "wait_*", 9)
    assert list(gauges.values(0.0)) == [("trainer-0 sae_fvu{hook=h}", 0.5)]
    assert list(gauges.values(0.1)) == []
    fvu.set(0.4)
    assert list(gauges.values(0.2)) == [("trainer-0 sae_fvu{hook=h}", 0.4)]
    assert list(counters.values(0.0)) == []
    rows.add(100)
    assert list(counters.values(0.5)) == [("trainer-0 sae_rows{hook=h}", 200.0)]
    rows.set(10)  # its worker began anew
    assert list(counters.values(1.0)) == []
    assert list(means.values(0.0)) == []
    latency.record(10)
    latency.record(30)
    assert list(means.values(0.5)) == [("trainer-0 wait_ns{hook=h}", 20.0)]
    assert list(means.values(1.0)) == []


def test_metrics_that_appear_later_are_watched_and_labels_may_be_named(page):
    slot = page.slot("trainer-0")
    found = PageWatchers(page, "probe_auc{hook=h*,label=done}", 9)
    assert list(found.values(0.0)) == []
    slot.gauge("probe_auc", hook="h1", label="done").set(0.9)
    slot.gauge("probe_auc", hook="h1", label="reward").set(0.8)
    assert list(found.values(0.1)) == []
    assert list(found.values(RESCAN_S)) == [("trainer-0 probe_auc{hook=h1,label=done}", 0.9)]


def test_what_an_alarm_itself_writes_is_not_watched_and_there_is_a_limit(page):
    page.slot("alarm-0").gauge("alarm_value", watcher="x").set(1.0)
    slot = page.slot("trainer-0")
    for number in range(4):
        slot.gauge("alarm_like", n=str(number)).set(1.0)
    watchers = PageWatchers(page, "alarm_*", 3)
    assert len(list(watchers.values(0.0))) == 3
