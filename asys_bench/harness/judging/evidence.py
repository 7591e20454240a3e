"""What rounds say about one statistic: values per round, and the interval of a pooled quantile. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from asys_bench.harness.judging.stats import Proportion, clustered_proportion
from asys_bench.harness.planning.targets import Target
from asys_bench.harness.results.result import Exceedance, Round, SampleSummary
from asys_bench.harness.results.result_run import Op

Floats = npt.NDArray[np.float64]
_STORED = {"p50": "median", "p90": "p90", "p99": "p99", "p99.9": "p999"}


@dataclass(frozen=True)
class RoundData:
    """One counted round. `samples` are there only while the run goes on; the rest is in the file."""

    block: int
    """Rounds of one block ran close together; ratios pair within a block."""
    values: Mapping[str, SampleSummary]
    exceed: Mapping[str, Sequence[Exceedance]] = field(default_factory=dict)
    samples: Mapping[str, Floats] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Round, samples: Mapping[str, Floats] | None = None) -> RoundData:
        return cls(found.index, found.values, found.exceed, samples or {})


def round_value(data: RoundData, metric: str, stat: str, quantile: float | None) -> float | None:
    """The statistic within one round; None when the round does not have it."""
    if quantile is not None and metric in data.samples:
        values = data.samples[metric]
        return float(np.quantile(values, quantile, method="inverted_cdf")) if len(values) else None
    summary = data.values.get(metric)
    name = _STORED.get(stat, stat)
    found = getattr(summary, name, None) if summary is not None else None
    return None if found is None else float(found)


def exceedance_counts(
    data: Sequence[RoundData], target: Target
) -> tuple[list[int], list[int]] | None:
    """(exceedances, samples) per round for the target's bound, from the counts made at record time.

    None when a round did not count this bound (a file judged against another suite).
    """
    counts, sizes = [], []
    for one in data:
        found = next(
            (e for e in one.exceed.get(target.metric, ())
             if e.op is target.op and e.bound == target.bound), None,
        )  # fmt: skip
        if found is None:
            return None
        counts.append(found.k)
        sizes.append(found.n)
    return counts, sizes


def pooled_quantile(
    data: Sequence[RoundData], metric: str, quantile: float, op: Op, alpha: float
) -> tuple[float, float | None, float | None] | None:
    """(estimate, low, high) of a pooled quantile by inverting the clustered proportion test.

    `high` is the least limit that would pass, `low` the greatest that would fail, so that the
    interval shown and the verdict agree. None without samples.
    """
    rounds = [np.sort(one.samples[metric]) for one in data if len(one.samples.get(metric, ()))]
    if not rounds:
        return None
    pooled = np.unique(np.concatenate(rounds))
    sizes = [len(values) for values in rounds]
    estimate = float(np.quantile(np.concatenate(rounds), quantile, method="inverted_cdf"))
    upper_tail = 1.0 - quantile

    def above(limit: float) -> Proportion:
        counts = [size - int(np.searchsorted(values, limit, "right"))
                  for values, size in zip(rounds, sizes, strict=True)]  # fmt: skip
        return clustered_proportion(counts, sizes, alpha)

    high = _first(pooled, lambda limit: above(limit).high <= upper_tail)
    beyond = _first(pooled, lambda limit: above(limit).low <= upper_tail)
    low = None if beyond is None or beyond == pooled[0] else beyond
    return estimate, low, high


def _first(ordered: Floats, holds: Callable[[float], bool]) -> float | None:
    """The least element from which on `holds`; None when it holds for none."""
    if not holds(float(ordered[-1])):
        return None
    low, high = 0, len(ordered) - 1
    while low < high:
        middle = (low + high) // 2
        if holds(float(ordered[middle])):
            high = middle
        else:
            low = middle + 1
    return float(ordered[low])
