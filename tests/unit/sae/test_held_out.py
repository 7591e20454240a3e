"""Which rows are held out, and the ring they go to."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.sae.training.held_out import HeldOut, held_out_run, split_rows, whole_is_held_out

KEYS = st.tuples(st.integers(0, 2**32), st.integers(0, 2**16), st.integers(0, 2**64 - 1))


def places(slices: list[slice], rows: int) -> list[int]:
    return [row for one in slices for row in range(rows)[one]]


@given(KEYS, st.integers(0, 300), st.sampled_from([0.0, 0.05, 0.5, 0.99]))
def test_every_row_is_held_out_or_trained_on_and_a_key_always_decides_alike(
    key: tuple[int, int, int], rows: int, fraction: float
) -> None:
    held_out, trained = split_rows(key, rows, fraction)
    assert sorted(places(held_out, rows) + places(trained, rows)) == list(range(rows))
    assert split_rows(key, rows, fraction) == (held_out, trained)
    assert rows < 2 or places(trained, rows)
    assert abs(len(places(held_out, rows)) - fraction * rows) <= 1 or fraction == 0.99
    if fraction == 0.0:
        assert not held_out


@given(KEYS, st.integers(1, 200), st.integers(1, 60))
def test_a_packet_that_comes_in_parts_is_split_as_the_whole_is(
    key: tuple[int, int, int], rows: int, step: int
) -> None:
    whole = places(split_rows(key, rows, 0.3)[0], rows)
    found = []
    for first in range(0, rows, step):
        part = slice(first, min(rows, first + step))
        held_out, trained = split_rows(key, rows, 0.3, part)
        size = part.stop - part.start
        assert sorted(places(held_out, size) + places(trained, size)) == list(range(size))
        found += [first + row for row in places(held_out, size)]
    assert sorted(found) == sorted(whole)


def test_about_the_configured_fraction_of_every_shard_is_held_out_in_packets_of_any_size() -> None:
    for shard, rows in enumerate((1, 3, 20, 64)):
        counts = [held_out_run((0, shard, seq), rows, 0.05)[1] for seq in range(20_000)]
        assert 0.045 < sum(counts) / (20_000 * rows) < 0.055


def test_every_place_of_a_packet_is_held_out_as_often() -> None:
    seen = [0] * 40
    for seq in range(20_000):
        for row in places(split_rows((0, 0, seq), 40, 0.05)[0], 40):
            seen[row] += 1
    assert min(seen) > 0.8 * 1000
    assert max(seen) < 1.2 * 1000


def test_each_of_twelve_hooks_of_a_run_of_25_calls_has_held_out_rows() -> None:
    """By packet, 11 of 40 such hooks had none."""
    hooks = 12
    for hook in range(hooks):
        keys = [(0, 0, hooks * call + hook) for call in range(25)]
        assert all(split_rows(key, 2048, 0.05)[0] for key in keys)
    without = [
        hook
        for hook in range(40)
        if not any(whole_is_held_out((0, 0, 40 * call + hook), 0.05) for call in range(25))
    ]
    assert len(without) == 11


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
