"""Which packets are held out, and the ring they go to."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.sae.held_out import HeldOut, is_held_out


@given(st.tuples(st.integers(0, 2**32), st.integers(0, 2**16), st.integers(0, 2**64 - 1)))
def test_the_decision_is_a_function_of_the_key_and_grows_with_the_fraction(
    key: tuple[int, int, int],
) -> None:
    decisions = [is_held_out(key, fraction) for fraction in (0.0, 0.1, 0.5, 0.999)]
    assert decisions == sorted(decisions)
    assert decisions == [is_held_out(key, fraction) for fraction in (0.0, 0.1, 0.5, 0.999)]
    assert not decisions[0]


def test_about_the_configured_fraction_of_every_shard_is_held_out() -> None:
    for shard in range(3):
        share = sum(is_held_out((0, shard, seq), 0.05) for seq in range(20_000)) / 20_000
        assert 0.04 < share < 0.06


def test_the_ring_keeps_the_most_recent_rows() -> None:
    ring = HeldOut(16, 1)
    for value in range(20):
        ring.add(torch.full((2, 1), float(value)), weight=1.0)
    assert sorted(ring.rows.squeeze(1).tolist()) == sorted([float(v) for v in range(12, 20)] * 2)


def test_one_large_packet_does_not_fill_the_ring() -> None:
    ring = HeldOut(64, 1)
    ring.add(torch.arange(1000.0).unsqueeze(1), weight=1.0)
    assert len(ring) == 8
    assert ring.rows[0] == 0
    assert ring.rows[-1] == 999


def test_restored_ring_continues_at_the_same_place() -> None:
    one, two = HeldOut(10, 1), HeldOut(10, 1)
    for value in range(7):
        one.add(torch.full((1, 1), float(value)), weight=2.0)
    two.load_state_dict(one.state_dict())
    for ring in (one, two):
        for value in range(100, 108):
            ring.add(torch.full((1, 1), float(value)), weight=1.0)
    assert torch.equal(one.rows, two.rows)
    assert torch.equal(one.weights, two.weights)
