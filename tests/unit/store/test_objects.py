"""What can go wrong with an object has a reason of its own, and a word for people."""

from __future__ import annotations

import pytest

from asys_bench.store.objects import WORDS, ObjectStore, Reason, StoreError, patiently
from asys_bench.store.uri import parse_uri


def test_every_reason_has_words():
    assert WORDS.keys() == set(Reason)


def test_an_object_that_is_too_large_is_refused_as_such_and_not_asked_for_again(tmp_path):
    store = ObjectStore(parse_uri(f"file://{tmp_path}"))
    store.put("one", [b"123", b"45"])
    assert store.get("one", 5) == b"12345"
    asked = []

    def ask() -> bytes:
        asked.append(1)
        return store.get("one", 4)

    with pytest.raises(StoreError, match=r"one: the object is too large \(more than 4") as told:
        patiently(ask, 30.0)
    assert told.value.reason is Reason.TOO_LARGE
    assert len(asked) == 1
