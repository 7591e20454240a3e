"""What a round keeps of its samples: exact exceedances, a summary, and a histogram for plots."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from asys_bench.contracts.scenario import NANOSECONDS, unit_of
from asys_bench.contracts.stats import SUB_BUCKETS, SUB_BUCKETS_LOG2
from asys_bench.harness.results.result import Exceedance, Hdr, SampleSummary
from asys_bench.harness.results.result_run import Op

Floats = npt.NDArray[np.float64]


class SampleRecorder:
    """Samples of one metric. `record` is an append to a typed array: about 40 ns, no allocation that
    the garbage collector would look at."""

    __slots__ = ("_values", "record")

    def __init__(self) -> None:
        self._values = array("q")
        self.record = self._values.append

    def extend(self, values_ns: object) -> None:
        """Many nanosecond durations at once."""
        self._values.frombytes(np.asarray(values_ns, np.int64).tobytes())

    def clear(self) -> None:
        """Forget what the warm-up recorded."""
        del self._values[:]

    def __len__(self) -> int:
        return len(self._values)

    def nanoseconds(self) -> npt.NDArray[np.int64]:
        return np.array(self._values, np.int64)


def in_unit(metric: str, values_ns: npt.NDArray[np.int64]) -> Floats:
    """Nanoseconds in the unit of the metric's name."""
    return np.asarray(values_ns * NANOSECONDS[unit_of(metric)], np.float64)


def summarise(values: Floats) -> SampleSummary:
    """Order statistics of one round; quantiles are samples (inverted CDF), never interpolated."""
    n = len(values)
    if n == 0:
        return SampleSummary(n=0)
    p90, p99, p999 = np.quantile(values, (0.9, 0.99, 0.999), method="inverted_cdf").tolist()
    return SampleSummary(
        n=n,
        median=float(np.median(values)),
        mean=float(values.mean()),
        min=float(values.min()),
        max=float(values.max()),
        p90=p90,
        p99=p99,
        p999=p999,
    )


def exceedances(values: Floats, bounds: Sequence[tuple[str, float]]) -> list[Exceedance]:
    """How many samples do not fulfil `sample op bound`, for each bound. Exact."""
    found = []
    for op, bound in bounds:
        beyond = values > bound if op == Op.AT_MOST else values < bound
        found.append(Exceedance(bound=bound, op=Op(op), n=len(values), k=int(beyond.sum())))
    return found


def histogram(values_ns: npt.NDArray[np.int64], scale: float) -> Hdr:
    """Log-linear buckets as `contracts.stats.bucket_of`, for a whole array at once."""
    values = np.maximum(values_ns, 0)
    bits = np.frexp(values.astype(np.float64))[1]  # exact below 2**53 ns, which is 104 days
    shift = np.maximum(bits - SUB_BUCKETS_LOG2 - 1, 0)
    index = np.where(values < SUB_BUCKETS, values, (shift << SUB_BUCKETS_LOG2) + (values >> shift))
    buckets, counts = np.unique(index, return_counts=True)
    pairs = list(zip(buckets.tolist(), counts.tolist(), strict=True))
    maximum = int(values.max()) if len(values) else 0
    return Hdr(unit="ns", scale=scale, count=len(values), maximum=maximum, buckets=pairs)


def merge_histograms(parts: Sequence[Hdr]) -> Hdr | None:
    """All rounds together; None when there are none."""
    if not parts:
        return None
    total: dict[int, int] = {}
    for part in parts:
        for index, count in part.buckets:
            total[index] = total.get(index, 0) + count
    return Hdr(
        unit=parts[0].unit,
        scale=parts[0].scale,
        count=sum(part.count for part in parts),
        maximum=max(part.maximum for part in parts),
        buckets=sorted(total.items()),
    )
