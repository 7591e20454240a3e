"""Who may send to a receiver, and what of: jobs, hooks, names, and the writers of other nodes' buses.

The first forwarder that is welcomed begins the receiver's run: its streams are those of the receiver's bus,
and each writer (source, shard) of an origin has a shard of that bus to itself, also over later runs and
attempts. Whoever does not fit is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from asys_bench.cluster import wire
from asys_bench.cluster.arrivals import Bus, Connection, Writer
from asys_bench.cluster.ledger import Ledger, SenderKey, StreamKey
from asys_bench.cluster.wire import Refusal, WireError
from asys_bench.contracts.bus import BusError
from asys_bench.contracts.names import matches

MOST_ENCODINGS = 512
"""Of one connection."""
WHAT_ROWS_ARE = ("kind", "rows", "select", "coin")
"""Of what a HELLO says of a stream: what must be the same on all nodes; its module may be wrapped on some."""
_RUN_SHIFT = 40


@dataclass(frozen=True)
class Limits:
    """Bytes and counts that a receiver allows.

    window: of batches under way, for one connection. memory: for all together. message: of one message.
    shards: writers of origins, each with a shard of the bus.
    """

    window: int = 64 << 20
    memory: int = 512 << 20
    message: int = 64 << 20
    connections: int = 256
    shards: int | None = None


class Admission:
    """See the module's docstring.

    name, hooks, job: of the receiver; an empty job takes the first that comes.
    """

    def __init__(
        self, ledger: Ledger, bus: Bus, limits: Limits, *, name: str, hooks: Sequence[str], job: str
    ) -> None:
        self._ledger, self._bus, self._limits = ledger, bus, limits
        self.name, self._hooks = name, hooks
        self.job = ledger.job or job
        self.began = False
        self._shards: dict[tuple[int, int], int] = {}
        self._described: dict[str, dict[str, Any]] = {}
        self._trained: set[str] = set()
        self._side: set[str] = set()
        self._count = 0
        if ledger.feed is not None:
            self._begin(ledger.feed)
            for stream in ledger.streams:
                self._shard_of(stream.key.source, stream.key.shard)

    def check(self, hello: wire.Hello) -> None:
        """Job and hooks are those of this receiver. Raises WireError."""
        if self.job and hello.job != self.job:
            raise WireError(
                Refusal.JOB, f"{self.name} takes packets of job {self.job!r}, not of {hello.job!r}"
            )
        streams, side = _streams(hello)
        strange = [
            one for one in sorted(streams - side) if not any(matches(one, g) for g in self._hooks)
        ]
        if strange or not streams:
            raise WireError(
                Refusal.HOOKS, f"{self.name} takes hooks {list(self._hooks)}, not {strange[:20]}"
            )

    def welcome(
        self, peer: bytes, generation: int, hello: wire.Hello, others: Collection[Connection], now: float
    ) -> tuple[Connection, wire.Welcome]:  # fmt: skip
        """A new connection, without a grant. others: connections that are open. Raises WireError."""
        if len(others) >= self._limits.connections:
            raise WireError(Refusal.BUSY, f"{self.name} has {len(others)} connections")
        streams, side = _streams(hello)
        of_run = [one for one in others if one.sender.run_id == hello.run_id]
        taken = {name for one in of_run for name in one.streams}
        if both := sorted((streams - side) & taken):
            raise WireError(
                Refusal.OVERLAP, f"another forwarder of {hello.run_id} sends {both[:20]}"
            )
        if not self.began:
            self._begin(self._feed_for(hello), job=hello.job)
        unknown = sorted((streams - side) - self._trained) + sorted(side - self._side)
        if unknown:
            raise WireError(
                Refusal.HOOKS,
                f"{self.name} began its run with hooks {sorted(self._trained | self._side)[:50]}, without "
                f"{unknown[:20]}: its bus cannot take up others; start another receiver for them",
            )
        self._check_alike(hello)
        sender, limits = SenderKey(hello.run_id, hello.attempt, hello.worker), self._limits
        largest = min(limits.message, limits.window, limits.memory)
        connection = Connection(peer, sender, hello, generation, now, streams=frozenset(streams))
        self.add_writers(connection, hello.ranks)
        self.add_names(connection, hello.names)
        return connection, wire.Welcome(
            self.name, self._ledger.id, self._ledger.accepted(sender), largest,
            self._bus.max_packet, 0, tuple(sorted(side & taken)),
        )  # fmt: skip

    def _check_alike(self, hello: wire.Hello) -> None:
        """A row of a hook is the same thing on every node. Raises WireError."""
        for one in hello.streams:
            ours = self._described[one["name"]]
            if other := [key for key in WHAT_ROWS_ARE if one.get(key) != ours.get(key)]:
                raise WireError(
                    Refusal.HOOKS,
                    f"{self.name} began its run with {one['name']} of {_told(ours, other)}, and here it is "
                    f"{_told(one, other)}: configure a hook alike on all nodes, or give it another name",
                )

    def add_writers(self, connection: Connection, ranks: Sequence[tuple[int, int]]) -> None:
        """Raises WireError: there is no shard left. LedgerError: too many streams or accounts."""
        hello = connection.hello
        for source, shard in ranks:
            local = self._shard_of(source, shard)
            stream = self._ledger.stream(StreamKey(hello.run_id, hello.attempt, source, shard))
            shift = (stream.run_number << _RUN_SHIFT) + hello.first_packet
            account = self._ledger.account(connection.sender, stream)
            connection.writers[source, shard] = Writer(account, local, shift)

    def add_names(self, connection: Connection, names: dict[int, str]) -> None:
        """Raises WireError: too many of them."""
        if len(connection.names) + len(names) > wire.MAX_NAMES:
            raise WireError(Refusal.NAMES, f"more than {wire.MAX_NAMES} names")
        try:
            for number, name in names.items():
                connection.names[number] = name
                if name in connection.streams:
                    connection.hooks[number] = self._bus.id_of(name)
                elif name not in self._trained and name not in self._side:
                    if len(connection.encodings) == MOST_ENCODINGS:
                        raise WireError(Refusal.NAMES, f"more than {MOST_ENCODINGS} encodings")
                    connection.encodings[number] = self._bus.id_of(name)
        except BusError as error:
            raise WireError(Refusal.NAMES, str(error)) from None

    def _feed_for(self, hello: wire.Hello) -> dict[str, Any]:
        shards = self._limits.shards or max(1, hello.world, len(hello.ranks))
        return {
            "streams": [
                {**one, "side": one["name"] in hello.side} for one in hello.streams
            ],
            "shards": shards,
            "step_unit": hello.step_unit,
        }  # fmt: skip

    def _begin(self, feed: dict[str, Any], job: str | None = None) -> None:
        self._bus.begin(feed)
        self.began = True
        self._count = int(feed["shards"])
        for one in feed["streams"]:
            (self._side if one["side"] else self._trained).add(one["name"])
            self._described[one["name"]] = one
        if job is not None:
            self.job = self.job or job
            self._ledger.begin_run(self.job, feed)

    def _shard_of(self, source: int, shard: int) -> int:
        """The shard of this bus for a writer of an origin. Raises WireError: there is none left."""
        found = self._shards.get((source, shard))
        if found is None:
            if len(self._shards) >= self._count:
                raise WireError(
                    Refusal.FULL,
                    f"{self.name} has {self._count} shards, all of them for other ranks: set "
                    "host.options.receiver.shards to the ranks of the job",
                )
            found = self._shards[source, shard] = len(self._shards)
        return found


def _streams(hello: wire.Hello) -> tuple[set[str], set[str]]:
    """(all that it sends, those of them that go beside the hooks)."""
    streams = {str(one["name"]) for one in hello.streams}
    return streams, streams & set(hello.side)


def _told(stream: dict[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {str(stream.get(key))[:80]}" for key in keys)
