"""Rows of a live run and the labels that come for them, also later: `contracts.labels` says what belongs
together.

Rows wait for labels and labels for rows, because tensors of a device reach the bus after what the host said
of them. Rows leave when every label that is known is there (a name is known for `horizon` host steps after
it came), when the horizon has passed, or when there is no room, the oldest first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from asys_bench.contracts.labels import rows_per_label
from asys_bench.contracts.preprocessor import Positions

T = TypeVar("T")
Values = npt.NDArray[np.float64]
_LABEL_BYTES = 16 << 20
_ROW_OVERHEAD = 16


class CallKey(NamedTuple):
    """What rows and labels agree in: packets of one attempt."""

    source: int
    host_step: int
    weights_version: int
    microbatch: int


@dataclass(eq=False)
class Joined(Generic[T]):
    """Rows that leave.

    payload: what was offered with them. labels: name -> float64[n], NaN where a row has none; a name of
    which none came is not there.
    """

    key: CallKey
    payload: T
    rows_N: Positions
    labels: dict[str, Values] = field(default_factory=dict)


@dataclass(eq=False)
class _Waiting(Generic[T]):
    joined: Joined[T]
    dims: tuple[int, ...] | None
    text: int
    nbytes: int


@dataclass(eq=False)
class _Label:
    names: tuple[str, ...]
    dims: tuple[int, ...]
    text: int
    values_NK: Values
    is_used: bool = False


class LabelJoin(Generic[T]):
    """See the module docstring.

    horizon: host steps. most_bytes: of rows that wait.

    unjoined_rows, unjoined_labels: that left without any partner.
    """

    def __init__(self, horizon: int, most_bytes: int = 64 << 20) -> None:
        self._horizon, self._most_bytes = horizon, most_bytes
        self._rows: OrderedDict[CallKey, list[_Waiting[T]]] = OrderedDict()
        self._labels: OrderedDict[CallKey, list[_Label]] = OrderedDict()
        self._row_bytes = self._label_bytes = 0
        self._newest: dict[int, int] = {}
        self._known: dict[str, int] = {}
        """Name -> the host step that it came for last."""
        self.unjoined_rows = self.unjoined_labels = 0

    def has_rows(self, key: CallKey) -> bool:
        """Whether rows of the call wait."""
        return key in self._rows

    def offer_rows(
        self,
        key: CallKey,
        dims: tuple[int, ...] | None,
        text: int,
        rows_N: Positions,
        payload: T,
        nbytes: int,
    ) -> Iterator[Joined[T]]:
        """Rows `rows_N` of a captured tensor with leading dimensions `dims` (None: not known); what leaves
        now. Run it to its end.

        payload: of `nbytes`, comes back with the labels; no views of a lease.
        """
        waiting = _Waiting(Joined(key, payload, rows_N), dims, text, nbytes)
        for label in self._labels.get(key, ()):
            _give(waiting, label)
        if self._is_complete(waiting):
            yield waiting.joined
        else:
            self._rows.setdefault(key, []).append(waiting)
            self._row_bytes += nbytes + _ROW_OVERHEAD * len(rows_N)
        yield from self._leaving(key)

    def offer_labels(
        self, key: CallKey, names: tuple[str, ...], dims: tuple[int, ...], text: int, values: Values
    ) -> Iterator[Joined[T]]:
        """Labels [prod(dims), K] of a call; as `offer_rows`."""
        label = _Label(names, dims, text, values)
        self._labels.setdefault(key, []).append(label)
        self._label_bytes += values.nbytes + 256
        for name in names:
            self._known[name] = max(key.host_step, self._known.get(name, 0))
        waiting = self._rows.get(key, [])
        left = []
        for one in waiting:
            _give(one, label)
            if self._is_complete(one):
                self._row_bytes -= one.nbytes + _ROW_OVERHEAD * len(one.joined.rows_N)
                yield one.joined
            else:
                left.append(one)
        if waiting:
            if left:
                self._rows[key] = left
            else:
                del self._rows[key]
        yield from self._leaving(key)

    def flush(self) -> Iterator[Joined[T]]:
        """Everything that waits."""
        while self._rows:
            yield from self._oldest()
        while self._labels:
            self._forget_labels()

    def _is_complete(self, waiting: _Waiting[T]) -> bool:
        return bool(self._known) and self._known.keys() <= waiting.joined.labels.keys()

    def _leaving(self, key: CallKey) -> Iterator[Joined[T]]:
        newest = self._newest[key.source] = max(key.host_step, self._newest.get(key.source, 0))
        for name in [n for n, step in self._known.items() if step + self._horizon < newest]:
            del self._known[name]
        while self._rows and (
            self._row_bytes > self._most_bytes or self._is_old(next(iter(self._rows)))
        ):
            yield from self._oldest()
        while self._labels and (
            self._label_bytes > _LABEL_BYTES or self._is_old(next(iter(self._labels)))
        ):
            self._forget_labels()

    def _is_old(self, key: CallKey) -> bool:
        return key.host_step + self._horizon < self._newest.get(key.source, 0)

    def _oldest(self) -> Iterator[Joined[T]]:
        _, waiting = self._rows.popitem(last=False)
        for one in waiting:
            self._row_bytes -= one.nbytes + _ROW_OVERHEAD * len(one.joined.rows_N)
            if not one.joined.labels:
                self.unjoined_rows += len(one.joined.rows_N)
            yield one.joined

    def _forget_labels(self) -> None:
        _, labels = self._labels.popitem(last=False)
        for label in labels:
            self._label_bytes -= label.values_NK.nbytes + 256
            if not label.is_used:
                self.unjoined_labels += len(label.values_NK) * len(label.names)


def _give(waiting: _Waiting[T], label: _Label) -> None:
    """Put the label's values at the rows that it is of."""
    per = rows_per_label(label.dims, waiting.dims, label_text=label.text, rows_text=waiting.text)
    if per is None:
        return
    label.is_used = True
    joined, values_NK = waiting.joined, label.values_NK
    at_N = joined.rows_N if per == 1 else joined.rows_N // per
    if len(at_N) and at_N[-1] >= len(values_NK):  # rows are in ascending order
        values_NK = np.vstack([values_NK, np.full((1, len(label.names)), np.nan)])
        at_N = np.minimum(at_N, len(values_NK) - 1)
    picked_NK = values_NK[at_N]
    for column, name in enumerate(label.names):
        new, had = picked_NK[:, column], joined.labels.get(name)
        joined.labels[name] = new if had is None else np.where(np.isnan(new), had, new)
