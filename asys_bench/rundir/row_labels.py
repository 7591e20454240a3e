"""Labels of archived rows: the stream `labels` read once, and looked up by the keys of rows.

A label and a row belong together where attempt, source, host step, weights version and microbatch are equal
and `contracts.labels.rows_per_label` says so. Of two labels of one name for one row the packet with the
larger sequence number counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from asys_bench.contracts.coin import hashed
from asys_bench.contracts.labels import (
    CALL_COLUMNS,
    LABEL_TEXT,
    is_of_several,
    label_names,
    rows_per_label,
    text_code,
    text_of,
)
from asys_bench.contracts.names import LABELS
from asys_bench.rundir.archive_columns import LABEL_PREFIX, Columns, column_array
from asys_bench.sinks.archive import Archive

_MOMENT = ("attempt", "source", "host_step", "weights_version", "microbatch")
_PACKET = ("shard", "seq", "text")
_TAGS = slice(2, 2 + CALL_COLUMNS)
"""Of `_MOMENT`: what a packet of several calls says of each."""
KEYS = (*_MOMENT, "text", "row", "grid")
"""Columns of rows that their labels are found by."""
Numbers = npt.NDArray[np.int64]


def grid_of(spelled: str) -> tuple[int, ...] | None:
    """The leading dimensions of a tensor as the column `grid` has them; None: not recorded."""
    return tuple(int(n) for n in spelled.split("x")) if spelled else None


def _rows_of_a_call(grid_N: npt.NDArray[Any]) -> Numbers:
    """Of packets of several calls, whose first dimension these are."""
    spelled, inverse_N = np.unique(grid_N, return_inverse=True)
    rows = [math.prod(grid_of(str(one).partition("x")[2]) or ()) for one in spelled]
    return np.maximum(1, np.array(rows, dtype=np.int64))[inverse_N.reshape(-1)]


@dataclass(frozen=True)
class _Packets:
    """Label packets with one set of names, sorted by `hash_P`. (A packet that two record batches share is
    two of them.)

    moment_P5: what rows must agree in. first_P, count_P: their rows among the label's. start_P: where these
    are in values_NK.
    """

    names: tuple[str, ...]
    hash_P: npt.NDArray[np.uint64]
    moment_P5: Numbers
    seq_P: Numbers
    text_P: Numbers
    grid_P: Numbers
    first_P: Numbers
    count_P: Numbers
    start_P: Numbers
    values_NK: npt.NDArray[np.floating[Any]]


class LabelTable:
    """All labels of an archive.

    names: in alphabetical order.
    """

    def __init__(self, archive: Archive) -> None:
        """Raises ArchiveError: a shard of the labels is damaged."""
        self._grids: dict[str, int] = {}
        self._texts: dict[int, str] = {}
        found = _Found()
        for batch in archive.batches(LABELS) if LABELS in archive.hooks else ():
            self._read(batch, found)
        self._packets = found.sorted()
        self.names = tuple(sorted({name for each in self._packets for name in each.names}))

    def _read(self, batch: Any, found: _Found) -> None:
        encodings_N = column_array(batch, "encoding")
        keys_NK = np.stack(
            [column_array(batch, name).astype(np.int64) for name in (*_MOMENT, *_PACKET)], axis=1
        )
        values_NK, row_N = column_array(batch, "values"), column_array(batch, "row")
        grid_N = column_array(batch, "grid")
        several_N = np.array([is_of_several(str(one)) for one in encodings_N])
        call_N = np.zeros(len(keys_NK), dtype=np.int64)
        if several_N.any():  # rows are numbered through all calls of a packet
            keys_NK[several_N, _TAGS] += values_NK[several_N, :CALL_COLUMNS].astype(np.int64)
            call_N = np.where(several_N, row_N // _rows_of_a_call(grid_N), 0)
        broken_N = np.ones(len(keys_NK), dtype=bool)
        broken_N[1:] = (keys_NK[1:] != keys_NK[:-1]).any(axis=1) | (call_N[1:] != call_N[:-1])
        begins = np.flatnonzero(broken_N)
        for begin, end in zip(begins, np.append(begins[1:], len(keys_NK)), strict=True):
            encoding = str(encodings_N[begin])
            if encoding == LABEL_TEXT:
                for raw in values_NK[begin:end]:
                    text = text_of(raw.astype(np.uint8).tobytes())
                    self._texts[text_code(text)] = text
                continue
            names = label_names(encoding)
            skipped = CALL_COLUMNS if several_N[begin] else 0
            if names is None or skipped + len(names) != values_NK.shape[1]:
                continue
            spelled, row = str(grid_N[begin]), int(row_N[begin])
            if several_N[begin]:
                row %= int(_rows_of_a_call(grid_N[begin : begin + 1])[0])
                spelled = spelled.partition("x")[2]
            grid = self._grids.setdefault(spelled, len(self._grids))
            key = (*keys_NK[begin].tolist(), grid, row)
            found.add(names, key, values_NK[begin:end, skipped:])

    @cached_property
    def texts(self) -> dict[str, dict[int, str]]:
        """Label -> number -> text, of the labels whose every value stands for a text."""
        found: dict[str, dict[int, str]] = {}
        for name in self.names if self._texts else ():
            codes: set[int] = set()
            for packets in self._packets:
                if name in packets.names:
                    column_N = packets.values_NK[:, packets.names.index(name)]
                    values = np.unique(column_N[np.isfinite(column_N)])
                    codes |= {int(value) for value in values[: len(self._texts) + 1]}
            if codes and codes <= self._texts.keys():
                found[name] = {code: self._texts[code] for code in codes}
        return found

    def columns(self, names: Sequence[str], keys: Columns) -> Columns:
        """`label.<name>` for each of `names`: float64[n], NaN where a row has none; of texts str, "" there.

        keys: the columns `KEYS` of n rows.
        """
        row_N = keys["row"].astype(np.int64)
        text_N = keys["text"].astype(np.int64)
        moment_N5 = np.stack([keys[name].astype(np.int64) for name in _MOMENT], axis=1)
        hash_N = hashed(*moment_N5.T)
        spelled, grid_N = np.unique(keys["grid"], return_inverse=True)
        places = {name: index for index, name in enumerate(names)}
        found_NK = np.full((len(row_N), len(names)), np.nan)
        seq_NK = np.full((len(row_N), len(names)), -1, dtype=np.int64)
        per = self._rows_per_label([str(one) for one in spelled])
        for packets in self._packets:
            wanted = [(k, places[name]) for k, name in enumerate(packets.names) if name in places]
            if not wanted:
                continue
            for at_M, value_M, seq_M in self._matches(
                packets, hash_N, moment_N5, row_N, text_N, grid_N.reshape(-1), per
            ):
                for column, place in wanted:
                    values_M = packets.values_NK[value_M, column]
                    better_M = ~np.isnan(values_M) & (seq_M >= seq_NK[at_M, place])
                    found_NK[at_M[better_M], place] = values_M[better_M]
                    seq_NK[at_M[better_M], place] = seq_M[better_M]
        return {
            f"{LABEL_PREFIX}{name}": self._shown(name, found_NK[:, k])
            for k, name in enumerate(names)
        }

    def _shown(self, name: str, values_N: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
        texts = self.texts.get(name)
        if texts is None:
            return values_N
        codes, inverse = np.unique(np.nan_to_num(values_N, nan=0.0), return_inverse=True)
        return np.array([texts.get(int(code), "") for code in codes], dtype=np.str_)[
            inverse.reshape(-1)
        ]

    def _rows_per_label(self, spelled: Sequence[str]) -> Numbers:
        """[labels' grids, rows' grids]; 0 where they do not belong together. Texts are asked apart."""
        per = np.zeros((len(self._grids), len(spelled)), dtype=np.int64)
        for grid, number in self._grids.items():
            for index, rows in enumerate(spelled):
                per[number, index] = rows_per_label(grid_of(grid) or (), grid_of(rows)) or 0
        return per

    @staticmethod
    def _matches(
        packets: _Packets,
        hash_N: npt.NDArray[np.uint64],
        moment_N5: Numbers,
        row_N: Numbers,
        text_N: Numbers,
        grid_N: Numbers,
        per: Numbers,
    ) -> Iterator[tuple[Numbers, Numbers, Numbers]]:
        """(rows, their places in `values_NK`, the label packets' numbers): each row once in one of them."""
        next_N = np.searchsorted(packets.hash_P, hash_N, side="left")
        end_N = np.searchsorted(packets.hash_P, hash_N, side="right")
        at_M = np.flatnonzero(next_N < end_N)
        while len(at_M):
            which_M = next_N[at_M]
            per_M = per[packets.grid_P[which_M], grid_N[at_M]]
            label_M = row_N[at_M] // np.maximum(per_M, 1) - packets.first_P[which_M]
            text_M = packets.text_P[which_M]
            fits_M = (
                (per_M > 0)
                & (label_M >= 0)
                & (label_M < packets.count_P[which_M])
                & ((text_M == 0) | (text_M == text_N[at_M]))
                & (packets.moment_P5[which_M] == moment_N5[at_M]).all(axis=1)
            )
            place_M = packets.start_P[which_M] + label_M
            yield at_M[fits_M], place_M[fits_M], packets.seq_P[which_M][fits_M]
            next_N[at_M] += 1
            at_M = at_M[next_N[at_M] < end_N[at_M]]


class _Found:
    """Packets as they are read, by their names."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
        self._values: dict[tuple[str, ...], list[npt.NDArray[Any]]] = {}

    def add(
        self, names: tuple[str, ...], key: tuple[int, ...], values_NK: npt.NDArray[Any]
    ) -> None:
        self._keys.setdefault(names, []).append((*key, len(values_NK)))
        self._values.setdefault(names, []).append(values_NK)

    def sorted(self) -> list[_Packets]:
        packets = []
        for names, keys in self._keys.items():
            table = np.array(keys, dtype=np.int64)
            values_NK = np.concatenate(self._values[names])
            count_P = table[:, -1]
            start_P = np.cumsum(count_P) - count_P
            hash_P = hashed(*table[:, :5].T)
            order = np.argsort(hash_P, kind="stable")
            moment_P5, (_, seq_P, text_P, grid_P, first_P) = table[order, :5], table[order, 5:10].T
            packets.append(
                _Packets(
                    names, hash_P[order], moment_P5, seq_P, text_P, grid_P, first_P,
                    count_P[order], start_P[order], values_NK,
                )
            )  # fmt: skip
        return packets
