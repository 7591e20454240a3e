"""The address book: where the receivers of a cluster are, in a folder or an object store.

    <book>/receivers/<name>/<generation>.<started>.json     an entry
    <book>/receivers/<name>/<generation>.withdrawn.json     there was one, and it has left

`generation` and `started` have 20 digits, so that names of objects sort as they do. Of a name the last
object counts: every writer has an object of its own, and no store needs to compare before it replaces. A
writer that stopped for an hour and goes on writes beside its successor's entry, before it in the order. An
object that is overtaken is deleted by whoever comes later.

Whoever may write to a book decides where activations are sent: a folder is made with mode 0700. A book is
input: sizes and counts are bounded, and what is no entry is left out and named (`Contents.unreadable`).

NOT COVERED: a store whose listings show an object later than a `get` of it would (S3, GCS and POSIX file
systems do not; NFS may, by its attribute cache).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from asys_bench.cluster.keys import is_key
from asys_bench.store.objects import ObjectStore, Reason, StoreError
from asys_bench.store.uri import is_uri, parse_uri
from asys_bench.system.files.atomic import make_private_folder
from asys_bench.system.files.below import parse_json

SCHEMA = "asys.book/1"
MAX_ENTRY_BYTES, MAX_NAMES, MAX_HOOKS, MAX_TEXT = 256 << 10, 10_000, 1_000, 4_096
TRIES = 5
"""Of a read whose objects are overtaken by others meanwhile."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
RECEIVERS = "receivers"
_KEY = re.compile(r"receivers/([^/]+)/(\d{20})\.(\d{20}|withdrawn)\.json")
ADDRESS = r"tcp://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):\d{1,5}"
"""As a pattern; `is_address` looks at the port as well."""


class BookError(RuntimeError):
    """The address book refuses; says which book and why."""


class BookUnavailableError(BookError):
    """The book's folder or store refuses; `reason` is the store's."""

    def __init__(self, error: StoreError) -> None:
        super().__init__(f"the address book cannot be used: {error}")
        self.reason = error.reason


class OvertakenError(BookError):
    """Somebody of the same name came later; `by` is its entry, None where it has left again."""

    def __init__(self, uri: str, entry: Entry, later: int, by: Entry | None) -> None:
        where = f"is at {by.address} on {by.node}" if by is not None else "has left since"
        super().__init__(
            f"{uri}: generation {entry.generation} of {entry.name} is overtaken: generation {later} {where}; "
            "take `next_generation`, or another name"
        )
        self.by = by


class EntryError(ValueError):
    """It is no entry of an address book; says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One receiver.

    address: `tcp://host:port`, as training nodes reach it. public_key: its CURVE key (Z85, 40
    characters); empty where it has none, on loopback. hooks: globs over the names of hooks that it takes.
    run_dir: of its run, on `node`. generation: counts the receivers of this name. job: of the hosts that
    it takes packets from; empty: of the first that comes.

    Raises:
        EntryError: a field is not what it should be.
    """

    name: str
    address: str
    public_key: str
    hooks: tuple[str, ...]
    run_dir: str
    node: str
    generation: int
    job: str = ""
    started_unix_ns: int = 0

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_address(self.address)
        if self.public_key and not is_key(self.public_key):
            raise EntryError(f"{self.name}: public_key is no CURVE key in Z85 (40 characters)")
        for what, text in (("run_dir", self.run_dir), ("node", self.node), ("job", self.job)):
            _check_text(f"{self.name}: {what}", text)
        if not isinstance(self.hooks, tuple) or not 0 < len(self.hooks) <= MAX_HOOKS:
            raise EntryError(f"{self.name}: hooks must be 1 to {MAX_HOOKS} globs")
        for hook in self.hooks:
            _check_text(f"{self.name}: hooks", hook)
        _check_count(f"{self.name}: generation", self.generation)
        _check_count(f"{self.name}: started_unix_ns", self.started_unix_ns)


@dataclass(frozen=True, slots=True)
class Contents:
    """A book as it is read. unreadable: objects that are no entries -> why."""

    entries: tuple[Entry, ...]
    unreadable: dict[str, str]


