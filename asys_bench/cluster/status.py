"""What receivers count, beside their entries in the address book: for whoever can read the book, from
anywhere, also when the receiver has ended.

    <book>/status/<name>/<generation>.json      receiver.json of the receiver's run, as it was at most
                                                `interval_s` ago; the last one is there for good

A monitor writes it: a worker of the receiver's run, which waits for the store in a thread of its own. The
receiver knows nothing of it. Of a ledger that a later generation goes on with, the earlier document is
deleted.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from dataclasses import dataclass

from pydantic import Field

from asys_bench.cluster.accounts import (
    CLUSTER_DIR,
    MAX_BYTES,
    RECEIVER_FILE,
    AccountError,
    ReceiverAccount,
    parse_receiver,
)
from asys_bench.cluster.book import Book, BookUnavailableError, Entry, EntryError, put_private
from asys_bench.cluster.identities import ClusterCheck, check_cluster
from asys_bench.contracts.monitor import (
    LEAVE_S,
    BaseMonitor,
    MonitorContext,
    MonitorOptions,
    MonitorPlugin,
)
from asys_bench.contracts.stats import RunState
from asys_bench.store.objects import Backoff, ObjectStore, Reason, StoreError
from asys_bench.store.uri import parse_uri
from asys_bench.system.files.below import read_file

log = logging.getLogger(__name__)
STATUS = "status"
MOST = 10_000
_KEY = re.compile(r"status/([A-Za-z0-9][A-Za-z0-9._-]{0,127})/(\d{20})\.json")


@dataclass(frozen=True, slots=True)
class Status:
    """What one receiver said of itself last."""

    name: str
    generation: int
    account: ReceiverAccount


@dataclass(frozen=True)
class Cluster:
    """A book as `top` and `verify` read it. unreadable: what is no entry or no status -> why."""

    uri: str
    entries: tuple[Entry, ...]
    statuses: tuple[Status, ...]
    unreadable: dict[str, str]

    @property
    def check(self) -> ClusterCheck:
        """Its accounts, from what receivers say alone."""
        return check_cluster(one.account for one in self.statuses)

    def entry_of(self, account: ReceiverAccount) -> Entry | None:
        """The entry of a receiver that is there: of the same name and generation as what it said last."""
        told = [(one.name, one.generation) for one in self.statuses if one.account == account]
        return next((one for one in self.entries if (one.name, one.generation) in told), None)


class StatusBoard:
    """The statuses in an address book. Every method raises BookError (BookUnavailableError)."""

    def __init__(self, book: Book) -> None:
        self.book = book
        try:
            self._store = ObjectStore(parse_uri(book.uri))
        except StoreError as error:
            raise BookUnavailableError(error) from None

    def put(self, name: str, generation: int, document: bytes) -> None:
        """Say what the receiver of this name and generation counts."""
        put_private(self._store, f"{STATUS}/{name}/{generation:020d}.json", document)

    def forget_earlier(self, name: str, generation: int, id: str) -> None:
        """Delete what earlier generations of this name said of the same ledger."""
        try:
            for key in self._store.keys(f"{STATUS}/{name}"):
                found = _KEY.fullmatch(key)
                if found is None or int(found[2]) >= generation:
                    continue
                try:
                    account = parse_receiver(self._store.get(key, MAX_BYTES))
                except AccountError:
                    continue
                except StoreError as error:
                    if error.reason in (Reason.MISSING, Reason.TOO_LARGE):
                        continue
                    raise
                if account.id == id:
                    self._store.delete(key)
        except StoreError as error:
            raise BookUnavailableError(error) from None

    def read(self) -> Cluster:
        """Every receiver that is there, and what each that is or was there says."""
        contents = self.book.read()
        unreadable = dict(contents.unreadable)
        statuses = []
        try:
            keys = [key for key in self._store.keys(STATUS) if _KEY.fullmatch(key)][:MOST]
            for key in keys:
                _, name, file = key.split("/")
                try:
                    account = parse_receiver(self._store.get(key, MAX_BYTES))
                except AccountError as error:
                    unreadable[key] = str(error)
                except StoreError as error:
                    if error.reason is Reason.MISSING:  # a later generation has deleted it
                        continue
                    if error.reason is not Reason.TOO_LARGE:
                        raise
                    unreadable[key] = f"has more than {MAX_BYTES} bytes"
                else:
                    statuses.append(Status(name, int(file.removesuffix(".json")), account))
        except StoreError as error:
            raise BookUnavailableError(error) from None
        return Cluster(self.book.uri, contents.entries, tuple(statuses), unreadable)


def read_cluster(place: str) -> Cluster:
    """The cluster of an address book.

    Raises:
        BookError: it is no place for one. BookUnavailableError.
    """
    return StatusBoard(Book.open(place)).read()


class ClusterStatusOptions(MonitorOptions):
    """Options of the `cluster_status` monitor."""

    interval_s: float = Field(2.0, ge=0.2, le=600, description="seconds between two writes")


class ClusterStatusMonitor(BaseMonitor):
    """See the module. Book and name are those of the run's receiver (`host.options.receiver`)."""

    interval_s = 0.5

    def __init__(self, options: ClusterStatusOptions) -> None:
        self._options = options
        self._board: StatusBoard | None = None
        self._generation: int | None = None
        self._said: str | None = None
        self._written = b""
        self._stop, self._final = threading.Event(), threading.Event()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self, context: MonitorContext) -> None:
        """Start writing. Nothing of the store is asked here: it may be away.

        Raises:
            ValueError: the run's host is no receiver with an address book.
        """
        self._context = context
        host = context.config.get("host")
        options = host.get("options", {}).get("receiver", {}) if isinstance(host, dict) else {}
        if not options.get("book"):
            raise ValueError("host.options.receiver.book is not set: there is no book to write to")
        self._book, self._name = str(options["book"]), str(options.get("name", "receiver"))
        self._generation = options.get("generation")
        self._thread = threading.Thread(target=self._run, name="cluster-status", daemon=True)
        self._thread.start()

    def tick(self, state: RunState) -> None:
        """When the run has stopped, wait until its last account is written or the time is over."""
        if state is not RunState.STOPPED:
            return
        self._final.set()
        while not self._done.wait(0.05) and self._context.time_left_s() > LEAVE_S:
            self._context.heartbeat()
        self._stop.set()

    def close(self) -> None:
        """The thread ends with the process: it may be waiting for the network."""
        self._stop.set()

    def _run(self) -> None:
        backoff = Backoff(longest_s=30.0)
        while not self._stop.is_set():
            final = self._final.is_set()
            pause_s = self._options.interval_s
            try:
                self._write()
            except (BookUnavailableError, OSError, AccountError) as error:
                pause_s = backoff.next_s()
                if str(error) != self._said:
                    self._said = str(error)
                    log.warning("the address book does not have this receiver's counts: %s", error)
            else:
                self._said = None
                backoff.reset()
                if final:
                    self._done.set()
                    return
            until = time.monotonic() + pause_s
            while time.monotonic() < until and not self._stop.wait(0.05):
                if self._final.is_set() and not final:
                    break

    def _write(self) -> None:
        board = self._board = self._board or StatusBoard(Book.open(self._book))
        if self._generation is None:  # before its first account: its entry goes when it leaves
            self._generation = self._announced(board.book)
        path = self._context.run_dir / CLUSTER_DIR / RECEIVER_FILE
        try:
            document = read_file(path, MAX_BYTES, below=self._context.run_dir)
        except FileNotFoundError:
            return  # nobody has connected yet
        if document == self._written or self._generation is None:
            return
        account = parse_receiver(document)
        board.put(self._name, self._generation, document)
        if not self._written:
            board.forget_earlier(self._name, self._generation, account.id)
        self._written = document

    def _announced(self, book: Book) -> int | None:
        """The generation of the receiver of this run, as it has written itself into the book."""
        try:
            entry = book.get(self._name)
        except EntryError as error:
            raise BookUnavailableError(StoreError(book.uri, Reason.OTHER, str(error))) from None
        run_dir = os.path.realpath(self._context.run_dir)
        mine = entry is not None and os.path.realpath(entry.run_dir) == run_dir
        return entry.generation if entry is not None and mine else None


def _build(options: MonitorOptions) -> ClusterStatusMonitor:
    assert isinstance(options, ClusterStatusOptions)
    return ClusterStatusMonitor(options)


plugin = MonitorPlugin(
    name="cluster_status",
    summary="writes what a receiver counts beside its entry in the address book",
    options=ClusterStatusOptions,
    build=_build,
)
