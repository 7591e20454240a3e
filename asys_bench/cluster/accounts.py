"""The accounts of forwarders and receivers, as their JSON documents say them, and what must hold.

    forwarder   RUN/cluster/<worker>.json of a host's run
    receiver    RUN/cluster/receiver.json of a receiver's run, and its copy in the address book (`status`)

A receiver's document has, of each forwarder that has connected, what that one last reported of itself: the
accounts of a whole cluster are checked from the receivers' documents alone. A document is input: anybody may
have written it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from asys_bench.cluster.ledger import FOLDER, LEDGER_DOCUMENT
from asys_bench.system.files.below import parse_json, read_file, scan_if_there

CLUSTER_DIR, RECEIVER_FILE = FOLDER, "receiver.json"
FORWARDER_SCHEMA, RECEIVER_SCHEMA = "asys.forwarder/1", "asys.receiver/1"
MAX_BYTES = 8 << 20
MOST_SENDERS, MOST_STREAMS, MOST_HOOKS, MOST_REASONS = 4096, 65_536, 100_000, 64
MOST_TEXT = 4096


class AccountError(ValueError):
    """It is no account of a forwarder or receiver; says what is wrong with it."""


Sender = tuple[str, int, str]
"""A forwarder: run, attempt, worker."""


@dataclass(frozen=True, slots=True)
class ForwarderAccount:
    """What one forwarder counted in one attempt of its run. final: it will count no more."""

    run_id: str
    attempt: int
    worker: str
    group: str
    """Of the bus's consumers, which it is."""
    job: str
    unix_ns: int
    final: bool
    receiver: str
    """The name of the one it is or was last connected to; empty: none yet."""
    hooks: tuple[str, ...]
    taken: int
    acked: int
    dropped: Mapping[str, int]
    in_flight: int
    resent: int
    connections: int
    refused: Mapping[str, int]

    @property
    def sender(self) -> Sender:
        return self.run_id, self.attempt, self.worker

    @property
    def imbalance(self) -> int:
        """taken - acked - dropped - in flight: 0."""
        return self.taken - self.acked - sum(self.dropped.values()) - self.in_flight

    @classmethod
    def of(cls, document: object) -> Self:
        """Raises AccountError."""
        read = _Reader(document, FORWARDER_SCHEMA)
        receiver = read.maybe("receiver")
        return cls(
            run_id=read.text("run_id"),
            attempt=read.count("attempt"),
            worker=read.text("worker"),
            group=read.text("group"),
            job=read.text("job"),
            unix_ns=read.count("unix_ns"),
            final=read.flag("final"),
            receiver=receiver.text("name") if receiver is not None else "",
            hooks=read.texts("hooks", MOST_HOOKS),
            taken=read.count("taken"),
            acked=read.count("acked"),
            dropped=read.counts("dropped"),
            in_flight=read.count("in_flight"),
            resent=read.count("resent"),
            connections=read.count("connections"),
            refused=read.counts("refused"),
        )


@dataclass(frozen=True, slots=True)
class ReportedAccount:
    """What a forwarder said of itself on its connection."""

    taken: int
    acked: int
    dropped: Mapping[str, int]
    in_flight: int
    final: bool
    unix_ns: int

    @property
    def imbalance(self) -> int:
        return self.taken - self.acked - sum(self.dropped.values()) - self.in_flight


@dataclass(frozen=True, slots=True)
class SenderAccount:
    """What a receiver counted of one forwarder. window: accepted, and not acknowledged to it yet."""

    run_id: str
    attempt: int
    worker: str
    node: str
    connected: bool
    accepted: int
    duplicates: int
    window: int
    credit_bytes: int
    lag_s: float
    reported: ReportedAccount | None

    @property
    def sender(self) -> Sender:
        return self.run_id, self.attempt, self.worker


@dataclass(frozen=True, slots=True)
class StreamAccount:
    """What a receiver counted of one shard of a host's bus."""

    run_id: str
    attempt: int
    source: int
    shard: int
    accepted: int


@dataclass(frozen=True, slots=True)
class ReceiverAccount:
    """What one receiver counted since its ledger began. id: of the ledger, the same after a restart."""

    run_id: str
    attempt: int
    name: str
    id: str
    address: str
    job: str
    unix_ns: int
    final: bool
    accepted: int
    duplicates: int
    in_doubt: int
    expired: int
    refused: Mapping[str, int]
    connections: int
    senders: tuple[SenderAccount, ...]
    streams: tuple[StreamAccount, ...]

    @classmethod
    def of(cls, document: object) -> Self:
        """Raises AccountError."""
        read = _Reader(document, RECEIVER_SCHEMA)
        return cls(
            run_id=read.text("run_id"),
            attempt=read.count("attempt"),
            name=read.text("name"),
            id=read.text("id"),
            address=read.text("address"),
            job=read.text("job"),
            unix_ns=read.count("unix_ns"),
            final=read.flag("final"),
            accepted=read.count("accepted"),
            duplicates=read.count("duplicates"),
            in_doubt=read.count("in_doubt"),
            expired=read.count("expired"),
            refused=read.counts("refused"),
            connections=read.count("connections"),
            senders=tuple(_sender(one) for one in read.several("senders", MOST_SENDERS)),
            streams=tuple(_stream(one) for one in read.several("streams", MOST_STREAMS)),
        )


