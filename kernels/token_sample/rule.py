"""Which rows are kept: a share, a number or every n-th, and its name in the encoding."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from asys_bench.contracts.packet import PacketError
from asys_bench.contracts.preprocessor import Positions
from asys_bench.kernels.simd.splitmix import draw_key, hash32
from asys_bench.kernels.token_sample.config import DEFAULT_FRACTION, TokenSampleOptions
from asys_bench.kernels.token_sample.selection import stratified

MAX_ROWS = 1 << 31
"""Positions are computed in 64 bits from products of two row counts."""
_NAME = re.compile(
    r"(?:fraction([0-9.e-]{1,24})|rows([1-9][0-9]*)|every([1-9][0-9]*))\.seed([0-9]+)"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One of `fraction`, `count` and `every` is set."""

    seed: int
    fraction: float | None = None
    count: int | None = None
    every: int | None = None

    @property
    def name(self) -> str:
        """For example `rows16.seed0`; `rule_of_name` reads it back."""
        if self.every is not None:
            return f"every{self.every}.seed{self.seed}"
        if self.count is not None:
            return f"rows{self.count}.seed{self.seed}"
        return f"fraction{self.fraction!r}.seed{self.seed}"

    def most(self, total: int) -> int:
        """The most rows kept of `total`."""
        if self.every is not None:
            return -(-total // self.every)
        if self.count is not None:
            return min(self.count, total)
        assert self.fraction is not None
        return min(int(self.fraction * total) + 1, total)

    def rate(self, total: int) -> float:
        """Probability that a given row of `total` is kept (for `every`: the share that is)."""
        if total == 0:
            return 1.0
        if self.fraction is not None:
            return self.fraction
        return self.most(total) / total

    def positions(self, total: int, draw: int) -> Positions:
        """The rows that draw number `draw` keeps of `total`.

        `fraction` keeps floor(fraction * total + u) rows, u = h(0) / 2^32, so that every row is kept
        with probability `fraction`, also where fraction * total is not whole.

        Raises:
            PacketError: `total` is 2^31 or more.
        """
        if not 0 <= total < MAX_ROWS:
            raise PacketError(f"token_sample numbers fewer than 2^31 rows, got {total}")
        if self.every is not None:
            return np.arange(0, total, self.every, dtype=np.int64)
        key = draw_key(self.seed, draw)
        if self.count is not None:
            count = self.count
        else:
            assert self.fraction is not None
            count = int(self.fraction * total + hash32(key, 0) / (1 << 32))
        return stratified(total, min(count, self.most(total)), key)


def rule_of(options: TokenSampleOptions) -> Rule:
    """The rule that options ask for."""
    fraction = options.fraction
    if fraction is None and options.rows is None and options.every is None:
        fraction = DEFAULT_FRACTION
    return Rule(options.seed, fraction, options.rows, options.every)


def rule_of_name(name: str) -> Rule | None:
    """The rule that `Rule.name` names; None when it names none."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    fraction, count, every, seed = found.groups()
    try:
        options = TokenSampleOptions(
            fraction=float(fraction) if fraction else None,
            rows=int(count) if count else None,
            every=int(every) if every else None,
            seed=int(seed),
        )
    except ValueError:
        return None
    rule = rule_of(options)
    return rule if rule.name == name else None
