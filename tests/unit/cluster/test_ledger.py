"""The ledger survives a kill after any of its stores, and never lets a packet on the bus twice."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.cluster.ledger import (
    FOLDER,
    LEDGER_DOCUMENT,
    LEDGER_FILE,
    WINDOW,
    Ledger,
    LedgerError,
    SenderKey,
    StreamKey,
)

SENDER = SenderKey("run", 0, "remote-0")
STREAM = StreamKey("run", 0, 3, 1)


class KilledError(Exception):
    pass


class DyingCells:
    """Cells of which the n-th store is the last."""

    def __init__(self, cells: Any, stores: int) -> None:
        self.cells, self.left = cells, stores

    def __getitem__(self, at: int) -> int:
        return int(self.cells[at])

    def __setitem__(self, at: int, value: int) -> None:
        if self.left == 0:
            raise KilledError
        self.left -= 1
        self.cells[at] = value


def push(
    ledger: Ledger, bus: list[int], seq: int, count: int = 1, taken: int | None = None
) -> None:
    """A run; the bus takes `taken` of it, or all."""
    account = ledger.account(SENDER, ledger.stream(STREAM))
    account.stream.admit(seq + count - 1)
    while count:
        known, alike = account.stream.alike(seq, count)
        if not known:
            ledger.begin(account, seq, alike)
            took = alike if taken is None else min(alike, taken)
            bus.extend(range(seq, seq + took))
            if not took:
                ledger.undone()
                return
            ledger.done(account, seq, took)
            if took < alike:
                return
        seq, count = seq + alike, count - alike


@pytest.mark.parametrize("stores", range(16))
@pytest.mark.parametrize(
    ("seq", "count", "taken"),
    [(5, 1, 1), (WINDOW + 70, 1, 1), (5, 130, 130), (60, 200, 70), (5, 9, 0)],
)
def test_killed_after_any_store_packets_are_on_the_bus_once_and_counted_once(
    tmp_path: Path, stores: int, seq: int, count: int, taken: int
) -> None:
    bus: list[int] = []
    ledger = Ledger(tmp_path, 0)
    for one in range(5):
        push(ledger, bus, one)
    cells = ledger._cells
    dying: Any = DyingCells(cells, stores)
    ledger._cells = dying
    for one in (*ledger.streams, *ledger.accounts):
        one._cells = dying
    killed = False
    try:
        push(ledger, bus, seq, count, taken)
    except KilledError:
        killed = True
    ledger._cells = cells
    ledger.close()
    there = len(bus)
    ledger = Ledger(tmp_path, 1, lambda attempt: there if attempt == 0 else None)
    assert ledger.accepted(SENDER) == there
    push(ledger, bus, seq, count)
    assert bus == [*range(5), *range(seq, seq + count)]
    assert ledger.accepted(SENDER) == 5 + count
    assert ledger.in_doubt == 0
    assert killed or stores >= (10 if taken else 6)
    ledger.close()


@pytest.mark.parametrize("told", [None, 2])
def test_a_run_that_no_account_tells_of_is_in_doubt_as_a_whole(
    tmp_path: Path, told: int | None
) -> None:
    ledger = Ledger(tmp_path, 0)
    for one in range(5):
        push(ledger, [], one)
    ledger.begin(ledger.accounts[0], 5, 40)
    ledger.close()
    ledger = Ledger(tmp_path, 1, lambda attempt: told)  # 2: of a worker that had left long before
    assert (ledger.in_doubt, ledger.accepted(SENDER)) == (40, 45)
    assert ledger.streams[0].alike(0, 50) == (True, 45)
    ledger.close()


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.sets(st.integers(WINDOW - 300, WINDOW + 300)),
    first=st.integers(WINDOW - 300, WINDOW + 200),
    count=st.integers(1, 200),
)
def test_how_many_numbers_are_alike_is_what_one_look_at_each_says(
    numbers: set[int], first: int, count: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder), 0)
        stream = ledger.stream(STREAM)
        stream.admit(WINDOW + 300)
        for seq in numbers:
            stream.set(seq)
        each = [stream.has(seq) for seq in range(first, first + count)]
        alike = len(list(itertools.takewhile(lambda known: known == each[0], each)))
        assert stream.alike(first, count) == (each[0], alike)
        ledger.close()


def test_numbers_that_left_the_window_are_expired_and_those_in_it_are_told_apart(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path, 0)
    stream = ledger.stream(STREAM)
    for seq in (0, 1, 63, 64, 200):
        stream.admit(seq)
        stream.set(seq)
    assert stream.base == 0
    stream.admit(WINDOW + 10)  # now 0..63 are gone
    assert stream.base == 64
    stream.set(WINDOW + 10)
    stream.admit(63)
    assert stream.base == 64
    assert not stream.has(63)
    assert stream.has(64)
    assert stream.has(200)
    assert not stream.has(65)
    assert not stream.has(WINDOW)  # the place of 0, which was set
    assert stream.has(WINDOW + 10)
    ledger.close()


def test_a_jump_over_many_windows_forgets_everything_before(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 0)
    stream = ledger.stream(STREAM)
    stream.set(7)
    far = 40 * WINDOW + 7
    stream.admit(far)
    assert not stream.has(far)
    stream.set(far)
    assert stream.has(far)
    assert stream.base > 7
    ledger.close()


def test_streams_accounts_job_and_id_are_there_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 0)
    ledger.begin_run("job", {"streams": [], "shards": 2, "step_unit": "step"})
    bus: list[int] = []
    push(ledger, bus, 9)
    first = ledger.id
    ledger.close()
    ledger = Ledger(tmp_path, 1)
    assert (ledger.id, ledger.job, ledger.feed) == (
        first, "job", {"streams": [], "shards": 2, "step_unit": "step"},
    )  # fmt: skip
    assert ledger.streams[0].key == STREAM
    assert ledger.streams[0].has(9)
    assert ledger.accepted(SENDER) == 1
    ledger.close()


def test_the_second_run_of_a_rank_has_a_number_of_its_own(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 0)
    first = ledger.stream(StreamKey("a", 0, 0, 0))
    again = ledger.stream(StreamKey("a", 1, 0, 0))
    other = ledger.stream(StreamKey("b", 0, 0, 0))
    assert [one.run_number for one in (first, again, other)] == [0, 0, 1]
    ledger.close()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "asys.ledger/1", "id": "x"}'])
def test_a_damaged_document_is_refused_by_name(tmp_path: Path, text: str) -> None:
    ledger = Ledger(tmp_path, 0)
    ledger.stream(STREAM)
    ledger.close()
    (tmp_path / FOLDER / LEDGER_DOCUMENT).write_text(text)
    with pytest.raises(LedgerError, match=LEDGER_DOCUMENT):
        Ledger(tmp_path, 1)


def test_a_file_that_is_no_ledger_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / LEDGER_FILE).write_bytes(b"x" * 4096)
    with pytest.raises(LedgerError, match=LEDGER_FILE):
        Ledger(tmp_path, 0)
