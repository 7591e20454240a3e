"""Rows of a text's hooks and the stream `tokens`: which token each row is.

Both name the call (source, host step, microbatch) and the text. On one shard tokens come first, and rows
leave at once; where they are late (another shard, a GPU's copy), rows wait `WAIT_S` and then leave
without. Tokens of a few calls are kept, the oldest are dropped first.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
WAIT_S = 2.0
MOST_TOKEN_BYTES, MOST_WAITING_BYTES = 2 << 20, 8 << 20


class TextKey(NamedTuple):
    """What rows and tokens agree in: packets of one attempt."""

    source: int
    host_step: int
    microbatch: int
    text: int


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a text, in order. sequence: which of its sequences each is of, from 0."""

    id_N: npt.NDArray[np.int32]
    position_N: npt.NDArray[np.int32]
    sequence_N: npt.NDArray[np.int32]

    @classmethod
    def of(cls, rows_N2: npt.NDArray[np.integer]) -> Tokens:
        """Of the stream's rows (token id, position). A sequence ends where positions do not go on."""
        both = np.ascontiguousarray(rows_N2.T).astype(np.int32)
        begins_N = np.zeros(len(rows_N2), np.int32)
        begins_N[1:] = both[1, 1:] != both[1, :-1] + 1
        return cls(both[0], both[1], np.cumsum(begins_N, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.id_N)

    @property
    def nbytes(self) -> int:
        return self.id_N.nbytes + self.position_N.nbytes + self.sequence_N.nbytes


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[T]):
    key: TextKey
    payload: T
    nbytes: int
    until_s: float


class TokenJoin(Generic[T]):
    """See the module docstring. Payloads are the caller's."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[TextKey, Tokens] = OrderedDict()
        self._waiting: list[_Waiting[T]] = []
        self._token_bytes = self._waiting_bytes = 0

    def tokens_of(self, key: TextKey) -> Tokens | None:
        """The tokens, if they have come."""
        return self._tokens.get(key)

    def put(self, key: TextKey, tokens: Tokens) -> list[T]:
        """Tokens have come; the payloads that waited for them."""
        before = self._tokens.pop(key, None)
        self._token_bytes += tokens.nbytes - (before.nbytes if before is not None else 0)
        self._tokens[key] = tokens
        while self._token_bytes > MOST_TOKEN_BYTES and len(self._tokens) > 1:
            self._token_bytes -= self._tokens.popitem(last=False)[1].nbytes
        return self._leave([one for one in self._waiting if one.key == key])

    def wait(self, key: TextKey, payload: T, nbytes: int) -> list[T]:
        """Rows whose tokens have not come; payloads that must leave without, as there is no room."""
        self._waiting.append(_Waiting(key, payload, nbytes, time.monotonic() + WAIT_S))
        self._waiting_bytes += nbytes
        leaving, over = [], self._waiting_bytes - MOST_WAITING_BYTES
        for one in self._waiting:
            if over <= 0:
                break
            leaving.append(one)
            over -= one.nbytes
        return self._leave(leaving)

    def late(self, everything: bool = False) -> list[T]:
        """Payloads that have waited long enough, or all of them."""
        now_s = time.monotonic()
        return self._leave([one for one in self._waiting if everything or one.until_s <= now_s])

    def _leave(self, leaving: list[_Waiting[T]]) -> list[T]:
        if leaving:
            self._waiting = [one for one in self._waiting if one not in leaving]
            self._waiting_bytes -= sum(one.nbytes for one in leaving)
        return [one.payload for one in leaving]
