"""The address book: the last generation of a name counts, whoever writes when."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from asys_bench.cluster.book import (
    Book,
    BookError,
    BookUnavailableError,
    Contents,
    Entry,
    EntryError,
    OvertakenError,
)
from asys_bench.store.objects import ObjectStore, Reason
from asys_bench.store.uri import parse_uri

_OF = runpy.run_path(str(Path(__file__).parents[1] / "monitors" / "upload" / "conftest.py"))
s3_server, s3, bucket = _OF["s3_server"], _OF["s3"], _OF["bucket"]

KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
FIRST = Entry(
    name="policy", address="tcp://10.0.0.7:7001", public_key=KEY, hooks=("policy.*", "value.0"),
    run_dir="/runs/policy", node="trainer-3", generation=1, job="ppo-7", started_unix_ns=1_700_000_000,
)  # fmt: skip
SECOND = replace(FIRST, address="tcp://10.0.0.8:7001", node="trainer-4", generation=2)


@pytest.fixture
def book(tmp_path) -> Book:
    return Book.open(tmp_path / "book")


def files(tmp_path: Path) -> list[str]:
    folder = tmp_path / "book"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_was_announced_is_read_back_by_another_reader(book, tmp_path):
    other = replace(FIRST, name="value", address="tcp://[fe80::1]:65535", public_key="", job="")
    book.announce(other)
    book.announce(FIRST)
    again = Book.open(f"file://{tmp_path}/book")
    assert again.entries() == (FIRST, other)
    assert again.get("policy") == FIRST
    assert again.get("nobody") is None
    assert (tmp_path / "book").stat().st_mode & 0o777 == 0o700


def test_a_book_that_is_not_there_is_empty_and_reading_makes_none(tmp_path):
    book = Book.open(tmp_path / "book")
    assert book.read() == Contents((), {})
    assert book.next_generation("policy") == 1
    book.withdraw("policy", 3)
    assert not (tmp_path / "book").exists()


def test_a_later_generation_replaces_the_earlier_one_and_leaves_one_object(book, tmp_path):
    book.announce(FIRST)
    book.announce(SECOND)
    book.announce(SECOND)
    assert book.entries() == (SECOND,)
    assert len(files(tmp_path)) == 1
    assert book.next_generation("policy") == 3


def test_a_stale_writer_never_replaces_a_newer_entry(book, tmp_path):
    book.announce(SECOND)
    with pytest.raises(
        OvertakenError, match=r"generation 1 of policy .* 2 is at tcp://10\.0\.0\.8"
    ):
        book.announce(FIRST)
    assert book.entries() == (SECOND,)
    assert len(files(tmp_path)) == 1


def test_a_stale_writer_that_looked_before_the_newer_one_wrote_is_told_and_is_not_read(tmp_path):
    class Slow(Book):
        """Another writer comes between the look and the write."""

        def _put(self, key, document):
            Book.open(tmp_path / "book").announce(SECOND)
            super()._put(key, document)

    slow = Slow(ObjectStore(parse_uri(f"file://{tmp_path}/book")))
    with pytest.raises(OvertakenError) as told:
        slow.announce(FIRST)
    assert told.value.by == SECOND
    assert Book.open(tmp_path / "book").entries() == (SECOND,)
    assert len(files(tmp_path)) == 1


def test_of_two_of_one_generation_the_one_that_started_later_is_read_by_everybody(book):
    twin = replace(FIRST, address="tcp://10.0.0.9:1", started_unix_ns=FIRST.started_unix_ns + 1)
    book.announce(FIRST)
    book.announce(twin)
    assert book.entries() == (twin,)
    with pytest.raises(OvertakenError):
        book.announce(FIRST)
    assert book.entries() == (twin,)


def test_who_has_left_is_not_read_and_does_not_come_back_from_an_older_writer(book, tmp_path):
    book.announce(FIRST)
    book.withdraw("policy", 1)
    book.withdraw("policy", 1)
    assert book.entries() == ()
    assert len(files(tmp_path)) == 1
    with pytest.raises(OvertakenError, match="generation 1 has left since") as told:
        book.announce(FIRST)
    assert told.value.by is None
    assert book.next_generation("policy") == 2
    book.announce(SECOND)
    assert book.entries() == (SECOND,)


def test_a_withdrawal_of_an_older_generation_does_not_touch_the_newer(book):
    book.announce(FIRST)
    book.announce(SECOND)
    book.withdraw("policy", 1)
    assert book.entries() == (SECOND,)


def test_generations_are_ordered_as_numbers(book):
    for generation in (9, 10, 100):
        book.announce(replace(FIRST, generation=generation))
    assert book.get("policy").generation == 100
    with pytest.raises(OvertakenError):
        book.announce(replace(FIRST, generation=99))


def test_an_entry_that_is_overtaken_between_listing_and_reading_is_read_anew(tmp_path):
    class Late(Book):
        told = False

        def _entry(self, key):
            if not self.told:
                self.told = True
                Book.open(tmp_path / "book").announce(SECOND)
            return super()._entry(key)

    Book.open(tmp_path / "book").announce(FIRST)
    late = Late(ObjectStore(parse_uri(f"file://{tmp_path}/book")))
    assert late.entries() == (SECOND,)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a/b"),
        ("name", ".hidden"),
        ("name", ""),
        ("name", "x" * 129),
        ("address", "10.0.0.7:7001"),
        ("address", "ipc:///tmp/x"),
        ("address", "tcp://10.0.0.7:0"),
        ("address", "tcp://10.0.0.7:65536"),
        ("address", "tcp://user@host:1"),
        ("public_key", KEY[:-1]),
        ("public_key", KEY[:-1] + "~"),
        ("hooks", ()),
        ("hooks", ("a\nb",)),
        ("run_dir", "x" * 4097),
        ("node", "a\x00"),
        ("generation", -1),
        ("generation", True),
        ("generation", 1 << 63),
        ("started_unix_ns", 1.5),
    ],
)
def test_what_is_no_entry_is_refused_with_the_field(field, value):
    with pytest.raises(EntryError, match="no name" if field == "name" else field):
        replace(FIRST, **{field: value})


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[]",
        b'{"schema": "asys.book/2"}',
        b'{"schema": "asys.book/1"}',
        b"[" * 100_000,
        b" " * (300 << 10),
        b"\xff\xfe",
    ],
)
def test_an_object_that_is_no_entry_is_named_and_the_others_are_read(book, tmp_path, text):
    book.announce(FIRST)
    book.announce(replace(FIRST, name="value"))
    (path,) = (tmp_path / "book" / "receivers" / "policy").iterdir()
    path.write_bytes(text)
    found = Book.open(tmp_path / "book").read()
    assert [entry.name for entry in found.entries] == ["value"]
    assert found.unreadable.keys() == {"policy"}
    assert path.name in found.unreadable["policy"]


def test_an_entry_under_another_name_or_generation_is_no_entry(book, tmp_path):
    book.announce(FIRST)
    (path,) = (tmp_path / "book" / "receivers" / "policy").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": "value"}))
    assert book.read().entries == ()
    assert "is the entry of value, generation 1" in book.read().unreadable["policy"]


def test_fields_of_a_later_version_and_strange_files_are_passed_over(book, tmp_path):
    book.announce(FIRST)
    (path,) = (tmp_path / "book" / "receivers" / "policy").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "blue"}))
    (path.parent / f"{path.name}.part").write_text("{")
    (path.parent / "notes.json").write_text("{")
    (tmp_path / "book" / "README").write_text("hello")
    assert book.read() == Contents((FIRST,), {})


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("ftp://host/book", "ftp"),
        ("s3://bucket", "names no place in the bucket"),
        ("s3://key:secret@bucket/book", "holds credentials"),
    ],
)
def test_a_place_that_can_hold_no_book_is_refused_with_the_reason(place, why):
    with pytest.raises(BookError, match=why) as told:
        Book.open(place)
    assert "secret" not in str(told.value)


def test_a_folder_that_cannot_be_written_is_an_error_of_the_book(tmp_path):
    (tmp_path / "book").write_text("a file")
    with pytest.raises(BookUnavailableError):
        Book.open(tmp_path / "book").announce(FIRST)


def test_a_book_in_s3_is_the_same_book(bucket):
    book = Book.open(f"s3://{bucket.name}/cluster/book")
    book.announce(FIRST)
    book.announce(SECOND)
    with pytest.raises(OvertakenError):
        book.announce(FIRST)
    assert Book.open(f"s3://{bucket.name}/cluster/book").entries() == (SECOND,)
    assert sum(one.key.endswith(".json") for one in bucket.objects.all()) == 1
    book.withdraw("policy", 2)
    assert book.entries() == ()


def test_a_bucket_that_is_not_there_is_named_as_such(s3):
    with pytest.raises(BookUnavailableError, match="no such bucket") as told:
        Book.open("s3://nobody-has-it/book").announce(FIRST)
    assert told.value.reason is Reason.NO_BUCKET