class Book:
    """An address book. Every method raises BookUnavailableError; none keeps anything between calls."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.uri = str(store.location)

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> Self:
        """The book at a folder or a URI (`s3://`, `gs://`, `file://`), which need not be there yet.

        Raises:
            BookError: it is no place for one. BookUnavailableError.
        """
        text = os.fspath(place)
        if not is_uri(text):
            if "://" in text:
                raise BookError(
                    f"{text}: an address book is in a folder, or at s3://, gs://, file://"
                )
            text = f"file://{os.path.abspath(text)}"
        try:
            return cls(ObjectStore(parse_uri(text)))
        except StoreError as error:
            raise BookUnavailableError(error) from None
        except ValueError as error:
            raise BookError(f"the address book's URI {error}") from None

    def announce(self, entry: Entry) -> None:
        """Write `entry`; what is there of its name and older is deleted. Again with the same entry: no
        more than that.

        Raises:
            OvertakenError: there is a later one, or there was; nothing has changed for readers.
        """
        key = _key(entry.name, entry.generation, f"{entry.started_unix_ns:020d}")
        self._refuse_if_later(key, entry)
        self._put(key, {"schema": SCHEMA, **asdict(entry)})
        # Two that came at once have both looked before they wrote: the earlier one sees the other now.
        self._delete(one for one in self._refuse_if_later(key, entry) if one < key)

    def withdraw(self, name: str, generation: int) -> None:
        """No receiver of this name and generation, or an older one, is there any more. Nothing where a
        later one is, or where there never was one."""
        _check_name(name)
        _check_count("generation", generation)
        present = self._objects().get(name, [])
        key = _key(name, generation, "withdrawn")
        if present and present[-1] < key:
            self._put(key, {"schema": SCHEMA, "withdrawn": True, "unix_ns": time.time_ns()})
            self._delete(present)

    def entries(self) -> tuple[Entry, ...]:
        """The receivers that are there, by name."""
        return self.read().entries

    def get(self, name: str) -> Entry | None:
        """The receiver of this name. Raises EntryError: what is there is no entry."""
        for _ in range(TRIES):
            present = self._objects().get(name, [])
            if not present or _has_left(present[-1]):
                return None
            try:
                return self._entry(present[-1])
            except StoreError as error:
                if error.reason is not Reason.MISSING:
                    raise BookUnavailableError(error) from None
        raise BookError(f"{self.uri}: {name} is overtaken again and again")

    def read(self) -> Contents:
        """The receivers that are there, and what is no entry."""
        found: list[Entry] = []
        unreadable: dict[str, str] = {}
        for name in sorted(self._objects()):
            try:
                entry = self.get(name)
            except EntryError as error:
                unreadable[name] = str(error)
            else:
                if entry is not None:
                    found.append(entry)
        return Contents(tuple(found), unreadable)

    def next_generation(self, name: str) -> int:
        """Later than every receiver of this name so far."""
        _check_name(name)
        present = self._objects().get(name, [])
        return _generation(present[-1]) + 1 if present else 1

    def _refuse_if_later(self, key: str, entry: Entry) -> list[str]:
        """The objects of the entry's name, where none comes after `key`."""
        present = self._objects().get(entry.name, [])
        if present and present[-1] > key:
            self._delete(one for one in present if one == key)
            try:
                by = self.get(entry.name)
            except EntryError:
                by = None
            raise OvertakenError(self.uri, entry, _generation(present[-1]), by)
        return present

    def _objects(self) -> dict[str, list[str]]:
        """Of each name the keys, the last one at the end."""
        try:
            keys = self._store.keys(RECEIVERS)
        except StoreError as error:
            raise BookUnavailableError(error) from None
        found: dict[str, list[str]] = {}
        for key in keys:
            match = _KEY.fullmatch(key)
            if match is not None and _NAME.fullmatch(match[1]):
                found.setdefault(match[1], []).append(key)
        if len(found) > MAX_NAMES:
            raise BookError(f"{self.uri}: more than {MAX_NAMES} names are no address book")
        return {name: sorted(keys) for name, keys in found.items()}

    def _entry(self, key: str) -> Entry:
        """Raises StoreError, EntryError."""
        try:
            document = parse_json(self._store.get(key, MAX_ENTRY_BYTES))
        except StoreError as error:
            if error.reason is not Reason.TOO_LARGE:
                raise
            raise EntryError(f"{key}: has more than {MAX_ENTRY_BYTES} bytes") from None
        except ValueError as error:
            raise EntryError(f"{key}: is no JSON: {error}") from None
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise EntryError(f"{key}: is not of the schema {SCHEMA}")
        known = {field.name for field in fields(Entry)}
        values = {name: value for name, value in document.items() if name in known}
        if isinstance(values.get("hooks"), list):
            values["hooks"] = tuple(values["hooks"])
        try:
            entry = Entry(**values)
        except (TypeError, EntryError) as error:
            raise EntryError(f"{key}: {error}") from None
        if (entry.name, entry.generation) != (key.split("/")[1], _generation(key)):
            raise EntryError(f"{key}: is the entry of {entry.name}, generation {entry.generation}")
        return entry

    def _put(self, key: str, document: dict[str, Any]) -> None:
        put_private(self._store, key, json.dumps(document, separators=(",", ":")).encode())

    def _delete(self, keys: Iterable[str]) -> None:
        try:
            for key in keys:
                self._store.delete(key)
        except StoreError as error:
            raise BookUnavailableError(error) from None


def place_problem(place: str) -> str | None:
    """Why `place` is none for an address book; None: it is one, whether or not it can be reached now."""
    try:
        Book.open(place)
    except BookUnavailableError:
        return None
    except BookError as error:
        return str(error)
    return None


def put_private(store: ObjectStore, key: str, data: bytes) -> None:
    """Write an object of a book; of one in a folder, its folder has mode 0700. Raises
    BookUnavailableError."""
    location = store.location
    try:
        if location.scheme == "file":
            make_private_folder(Path(location.path, key).parent)
        store.put(key, [data])
    except StoreError as error:
        raise BookUnavailableError(error) from None
    except OSError as error:
        raise BookUnavailableError(StoreError.of(str(location), error)) from None


def is_address(text: str) -> bool:
    """`tcp://host:port` of somebody who can be connected to."""
    return re.fullmatch(ADDRESS, text) is not None and 0 < int(text.rpartition(":")[2]) < 1 << 16


def _key(name: str, generation: int, last: str) -> str:
    return f"{RECEIVERS}/{name}/{generation:020d}.{last}.json"


def _generation(key: str) -> int:
    return int(key.rpartition("/")[2].partition(".")[0])


def _has_left(key: str) -> bool:
    return key.endswith(".withdrawn.json")


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise EntryError(
            f"{str(name)[:80]!r} is no name of a receiver: letters, digits, dots, dashes, at most 128"
        )


def _check_address(address: object) -> None:
    if not isinstance(address, str) or not is_address(address):
        raise EntryError(f"address {str(address)[:80]!r} is not tcp://host:port")


def _check_text(what: str, text: object) -> None:
    if not isinstance(text, str) or len(text) > MAX_TEXT or not text.isprintable():
        raise EntryError(f"{what} {str(text)[:80]!r} is no text of one line, at most {MAX_TEXT}")


def _check_count(what: str, value: object) -> None:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise EntryError(f"{what} is {str(value)[:40]!r}, not a whole number")
