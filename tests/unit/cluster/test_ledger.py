"""The ledger survives a kill after any of its stores, and never lets a packet on the bus twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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


def push(ledger: Ledger, bus: list[int], seq: int) -> None:
    account = ledger.account(SENDER, ledger.stream(STREAM))
    if account.stream.has(seq) or not account.stream.admit(seq):
        return
    ledger.begin(account, seq)
    bus.append(seq)
    ledger.done(account, seq)


@pytest.mark.parametrize("stores", range(12))
@pytest.mark.parametrize("seq", [5, WINDOW + 70])
def test_killed_after_any_store_a_packet_is_on_the_bus_once_and_counted_once(
    tmp_path: Path, stores: int, seq: int
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
        push(ledger, bus, seq)
    except KilledError:
        killed = True
    ledger._cells = cells
    ledger.close()
    there = len(bus)
    ledger = Ledger(tmp_path, 1, lambda attempt: there if attempt == 0 else None)
    push(ledger, bus, seq)
    assert bus == [0, 1, 2, 3, 4, seq]
    assert ledger.accepted(SENDER) == 6
    assert ledger.in_doubt == 0
    assert killed or stores >= 7
    ledger.close()


def test_numbers_that_left_the_window_are_expired_and_those_in_it_are_told_apart(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path, 0)
    stream = ledger.stream(STREAM)
    for seq in (0, 1, 63, 64, 200):
        assert stream.admit(seq)
        stream.set(seq)
    assert stream.admit(WINDOW + 10)  # now 0..63 are gone
    stream.set(WINDOW + 10)
    assert not stream.admit(63)
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
    assert stream.admit(far)
    assert not stream.has(far)
    stream.set(far)
    assert stream.has(far)
    assert not stream.admit(7)
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
