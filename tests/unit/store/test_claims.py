"""Who has a copy: one folder at most, whoever asks at the same time, and nobody waits for the dead."""

from __future__ import annotations

import collections
import itertools
import os
import threading
import time

import pytest

from asys_bench.store.claims import (
    LEASE_S,
    START_LEASE_S,
    WAIT_S,
    Claim,
    CopyInUseError,
    Hold,
    claims_in,
    forget_earlier,
    hold_of,
    holder_of,
    next_claim,
    take_over,
    write_claim,
    write_hold,
)
from asys_bench.store.objects import ObjectStore
from asys_bench.store.uri import parse_uri


@pytest.fixture(params=["file", "s3"])
def store(request, tmp_path):
    """A place in a folder, and one of moto's S3."""
    if request.param == "file":
        return ObjectStore(parse_uri(f"file://{tmp_path}/copy"))
    return ObjectStore(parse_uri(f"s3://{request.getfixturevalue('bucket').name}/copy"))


def no_pause(seconds):
    raise AssertionError(f"{seconds} s were waited for nothing")


def test_the_first_claim_and_one_after_a_holder_that_gave_it_back_are_not_waited_for(store):
    first = next_claim(store)
    take_over(store, first, no_pause)
    assert (first.term, list(claims_in(store))) == (1, [first])
    take_over(store, first, no_pause)  # by a process that was killed before it knew
    write_claim(store, first, released=True)
    second = next_claim(store)
    take_over(store, second, no_pause)
    assert [claim.term for claim in claims_in(store)] == [2, 1]
    forget_earlier(store, second)
    assert list(claims_in(store)) == [second]
    assert next_claim(store, 7).term == 8


def test_a_holder_at_work_keeps_its_copy_and_whoever_asks_hears_who_it_is(store):
    first = next_claim(store)
    write_claim(store, first)
    second, pauses = next_claim(store), []

    def beat(seconds):
        pauses.append(seconds)
        if store.location.scheme == "s3":  # times of whole seconds
            time.sleep(1.1)
        write_claim(store, first)

    with pytest.raises(CopyInUseError, match=f"at work elsewhere .pid {os.getpid()} on "):
        take_over(store, second, beat)
    assert list(claims_in(store)) == [first]
    assert len(pauses) == 1


def test_a_holder_that_has_been_silent_for_its_lease_is_gone(tmp_path):
    store = ObjectStore(parse_uri(f"file://{tmp_path}/copy"))
    first = next_claim(store)
    write_claim(store, first)
    path = tmp_path / "copy" / first.key
    now_ns = path.stat().st_mtime_ns
    os.utime(path, ns=(0, now_ns - int((LEASE_S - 2) * 1e9)))
    waited = []

    def pause(seconds):
        waited.append(seconds)
        time.sleep(seconds)

    second = next_claim(store)
    take_over(store, second, pause)
    assert 0 < sum(waited) < 3
    assert next(iter(claims_in(store))) == second


def test_one_that_has_long_to_go_is_refused_at_once(store):
    first = next_claim(store)
    write_claim(store, first, START_LEASE_S)
    assert START_LEASE_S > WAIT_S
    with pytest.raises(CopyInUseError):
        take_over(store, next_claim(store), no_pause)
    assert holder_of(store, first).lease_s == START_LEASE_S


class InTurns:
    """A store that two threads use in the order of `schedule`, one operation at a time; then each alone."""

    def __init__(self, store, schedule):
        self._store, self._schedule = store, list(schedule)
        self._turn = threading.Condition()
        self._ended = set()

    def of(self, number):
        return _Turn(self, number)

    def call(self, number, name, *arguments):
        with self._turn:
            while self._schedule and self._schedule[0] != number:
                if self._schedule[0] in self._ended:
                    self._schedule.pop(0)
                    continue
                assert self._turn.wait(60)
            if self._schedule:
                self._schedule.pop(0)
            try:
                return getattr(self._store, name)(*arguments)
            finally:
                self._turn.notify_all()

    def end(self, number):
        with self._turn:
            self._ended.add(number)
            self._turn.notify_all()


class _Turn:
    def __init__(self, turns, number):
        self._turns, self._number = turns, number

    def __getattr__(self, name):
        return lambda *arguments: self._turns.call(self._number, name, *arguments)


def give_up(seconds):
    raise CopyInUseError("the other one was first")


def test_of_two_that_ask_at_once_at_most_one_has_the_copy_in_every_order(tmp_path):
    """Each lists for its term, lists, puts, lists, and reads of the last holder: 252 orders."""
    found = collections.Counter()
    for number, picks in enumerate(itertools.combinations(range(10), 5)):
        store = ObjectStore(parse_uri(f"file://{tmp_path}/{number}"))
        write_claim(store, Claim(1, "0" * 16), released=True)
        turns, winners = InTurns(store, [int(step in picks) for step in range(10)]), []

        def ask(me, turns=turns, winners=winners):
            mine = next_claim(turns.of(me))
            try:
                take_over(turns.of(me), mine, give_up)
            except CopyInUseError:
                pass
            else:
                winners.append(mine)
            finally:
                turns.end(me)

        threads = [threading.Thread(target=ask, args=(me,)) for me in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(winners) <= 1, picks
        if winners:
            assert next(iter(claims_in(store))) == winners[0]
        found[len(winners)] += 1
    assert found[1] > 20
    assert found[0] > 20, "and sometimes both withdraw"


def test_a_second_one_withdraws_when_it_meets_the_first(store):
    last = next_claim(store)
    write_claim(store, last, released=True)
    first, second = next_claim(store), next_claim(store)
    assert first.term == second.term
    take_over(store, first, no_pause)
    with pytest.raises(CopyInUseError, match="just now"):
        take_over(store, second, no_pause)
    assert list(claims_in(store)) == [first, last]


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"lease_s": 1e9}', b'{"lease_s": "x"}'])
def test_a_claim_that_says_nonsense_has_the_lease_of_one_at_work(tmp_path, text):
    store = ObjectStore(parse_uri(f"file://{tmp_path}/copy"))
    claim = Claim(1, "0" * 16)
    store.put(claim.key, [text])
    store.put("claims/x", [b"1"])
    assert list(claims_in(store)) == [claim]
    assert (holder_of(store, claim).lease_s, holder_of(store, claim).released) == (LEASE_S, False)


def test_a_folder_knows_its_hold_on_each_place_and_no_nonsense(tmp_path):
    hold = Hold(Claim(3, "ab" * 8), frozenset(["sae/a/step_000000001/x"]))
    write_hold(tmp_path, "s3://b/x", hold)
    write_hold(tmp_path, "s3://b/y", Hold(Claim(1, "cd" * 8)))
    assert hold_of(tmp_path, "s3://b/x") == hold
    assert hold_of(tmp_path, "s3://b/z") is None
    for text in ("", "[]", '{"schema": "asys.copy/1", "places": {"s3://b/x": {"term": 1}}}'):
        (tmp_path / ".copy.json").write_text(text)
        assert hold_of(tmp_path, "s3://b/x") is None
