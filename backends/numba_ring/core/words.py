"""Atomic access to words of a segment from Python, off the data path: tables, states, locks."""

from __future__ import annotations

from asys_bench.backends.numba_ring.core.compiled import entry
from asys_bench.backends.numba_ring.core.copy import (
    cmpxchg,
    fetch_and_seq_cst,
    fetch_or_seq_cst,
    load_seq_cst,
    store_seq_cst,
)
from asys_bench.backends.numba_ring.core.ring import reap_claims, ring

_ALL = (1 << 64) - 1


def unsigned(word: int) -> int:
    """A word as compiled code returns it -> 0..2**64 - 1."""
    return word & _ALL


def signed(value: int) -> int:
    """A number modulo 2**64 -> as compiled code takes it."""
    value &= _ALL
    return value - (1 << 64) if value >> 63 else value


@entry(1)
def load_word(address: int) -> int:
    return load_seq_cst(address)


@entry(2)
def store_word(address: int, word: int) -> int:
    store_seq_cst(address, word)
    return word


@entry(3)
def swap_word(address: int, expected: int, word: int) -> int:
    """1 if it was `expected` and is `word` now."""
    return 1 if cmpxchg(address, expected, word) == expected else 0


@entry(2)
def or_word(address: int, bits: int) -> int:
    return fetch_or_seq_cst(address, bits)


@entry(2)
def and_word(address: int, bits: int) -> int:
    return fetch_and_seq_cst(address, bits)


@entry(1)
def ring_doorbell(header: int) -> int:
    """Wake everybody who waits."""
    ring(header)
    return 0


@entry(5)
def reap(shard: int, slots: int, group: int, owner: int, at_least_once: int) -> int:
    """Take back what a dead owner holds in one shard and group; returns packets."""
    return reap_claims(shard, slots, group, owner, at_least_once)


class Words:
    """The words of a mapped segment by offset, as numbers 0..2**64 - 1."""

    def __init__(self, base: int) -> None:
        self.base = base

    def load(self, offset: int) -> int:
        return unsigned(load_word(self.base + offset))

    def store(self, offset: int, value: int) -> None:
        store_word(self.base + offset, signed(value))

    def swap(self, offset: int, expected: int, value: int) -> bool:
        """Compare and swap; False: it was not `expected`."""
        return swap_word(self.base + offset, signed(expected), signed(value)) == 1

    def set_bits(self, offset: int, bits: int) -> None:
        or_word(self.base + offset, signed(bits))

    def clear_bits(self, offset: int, bits: int) -> None:
        and_word(self.base + offset, signed(~bits))
