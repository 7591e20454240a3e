"""SAEs on another machine, whatever the network between does: every packet counted, nothing waits for it.

`make soak` (ASYS_SOAK=1) runs each condition of `run_network` for 20 s and prints its line: round trips of 1,
10 and 100 ms, 1 % loss, 200 Mbit/s, 10 s of partition and of silence; and all of them in turns with the same
workers beside the host (`network_step`). ASYS_SOAK_STEP_RATIO=1 judges the host's step as well, at most 1.02
of that with the workers beside it: on a quiet machine.
"""

from __future__ import annotations

import json
import os

import pytest

pytest.importorskip("zmq")

from .network import Network, missing
from .network_step import compare
from .run_network import CONDITIONS, measure, two_nodes

SOAK = os.environ.get("ASYS_SOAK") == "1"
JUDGED = os.environ.get("ASYS_SOAK_STEP_RATIO") == "1"
NEVER_LOST = {"slow", "unreachable"}
"""Reasons for which a network may cost packets; others are faults."""
pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no network here: {missing()}")


def check(figures):
    """What holds under any network."""
    assert figures["problems"] == []
    assert set(figures["dropped_in_all"]) <= NEVER_LOST
    dropped = sum(figures["dropped_in_all"].values())
    assert figures["taken"] == figures["acked"] + dropped
    assert 0 <= figures["accepted"] - figures["acked"] <= dropped
    assert figures["skipped"] == 0, "the receiver's clock is not the host's"
    assert figures["rows_reached_saes"] > 0


@pytest.mark.rest
def test_namespaces_are_machines_with_the_faults_that_they_are_given():
    with Network("a", "b", rtt_ms=100) as network:
        a, b = network["a"], network["b"]
        assert a.ping_ms(b) >= 100
        network.delay(0)
        assert a.ping_ms(b) < 100
        b.silence()
        with pytest.raises(RuntimeError, match="timed out"):
            a.ping_ms(b, 1, wait_s=0.3)
        b.hear()
        assert a.ping_ms(b, 1)
        b.cut()
        with pytest.raises(RuntimeError, match=r"timed out|unreachable"):
            a.ping_ms(b, 1, wait_s=0.3)
        b.heal()
        assert a.ping_ms(b, 1)
        b.lose(1)
        assert "numgen random mod 100 < 1 drop" in b.run("nft", "list", "ruleset")
        b.limit(8)
        assert "8Mbit" in b.run("tc", "qdisc", "show", "dev", "tun0")
        b.limit(None)


@pytest.mark.soak("a minute")
@pytest.mark.timeout(600)
def test_a_partition_costs_packets_by_their_reason_and_is_over_when_it_heals(tmp_path):
    """With a round trip of 10 ms, and a receiver whose clock is days ahead."""
    figures = measure(tmp_path, "partition", seconds=0.5, away_s=3.0)
    check(figures)
    assert figures["dropped_away"].keys() <= {"unreachable", "slow"}
    assert figures["dropped_away"]


@pytest.mark.soak("a minute")
@pytest.mark.timeout(600)
def test_two_machines_of_two_ranks_have_one_account_one_report_and_one_view(tmp_path):
    figures = two_nodes(tmp_path, steps=60)
    assert figures["problems"] == []
    assert figures["verdicts"] == ["equal", "equal"]
    assert figures["sources"] == [0, 1, 2, 3]
    assert figures["taken"] == 4 * 60 == figures["acked"] + sum(figures["dropped"].values())
    assert figures["rows_reached_saes"] == 16 * figures["accepted"]
    assert len(figures["hosts"]) == 2
    assert (
        "240 taken = 240 acked + 0 dropped + 0 in flight; 240 accepted: 2 equal" in figures["top"]
    )
    assert "Other machines" in figures["report"]
    for host in figures["hosts"]:
        assert f"{host}/remote-0" in figures["report"]
        assert f"{host[9:]}/remote-0" in figures["top"]


@pytest.mark.soak("minutes")
@pytest.mark.timeout(1200)
def test_two_machines_under_torchrun_have_one_account(tmp_path):
    figures = two_nodes(tmp_path, steps=2000, torchrun=True)
    assert (figures["problems"], figures["verdicts"]) == ([], ["equal", "equal"])
    assert figures["taken"] == 4 * 2000


@pytest.mark.soak("minutes")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", CONDITIONS)
def test_under_any_network_every_packet_is_counted(tmp_path, name):
    figures = measure(tmp_path, name, seconds=20.0)
    print(json.dumps(figures))
    check(figures)
    if CONDITIONS[name]["away"]:
        assert figures["caught_up_s"] <= 5.0
    if CONDITIONS[name]["held"]:
        assert figures["dropped_away"]


@pytest.mark.soak("ten minutes")
@pytest.mark.timeout(2400)
def test_the_host_does_not_notice_the_network(tmp_path):
    for figures in compare(tmp_path, [*CONDITIONS]):
        print(json.dumps(figures))
        if "conditions" in figures:
            check(figures)
        elif JUDGED:
            assert figures["step_ratio"]["ratio"] <= 1.02
            assert figures["cpu_ratio"]["ratio"] <= 1.02
