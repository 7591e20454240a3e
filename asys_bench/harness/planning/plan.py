"""The plan: in which order contenders run, when verdicts are looked at, and every seed. Pure.

Blocks are rounds: in each block every contender runs once, in an order taken from a Latin square, so
that each contender stands in each position equally often and drift of the machine hits all alike
(Montgomery, Design and Analysis of Experiments, ch. 4). The square's rows and symbols are permuted
by the run's seed. Rejected: all rounds of A, then all of B. Under a slow drift that called 53 % of
equal pairs different; interleaved it was 3.5 %.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Look:
    """A planned look: after `rounds` rounds, spending `alpha` (two-sided) of the error budget."""

    number: int
    """1-based."""
    rounds: int
    alpha: float


def planned_looks(rounds: Sequence[int], confidence: float) -> tuple[Look, ...]:
    """The looks at these round counts; the error is split evenly (Bonferroni) over them.

    Looking again without splitting would pass a target on its limit at the luckiest look.

    Raises:
        ValueError: `rounds` is empty or does not rise.
    """
    if not rounds or any(b <= a for a, b in pairwise(rounds)) or rounds[0] < 1:
        raise ValueError(f"looks must rise and start at 1 or more, got {list(rounds)}")
    alpha = (1.0 - confidence) / len(rounds)
    return tuple(Look(index + 1, count, alpha) for index, count in enumerate(rounds))


def latin_square(size: int, seed: int) -> list[list[int]]:
    """`size` rows, each a permutation of 0..size-1, each column one too; random by `seed`."""
    rng = random.Random(seed)
    rows, columns, symbols = (list(range(size)) for _ in range(3))
    for sequence in (rows, columns, symbols):
        rng.shuffle(sequence)
    return [[symbols[(row + column) % size] for column in columns] for row in rows]


def block_order(contenders: Sequence[str], block: int, seed: int) -> list[str]:
    """The contenders of one block (round) in the order in which they run."""
    if not contenders:
        return []
    size = len(contenders)
    square = latin_square(size, seed_of(seed, "square", *contenders, str(block // size)))
    return [contenders[index] for index in square[block % size]]


def seed_of(seed: int, *words: str) -> int:
    """A seed in [0, 2**32) that depends on the run's seed and the words only."""
    text = "\0".join((str(seed), *words)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


def environment_length(seed: int) -> int:
    """Bytes of padding for a round's environment block, 0..4095.

    Its size moves the stack, and with it alignment; one fixed size can favour one contender by
    several percent (Mytkowicz et al., ASPLOS 2009), so every round draws its own.
    """
    return random.Random(seed ^ 0x5EED).randrange(4096)


def replacement_budget(rounds: int) -> int:
    """How many rounds may be replaced on noise evidence: at most 10 %."""
    return rounds // 10
