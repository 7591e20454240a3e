"""The receiver's ledger: which packets of which rank it has put on its bus, in a file that outlives it.

    ledger.bin    cells and bits, mapped; a SIGKILL loses nothing that was stored
    ledger.json   who is who: the receiver's id, streams and accounts by number; replaced as a whole

A *stream* is one shard of one attempt of one run: (run, attempt, source, shard). Of each stream the ledger
has a bit for each of the last `WINDOW` sequence numbers, from `base` on; what is below `base` is settled,
and a packet of there is *expired*: nobody can tell whether it came. An *account* counts what one forwarder
sent of one stream.

Putting packets on the bus and writing them down are two steps, and a SIGKILL may come between them. A *run*
is packets of one account with numbers in a row, which one call pushes::

    1. intent: account, first seq, how many, and the counts as they are before      `begin`
    2. they are pushed, all or the first few                                        (the caller)
    3. how many it was, their bits, the count of the account, the count of pushes   `done`
    4. no intent

Whoever opens the ledger afterwards finishes an intent: where step 3 has begun, it is done again (it sets what
it set). Otherwise the bus of the attempt before tells how many were pushed: as many as its count of accepted
packets is above that of the intent. Where nobody can tell (every worker was killed too), they all count as
pushed and as `in_doubt`: `MOST_RUN` packets for each death at most, and never twice on a bus.

File, little-endian u64 cells::

    0 magic | 1 in doubt | 2 intent: (account + 1) << 40 | seq, 0 for none | 3 count of the account before
    4 pushes before | 5 attempt of the pushes | 6 pushes in that attempt | 7 packets of the intent
    8 of which pushed, 0 until then | 64.. accounts, 8 cells each: 0 accepted, 1 duplicates, 2 expired,
    3 unpushed | then streams: base, clean, 6 spare, bits

`clean` lags behind `base` while bits of numbers below `base` are cleared for those that take their place.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from asys_bench.system.files import replace_file
from asys_bench.system.files.below import make_folders, open_or_create, read_json

FOLDER = "cluster"
LEDGER_FILE, LEDGER_DOCUMENT, LEDGER_SCHEMA = "ledger.bin", "ledger.json", "asys.ledger/1"
MAGIC = 0x3147_444C_5953_4121
WINDOW = 1 << 20
"""Sequence numbers of a stream that are told apart; far more than a ring and a forwarder hold."""
MOST_RUN = 256
"""Packets of one intent."""
MOST_ACCOUNTS, MOST_STREAMS = 4096, 1024
_SEQ_BITS = 40
_WORDS = WINDOW // 64
_HEAD_CELLS, _ACCOUNT_CELLS, _STREAM_CELLS = 64, 8, 8 + _WORDS
_STREAMS_AT = _HEAD_CELLS + MOST_ACCOUNTS * _ACCOUNT_CELLS
_IN_DOUBT, _INTENT, _COUNT_BEFORE, _PUSHES_BEFORE, _ATTEMPT, _PUSHES, _RUN, _PUSHED = range(1, 9)


class LedgerError(RuntimeError):
    """The ledger is damaged or full; says which file."""


@dataclass(frozen=True, slots=True)
class StreamKey:
    """One shard of one attempt of one run."""

    run_id: str
    attempt: int
    source: int
    shard: int


@dataclass(frozen=True, slots=True)
class SenderKey:
    """One forwarder of one attempt of one run."""

    run_id: str
    attempt: int
    worker: str


class Stream:
    """The bits of one stream. number: in the ledger."""

    __slots__ = ("_cells", "_first", "base", "key", "number", "run_number")

    def __init__(self, cells: memoryview, number: int, key: StreamKey, run_number: int) -> None:
        self.number, self.key, self.run_number = number, key, run_number
        self._cells = cells
        first = _STREAMS_AT + number * _STREAM_CELLS
        self._first = first + 8
        self.base = int(cells[first])
        if cells[first + 1] < self.base:
            self._clean(int(cells[first + 1]), self.base)

    def has(self, seq: int) -> bool:
        """It was put on a bus; False below `base`."""
        if not self.base <= seq < self.base + WINDOW:
            return False
        return bool(self._cells[self._first + (seq >> 6) % _WORDS] >> (seq & 63) & 1)

    def admit(self, seq: int) -> None:
        """Make room for `seq`, unless it is below `base`."""
        if seq >= self.base + WINDOW:
            self._advance((seq - WINDOW + 64) & ~63)

    def alike(self, seq: int, count: int) -> tuple[bool, int]:
        """Whether `seq` was put on a bus, and for how many from it on, `count` at most, that is the same.

        All of them were admitted.
        """
        known, end, at = self.has(seq), seq + count, seq
        while at < end:
            word = int(self._cells[self._first + (at >> 6) % _WORDS])
            here = min(64 - (at & 63), end - at)
            others = ((~word if known else word) >> (at & 63)) & ((1 << here) - 1)
            if others:
                return known, at - seq + (others & -others).bit_length() - 1
            at += here
        return known, count

    def set(self, seq: int, count: int = 1) -> None:
        """`count` numbers from `seq` on, which were admitted."""
        at, end = seq, seq + count
        while at < end:
            here = min(64 - (at & 63), end - at)
            self._cells[self._first + (at >> 6) % _WORDS] |= ((1 << here) - 1) << (at & 63)
            at += here

    def _advance(self, base: int) -> None:
        before, self.base = self.base, base
        self._cells[self._first - 8] = base
        self._clean(before, base)

    def _clean(self, before: int, base: int) -> None:
        """The words of numbers from `before` to `base` are those of the next ones now."""
        cells, first = self._cells, self._first
        for word in range(before >> 6, min(base >> 6, (before >> 6) + _WORDS)):
            cells[first + word % _WORDS] = 0
        cells[first - 7] = base


class Account:
    """What one forwarder sent of one stream."""

    __slots__ = ("_cells", "_first", "number", "sender", "stream")

    def __init__(self, cells: memoryview, number: int, sender: SenderKey, stream: Stream) -> None:
        self.number, self.sender, self.stream = number, sender, stream
        self._cells, self._first = cells, _HEAD_CELLS + number * _ACCOUNT_CELLS

    @property
    def accepted(self) -> int:
        return int(self._cells[self._first])

    @property
    def duplicates(self) -> int:
        return int(self._cells[self._first + 1])

    @property
    def expired(self) -> int:
        return int(self._cells[self._first + 2])

    @property
    def unpushed(self) -> int:
        return int(self._cells[self._first + 3])

    def count_duplicates(self, count: int) -> None:
        self._cells[self._first + 1] += count

    def count_expired(self, count: int) -> None:
        self._cells[self._first + 2] += count

    def count_unpushed(self, count: int) -> None:
        self._cells[self._first + 3] += count


class Totals(NamedTuple):
    """What accounts come to together."""

    accepted: int
    duplicates: int
    expired: int
    unpushed: int


class Ledger:
    """The ledger of a receiver's run; one writer (the run's lock is the receiver's).

    accepted_before: packets that the bus of the attempt of the last pushes had accepted, as its own
    account says, given that attempt; None: nobody knows.
    """

    def __init__(
        self, run_dir: Path, attempt: int, accepted_before: Any = lambda attempt: None
    ) -> None:
        """Open it, or begin one.

        Raises:
            LedgerError: it is damaged. OSError: it cannot be read or written.
        """
        self._folder, self._below = run_dir / FOLDER, run_dir
        make_folders(self._folder, below=run_dir)
        self._fd = open_or_create(self._folder / LEDGER_FILE, below=run_dir)
        self.job = ""
        self.feed: dict[str, Any] | None = None
        """What the run was begun with: streams, names, shards."""
        self.streams: list[Stream] = []
        self.accounts: list[Account] = []
        self._of_stream: dict[StreamKey, Stream] = {}
        self._of_account: dict[tuple[SenderKey, int], Account] = {}
        self._senders: dict[SenderKey, list[Account]] = {}
        self._runs: dict[tuple[int, int], list[str]] = {}
        try:
            new = self._map()
            if new:
                self.id = secrets.token_hex(8)
                self._save()
            else:
                self._load()
            self._finish(accepted_before)
        except BaseException:
            os.close(self._fd)
            raise
        if self._cells[_ATTEMPT] != attempt or new:
            self._cells[_PUSHES] = 0
            self._cells[_ATTEMPT] = attempt

    @property
    def in_doubt(self) -> int:
        return int(self._cells[_IN_DOUBT])

    def begin_run(self, job: str, feed: dict[str, Any]) -> None:
        """What the receiver's bus is made for; kept for the attempts that follow."""
        self.job, self.feed = job, feed
        self._save()

    def stream(self, key: StreamKey) -> Stream:
        """The stream, a new one if need be. Raises LedgerError: there are too many."""
        found = self._of_stream.get(key)
        if found is None:
            if len(self.streams) == MOST_STREAMS:
                raise LedgerError(
                    f"{self._folder}: {MOST_STREAMS} streams, and no room for another"
                )
            found = self._add_stream(key)
            self._save()
        return found

    def account(self, sender: SenderKey, stream: Stream) -> Account:
        """What `sender` sent of `stream`. Raises LedgerError: there are too many."""
        found = self._of_account.get((sender, stream.number))
        if found is None:
            if len(self.accounts) == MOST_ACCOUNTS:
                raise LedgerError(
                    f"{self._folder}: {MOST_ACCOUNTS} accounts, and no room for another"
                )
            found = self._add_account(sender, stream)
            self._save()
        return found

    def of(self, sender: SenderKey) -> list[Account]:
        """The accounts of one forwarder."""
        return self._senders.get(sender, [])

    def senders(self) -> list[SenderKey]:
        return list(self._senders)

    def accepted(self, sender: SenderKey) -> int:
        """Packets of this forwarder that were ever put on a bus."""
        return sum(account.accepted for account in self.of(sender))

    def total(self, sender: SenderKey | None = None) -> Totals:
        """Of one forwarder; None: of all together."""
        accounts = self.accounts if sender is None else self.of(sender)
        return Totals(
            sum(one.accepted for one in accounts),
            sum(one.duplicates for one in accounts),
            sum(one.expired for one in accounts),
            sum(one.unpushed for one in accounts),
        )

    def begin(self, account: Account, seq: int, count: int) -> None:
        """Step 1 for `count` packets from `seq` on, `MOST_RUN` at most, none of which was put on a bus. They
        are pushed next, then `done` or `undone`."""
        cells = self._cells
        cells[_COUNT_BEFORE] = cells[_HEAD_CELLS + account.number * _ACCOUNT_CELLS]
        cells[_PUSHES_BEFORE] = cells[_PUSHES]
        cells[_RUN], cells[_PUSHED] = count, 0
        cells[_INTENT] = (account.number + 1) << _SEQ_BITS | seq

    def done(self, account: Account, seq: int, count: int) -> None:
        """Steps 3 and 4: the first `count` of them are on the bus, one at least."""
        cells = self._cells
        cells[_PUSHED] = count
        account.stream.set(seq, count)
        cells[_HEAD_CELLS + account.number * _ACCOUNT_CELLS] = cells[_COUNT_BEFORE] + count
        cells[_PUSHES] = cells[_PUSHES_BEFORE] + count
        cells[_INTENT] = 0

    def undone(self) -> None:
        """The bus refused all of them."""
        self._cells[_INTENT] = 0

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._raw.release()
            self._cells.release()
            self._mapping.close()

    def _finish(self, accepted_before: Any) -> None:
        """An intent that the last writer left."""
        intent = int(self._cells[_INTENT])
        if not intent:
            return
        number, seq = (intent >> _SEQ_BITS) - 1, intent & ((1 << _SEQ_BITS) - 1)
        if number >= len(self.accounts):
            raise LedgerError(f"{self._folder / LEDGER_FILE}: an intent of account {number}")
        account, count = self.accounts[number], int(self._cells[_PUSHED])
        run = max(1, int(self._cells[_RUN]))  # an intent of an earlier version is of one packet
        if not count:
            before = int(self._cells[_PUSHES_BEFORE])
            pushed = accepted_before(int(self._cells[_ATTEMPT]))
            if pushed is None or pushed < before:
                self._cells[_IN_DOUBT] += run
                count = run
            else:
                count = min(pushed - before, run)
        if count:
            self.done(account, seq, count)
        else:
            self.undone()

    def _map(self) -> bool:
        """Map the file; True: it is a new one."""
        least = 8 * _STREAMS_AT
        size = os.fstat(self._fd).st_size
        if size < least:
            os.posix_fallocate(self._fd, 0, least)
            size = least
        self._mapping = mmap.mmap(self._fd, size)
        self._view()
        if self._cells[0] == 0:
            self._cells[0] = MAGIC
            return True
        if self._cells[0] != MAGIC:
            raise LedgerError(f"{self._folder / LEDGER_FILE}: is no ledger")
        # Without a document its first writer was killed before it had said who it is.
        return not (self._folder / LEDGER_DOCUMENT).exists()

    def _view(self) -> None:
        self._raw = memoryview(self._mapping)
        self._cells = self._raw.cast("Q")

    def _add_stream(self, key: StreamKey) -> Stream:
        runs = self._runs.setdefault((key.source, key.shard), [])
        if key.run_id not in runs:
            runs.append(key.run_id)
        number = len(self.streams)
        need = 8 * (_STREAMS_AT + (number + 1) * _STREAM_CELLS)
        if need > len(self._mapping):
            self._grow(need)
        stream = Stream(self._cells, number, key, runs.index(key.run_id))
        self.streams.append(stream)
        self._of_stream[key] = stream
        return stream

    def _grow(self, need: int) -> None:
        """Room for the bits of another stream."""
        os.posix_fallocate(self._fd, 0, need)
        old, raw, cells = self._mapping, self._raw, self._cells
        self._mapping = mmap.mmap(self._fd, need)
        self._view()
        for stream in self.streams:
            stream._cells = self._cells
        for account in self.accounts:
            account._cells = self._cells
        cells.release()
        raw.release()
        old.close()

    def _add_account(self, sender: SenderKey, stream: Stream) -> Account:
        account = Account(self._cells, len(self.accounts), sender, stream)
        self.accounts.append(account)
        self._of_account[sender, stream.number] = account
        self._senders.setdefault(sender, []).append(account)
        return account

    def _load(self) -> None:
        path = self._folder / LEDGER_DOCUMENT
        try:
            document = read_json(path, below=self._below)
            if document["schema"] != LEDGER_SCHEMA:
                raise LedgerError(f"{path}: is not of the schema {LEDGER_SCHEMA}")
            self.id, self.job, self.feed = document["id"], document["job"], document["feed"]
            for run_id, attempt, source, shard in document["streams"]:
                self._add_stream(StreamKey(run_id, attempt, source, shard))
            for run_id, attempt, worker, stream in document["accounts"]:
                self._add_account(SenderKey(run_id, attempt, worker), self.streams[stream])
        except (OSError, ValueError, KeyError, TypeError, IndexError, struct.error) as error:
            raise LedgerError(f"{path}: is damaged: {error!r}") from None

    def _save(self) -> None:
        document = {
            "schema": LEDGER_SCHEMA,
            "id": self.id,
            "job": self.job,
            "feed": self.feed,
            "streams": [
                [s.key.run_id, s.key.attempt, s.key.source, s.key.shard] for s in self.streams
            ],
            "accounts": [
                [a.sender.run_id, a.sender.attempt, a.sender.worker, a.stream.number]
                for a in self.accounts
            ],
        }
        replace_file(self._folder / LEDGER_DOCUMENT, json.dumps(document).encode(), sync=False)
