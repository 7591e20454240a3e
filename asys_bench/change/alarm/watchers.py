"""Where the values of an alarm come from: `RowWatchers` of one hook, `PageWatchers` of the stats page.

Both give, for each interval, the names of their watchers with one value each. A watcher without a value in an
interval (no rows came, a gauge that was not set anew) is absent, and its detector waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from asys_bench.contracts.names import matches
from asys_bench.contracts.stats import Counter, Gauge, Metric, StatsPage
from asys_bench.monitors.alarm_page import EXPECTED, OVER, RAISED, RECORDING_UNTIL, STEP, VALUE
from asys_bench.sae import SparseAutoencoder

_OWN = (RAISED, OVER, STEP, VALUE, EXPECTED, RECORDING_UNTIL)
LEAST_DENSITY = 0.03
"""Changes of a density by less than three rows in a hundred are no alarm. A feature that was silent has no
variability that it could be judged by, and many begin to fire in a few rows while a host learns: when they
appeared is what a timeline tells."""
RESCAN_S = 2.0
"""Metrics appear while a run goes on: a trainer's with its first rows."""


class SpreadWatch:
    """How far rows lie apart: the logarithm of the mean squared distance from their mean. It needs no SAE and
    no probe, and rises with states that the host has not been in before."""

    width = None
    """Of any rows."""

    def __init__(self, hook: str, entry: int = 0) -> None:
        self.entry = entry
        """Which of the options' entries it is."""
        self._name = f"{hook} spread"

    def __call__(
        self, rows_ND: torch.Tensor, weight_N: torch.Tensor
    ) -> Iterator[tuple[str, float]]:
        spread = _spread(rows_ND, weight_N / weight_N.sum())
        if spread > 0:
            yield self._name, math.log(spread)


def _spread(rows_ND: torch.Tensor, share_N: torch.Tensor) -> float:
    """Mean squared distance of rows from their mean; share_N adds up to 1."""
    return float(share_N @ (rows_ND - share_N @ rows_ND).square().sum(1))


class SAEWatch:
    """FVU of a known SAE, and densities of some of its features."""

    def __init__(
        self, hook: str, sae: SparseAutoencoder, features: tuple[int, ...], entry: int = 0
    ) -> None:
        self.entry = entry
        """Which of the options' entries it is."""
        self._sae, self._features = sae, list(features)
        self._fvu = f"{hook} fvu"
        self._names = [f"{hook} feature {number}" for number in features]
        self.width = sae.d_in

    def __call__(
        self, rows_ND: torch.Tensor, weight_N: torch.Tensor
    ) -> Iterator[tuple[str, float]]:
        outlying_N = self._sae.outlying(rows_ND)
        if outlying_N is not None:
            rows_ND, weight_N = rows_ND[~outlying_N], weight_N[~outlying_N]
        if not len(rows_ND):
            return
        acts_NF = self._sae.encode(rows_ND)
        share_N = weight_N / weight_N.sum()
        error = float(share_N @ (self._sae.decode(acts_NF) - rows_ND).square().sum(1))
        spread = _spread(rows_ND, share_N)
        if spread > 0:
            yield self._fvu, error / spread
        density_K = share_N @ (acts_NF[:, self._features] > 0).float()
        yield from zip(self._names, density_K.tolist(), strict=True)

    @staticmethod
    def least_of(name: str) -> float:
        """The least change that counts, of one of its watchers."""
        return 0.0 if name.endswith(" fvu") else LEAST_DENSITY


class ProbeWatch:
    """The mean of what a linear probe says of the rows: of a class its probability, else the number.

    weight_CD, bias_C: of raw rows, or of the features of `sae`. classes: None for a number.
    """

    def __init__(
        self,
        name: str,
        weight_CD: torch.Tensor,
        bias_C: torch.Tensor,
        classes: Sequence[float | str] | None,
        sae: SparseAutoencoder | None = None,
        entry: int = 0,
    ) -> None:
        self.entry = entry
        """Which of the options' entries it is."""
        self._weight_CD, self._bias_C, self._sae = weight_CD, bias_C, sae
        self._is_class = classes is not None
        several = len(bias_C) > 1 and classes is not None
        self._names = [f"{name} {one}" for one in classes or ()] if several else [name]
        self.width = weight_CD.shape[1] if sae is None else sae.d_in

    def __call__(
        self, rows_ND: torch.Tensor, weight_N: torch.Tensor
    ) -> Iterator[tuple[str, float]]:
        seen_ND = rows_ND if self._sae is None else self._sae.encode(rows_ND)
        said_NC = seen_ND @ self._weight_CD.T + self._bias_C
        if self._is_class:
            said_NC = said_NC.softmax(1) if said_NC.shape[1] > 1 else said_NC.sigmoid()
        mean_C = (weight_N / weight_N.sum()) @ said_NC
        yield from zip(self._names, mean_C.tolist(), strict=True)