def _sender(read: _Reader) -> SenderAccount:
    told = read.maybe("reported")
    return SenderAccount(
        run_id=read.text("run_id"),
        attempt=read.count("attempt"),
        worker=read.text("worker"),
        node=read.text("node", missing=""),
        connected=read.flag("connected"),
        accepted=read.count("accepted"),
        duplicates=read.count("duplicates"),
        window=read.count("window"),
        credit_bytes=read.count("credit_bytes"),
        lag_s=read.number("lag_s"),
        reported=None
        if told is None
        else ReportedAccount(
            taken=told.count("taken"),
            acked=told.count("acked"),
            dropped=told.counts("dropped"),
            in_flight=told.count("in_flight"),
            final=told.flag("final"),
            unix_ns=told.count("unix_ns"),
        ),
    )


def _stream(read: _Reader) -> StreamAccount:
    return StreamAccount(
        run_id=read.text("run_id"),
        attempt=read.count("attempt"),
        source=read.count("source"),
        shard=read.count("shard"),
        accepted=read.count("accepted"),
    )


class _Reader:
    """The fields of one object of a document, each of its type and within bounds."""

    def __init__(self, document: object, schema: str = "", where: str = "") -> None:
        self._where = where
        if not isinstance(document, dict):
            raise AccountError(f"{where or 'it'} is no JSON object")
        self._fields: dict[str, Any] = document
        if schema and document.get("schema") != schema:
            raise AccountError(f"its schema is {str(document.get('schema'))[:80]!r}, not {schema}")

    def _field(self, name: str, fits: Callable[[Any], bool], what: str) -> Any:
        value = self._fields.get(name)
        if not fits(value):
            raise AccountError(f"{self._where}{name} is {str(value)[:80]!r}, not {what}")
        return value

    def text(self, name: str, missing: str | None = None) -> str:
        """missing: what null stands for, where that is allowed."""
        if missing is not None and self._fields.get(name) is None:
            return missing
        value: str = self._field(name, _is_text, "a text of one line")
        return value

    def count(self, name: str) -> int:
        value: int = self._field(name, _is_count, "a count")
        return value

    def flag(self, name: str) -> bool:
        value: bool = self._field(name, lambda found: isinstance(found, bool), "true or false")
        return value

    def number(self, name: str) -> float:
        """NaN where nothing is known yet."""
        value = self._field(
            name,
            lambda found: found is None or (type(found) in (int, float) and math.isfinite(found)),
            "a number",
        )
        return math.nan if value is None else float(value)

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        return tuple(self._field(name, lambda found: _is_list(found, _is_text, most), "texts"))

    def counts(self, name: str) -> dict[str, int]:
        """Reason -> count, of those that are not 0."""
        found: dict[str, int] = self._field(name, _is_counts, "counts by reason")
        return {reason: n for reason, n in found.items() if n}

    def maybe(self, name: str) -> _Reader | None:
        found = self._fields.get(name)
        return None if found is None else _Reader(found, where=f"{self._where}{name}.")

    def several(self, name: str, most: int) -> list[_Reader]:
        found = self._field(name, lambda one: _is_list(one, lambda _: True, most), "a list")
        return [_Reader(one, where=f"{name}[{n}].") for n, one in enumerate(found)]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MOST_TEXT and value.isprintable()


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_list(value: object, fits: Callable[[object], bool], most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(map(fits, value))


def _is_counts(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MOST_REASONS
        and all(_is_text(reason) and _is_count(n) for reason, n in value.items())
    )


def parse_receiver(data: bytes) -> ReceiverAccount:
    """A receiver's document. Raises AccountError."""
    try:
        return ReceiverAccount.of(parse_json(data))
    except AccountError:
        raise
    except ValueError as error:
        raise AccountError(f"it is no JSON: {error}") from None


def read_receiver(run_dir: Path) -> ReceiverAccount | None:
    """The account of the receiver that is the host of a run; None: its host is no receiver.

    Raises:
        AccountError: there is one, and it is none; OSError: it cannot be read.
    """
    path = run_dir / CLUSTER_DIR / RECEIVER_FILE
    try:
        data = read_file(path, MAX_BYTES, below=run_dir)
    except FileNotFoundError:
        return None
    try:
        return parse_receiver(data)
    except AccountError as error:
        raise AccountError(f"{path}: {error}") from None


def read_forwarders(run_dir: Path) -> tuple[ForwarderAccount, ...]:
    """The accounts of a run's forwarders, by worker.

    Raises:
        AccountError: one of them is none; OSError: it cannot be read.
    """
    found = []
    for path, _ in scan_if_there(run_dir / CLUSTER_DIR, below=run_dir):
        if path.suffix != ".json" or path.name in (RECEIVER_FILE, LEDGER_DOCUMENT):
            continue
        try:
            found.append(ForwarderAccount.of(parse_json(read_file(path, MAX_BYTES, below=run_dir))))
        except ValueError as error:
            raise AccountError(f"{path}: {error}") from None
    return tuple(sorted(found, key=lambda one: one.sender))
