"""What the bus comparison says about its figures: near and far apart, by ratios within a round. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cores import LEAST_ROUNDS, REGIMES

from asys_bench.harness.judging.stats import Span, median_span

ALPHA = 0.05


@dataclass(frozen=True)
class Figure:
    """One measurement of one contender, and the cores' regime around it."""

    gbps: float
    regime: str | None


Round = Mapping[str, Figure]
"""By contender."""


@dataclass(frozen=True)
class Comparison:
    """Ours against its best peer in one regime."""

    regime: str
    rounds: int
    peer: str = ""
    ratio: Span | None = None

    def verdict(self, bound: float) -> str:
        """Of `ratio >= bound`; a regime that was not met often enough decides nothing."""
        if self.rounds < LEAST_ROUNDS or self.ratio is None:
            return f"INCONCLUSIVE: {self.rounds} of {LEAST_ROUNDS} rounds"
        if self.ratio.low >= bound:
            return "holds"
        return "fails" if self.ratio.high < bound else "INCONCLUSIVE"


def figures(rounds: Sequence[Round], name: str, regime: str) -> list[float]:
    """GB/s of one contender in one regime."""
    found = (one[name] for one in rounds if name in one)
    return [figure.gbps for figure in found if figure.regime == regime]


def ratios(rounds: Sequence[Round], name: str, other: str, regime: str) -> list[float]:
    """`name` over `other` in the rounds that measured both in that regime."""
    return [
        one[name].gbps / one[other].gbps
        for one in rounds
        if {name, other} <= one.keys() and one[name].regime == one[other].regime == regime
    ]


def against_best(
    rounds: Sequence[Round], ours: str, peers: Sequence[str], regime: str
) -> Comparison:
    """Ours over the peer that comes out best: the one with the smallest median ratio."""
    found = {peer: ratios(rounds, ours, peer, regime) for peer in peers}
    known = {peer: median_span(values, ALPHA) for peer, values in found.items() if values}
    if not known:
        return Comparison(regime, 0)
    best = min(known, key=lambda peer: known[peer].estimate)
    return Comparison(regime, len(found[best]), best, known[best])


def cell(values: Sequence[float]) -> str:
    """Median with its interval, or what is missing."""
    if len(values) < LEAST_ROUNDS:
        return f"({len(values)} rounds)" if values else ""
    span = median_span(values, ALPHA)
    return f"{span.estimate:.3g} ({span.low:.3g}..{span.high:.3g})"


def lines(
    rounds: Sequence[Round], names: Sequence[str], ours: str, peers: Sequence[str]
) -> Iterator[str]:
    """The Markdown table of one payload size and pool."""
    yield "| | near GB/s | ours over it | far GB/s | ours over it |"
    yield "|---|---|---|---|---|"
    for name in names:
        cells = []
        for regime in REGIMES:
            cells.append(cell(figures(rounds, name, regime)))
            compared = name in peers
            cells.append(cell(ratios(rounds, ours, name, regime)) if compared else "")
        if any(cells):
            yield f"| {name} | " + " | ".join(cells) + " |"