RowWatch = SpreadWatch | SAEWatch | ProbeWatch


class RowWatchers:
    """All watchers of one hook's rows.

    most_rows: per interval; rows beyond are not looked at. refused: rows that none of them can take.
    """

    def __init__(self, evaluations: Sequence[RowWatch], most_rows: int, refused: Counter) -> None:
        self._evaluations, self._most_rows, self._refused = tuple(evaluations), most_rows, refused
        self._rows: list[torch.Tensor] = []
        self._weights: list[torch.Tensor] = []
        self._left = most_rows
        self.newest_ns = 0
        """Time of the newest packet that was looked at."""

    @property
    def is_full(self) -> bool:
        return self._left <= 0

    def take(self, tensor: torch.Tensor, sampling_rate: float, time_ns: int) -> None:
        """Copy rows of a packet, spread over it, until the interval has enough."""
        if tensor.numel() == 0 or tensor.ndim == 0 or tensor.is_complex():
            return
        rows_ND = tensor.reshape(-1, tensor.shape[-1])
        if len(rows_ND) > self._left:
            rows_ND = rows_ND[:: -(-len(rows_ND) // self._left)]
        rows_ND = rows_ND.to(torch.float32, copy=True)
        finite_N = torch.isfinite(rows_ND).all(1)
        if self._rows and self._rows[0].shape[1] != rows_ND.shape[1]:
            finite_N[:] = False
        self._refused.add(int((~finite_N).sum()))
        rows_ND = rows_ND[finite_N]
        if not len(rows_ND):
            return
        self._rows.append(rows_ND)
        self._weights.append(torch.full((len(rows_ND),), 1.0 / sampling_rate))
        self._left -= len(rows_ND)
        self.newest_ns = max(self.newest_ns, time_ns)

    def forget(self) -> None:
        """Let go of the rows since the last `values`."""
        self._rows, self._weights, self._left = [], [], self._most_rows

    @torch.no_grad()
    def values(self) -> Iterator[tuple[int, str, float]]:
        """(entry, watcher, value) of the rows since the last call, which are let go of."""
        if not self._rows:
            return
        rows_ND, weight_N = torch.cat(self._rows), torch.cat(self._weights)
        self.forget()
        for evaluation in self._evaluations if len(rows_ND) else ():
            if evaluation.width not in (None, rows_ND.shape[1]):
                self._refused.add(len(rows_ND))
                continue
            for name, value in evaluation(rows_ND, weight_N):
                yield evaluation.entry, name, value


@dataclass
class _Watched:
    """One metric of the page, and what was read of it last."""

    name: str
    metric: Metric
    last: tuple[float, float] = (math.nan, math.nan)
    """Of a gauge (value, 0); of a counter (value, time); of a histogram (count, sum)."""

    def value(self, now_s: float) -> float:
        """NaN where there is nothing new."""
        before, metric = self.last, self.metric
        if isinstance(metric, Gauge):
            self.last = metric.value, 0.0
            return self.last[0] if self.last[0] != before[0] else math.nan
        if isinstance(metric, Counter):
            self.last = float(metric.value), now_s
            grown, base = self.last[0] - before[0], now_s - before[1]
            # Less than before: its worker has begun anew.
            return grown / base if base > 0 and grown >= 0 else math.nan
        seen = metric.snapshot()
        self.last = float(seen.count), float(seen.total)
        grown = self.last[0] - before[0]
        return (self.last[1] - before[1]) / grown if grown > 0 else math.nan


class PageWatchers:
    """Metrics of the stats page that match one glob, whichever process has them.

    most: metrics that it watches at the most.
    """

    def __init__(self, page: StatsPage, glob: str, most: int) -> None:
        self._page, self._glob, self._most = page, glob, most
        self._watched: dict[str, _Watched] = {}
        self._next_scan_s = -math.inf

    def values(self, now_s: float) -> Iterator[tuple[str, float]]:
        """Of metrics with something new since the last call. now_s: a monotonic time."""
        if now_s >= self._next_scan_s:
            self._next_scan_s = now_s + RESCAN_S
            self._scan()
        for one in self._watched.values():
            value = one.value(now_s)
            if math.isfinite(value):
                yield one.name, value

    def _scan(self) -> None:
        for slot_name, slot in self._page.slots():
            for full, metric in slot.metrics().items():
                bare = full.partition("{")[0]
                wanted = full if "{" in self._glob else bare
                name = f"{slot_name} {full}"
                if bare in _OWN or name in self._watched or not matches(wanted, self._glob):
                    continue
                if len(self._watched) < self._most:
                    self._watched[name] = _Watched(name, metric)
