"""The comparison of buses: what both sides move, and that near and far cores are kept apart."""

from __future__ import annotations

import inspect
import math
import sys
from pathlib import Path

import pytest

from asys_bench.contracts.scenario import ScenarioError
from asys_bench.harness.planning.suite_file import load_suite
from asys_bench.harness.plugins import scenario_plugin

from .conftest import round_of

ROOT = Path(__file__).parents[3]
NEAR = [50.0, 60.0]
FAR = [240.0, 250.0]


@pytest.fixture(scope="module")
def suite():
    """The comparisons of suites/peers.yaml are registered by loading it."""
    return load_suite("peers.yaml")


@pytest.fixture(scope="module")
def bus(suite):
    return inspect.getmodule(scenario_plugin("bus_peer_pyzmq").run)


@pytest.fixture
def table(monkeypatch):
    for folder in ("tests/benchmarks/bus", "suites/peers"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    import table

    yield table
    for name in ("table", "cores"):
        sys.modules.pop(name, None)


def test_a_peer_that_is_not_installed_is_unavailable_with_the_way_to_get_it(suite, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    packages = {"pyzmq": "pyzmq", "faster_fifo": "faster-fifo", "zenoh": "eclipse-zenoh"}
    for peer, package in packages.items():
        reason = scenario_plugin(f"bus_peer_{peer}").unavailable()
        assert reason == f"{package} is not installed; pip install {package}"


@pytest.mark.rest
def test_a_bus_peer_moves_the_same_bytes(suite, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    params = {"ours": "mp_queue", "payload_bytes": 65_536, "turns": 1, "turn_s": 0.01}
    found = round_of("bus_peer_mp_queue", params, tmp_path)
    assert found["throughput_gbps"] > 0
    assert found["speed_over_peer"] == pytest.approx(
        found["throughput_gbps"] / found["peer_throughput_gbps"]
    )
    assert not {"speed_over_peer_near", "speed_over_peer_far"} & found.keys()
    with pytest.raises(ScenarioError, match=r"backend 'no_bus' cannot run here"):
        round_of("bus_peer_mp_queue", {**params, "ours": "no_bus"}, tmp_path)


@pytest.mark.rest
def test_a_contender_that_fails_says_what_it_said(bus):
    pair = bus.Pair("no such bus", 4096, (-1, -1))
    with pair, pytest.raises(bus.PairError, match=r"(?s)no such bus: exit 1: .*KeyError"):
        pair.start(1 << 20)


def test_a_regime_that_was_hardly_met_is_not_reported(bus):
    turns = [bus.Turn(4.0, 2.0, "near")] * 12 + [bus.Turn(9.0, 1.0, "far")] * 11
    found = bus.figures([*turns, bus.Turn(1.0, 1.0, None)])
    assert found["speed_over_peer_near"] == 2.0
    assert "speed_over_peer_far" not in found


@pytest.mark.parametrize(
    ("pings", "regime"),
    [(NEAR, "near"), (FAR, "far"), ([50.0, 240.0], None), ([130.0, 130.0], None), ([], None)],
)
def test_a_measurement_has_a_regime_where_every_ping_around_it_says_so(bus, pings, regime):
    assert bus.cores.regime(pings) == regime


def rounds_of(table, regime, ratio, count):
    figure = table.Figure
    slow, fast = figure(2.0, regime), figure(2.0 * ratio, regime)
    return [{"ours": fast, "best": slow, "other": figure(1.0, regime)}] * count


def test_ours_is_compared_with_the_best_peer_of_each_regime(table):
    rounds = rounds_of(table, "near", 1.5, 12) + rounds_of(table, "far", 0.8, 12)
    near = table.against_best(rounds, "ours", ("other", "best", "absent"), "near")
    assert (near.peer, near.rounds, near.verdict(1.1)) == ("best", 12, "holds")
    far = table.against_best(rounds, "ours", ("other", "best"), "far")
    assert far.verdict(1.1) == "fails"


def test_fewer_than_twelve_rounds_decide_nothing(table):
    rounds = rounds_of(table, "near", 1.5, 11)
    one = table.against_best(rounds, "ours", ("best",), "near")
    assert one.verdict(1.1) == "INCONCLUSIVE: 11 of 12 rounds"
    assert table.against_best(rounds, "ours", ("best",), "far").verdict(1.1).startswith("INCONCL")
    (row,) = [line for line in table.lines(rounds, ["best"], "ours", ("best",)) if "best" in line]
    assert row == "| best | (11 rounds) | (11 rounds) |  |  |"


def test_rounds_in_which_the_cores_moved_are_no_pair(table):
    mixed = {"ours": table.Figure(9.0, "near"), "best": table.Figure(1.0, "far")}
    assert table.ratios([mixed], "ours", "best", "near") == []
    assert math.isclose(table.figures([mixed], "ours", "near")[0], 9.0)
