"""What can be set of a forwarder (`sinks.<name>.options`) and of a receiver (`host.options.receiver`), and
what does not go together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from asys_bench.cluster.book import ADDRESS, is_address, place_problem
from asys_bench.cluster.keys import CLIENT, RECEIVER, KeyFileError, is_key, read_pair
from asys_bench.contracts.host import HostOptions
from asys_bench.contracts.sink import Misfit, SinkOptions
from asys_bench.contracts.text_form import TextForm

Address = Annotated[
    str,
    TextForm(f"^{ADDRESS}$", "tcp://host:port", "write all three, such as tcp://node-3:7400"),
]
_PORT = r":\d{1,5}"
ListenAt = Annotated[
    str,
    TextForm(
        rf"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._*-]+){_PORT}$",
        "host:port",
        "write the port too: 0.0.0.0:7400, or 127.0.0.1:0, where 0 takes a free one; IPv6 as [::1]:7400",
    ),
]
ReachedAt = Annotated[
    str,
    TextForm(
        rf"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)({_PORT})?$",
        "host or host:port",
        "write node-3 or node-3:7400, without tcp://; IPv6 as [::1]:7400",
    ),
]
ReceiverName = Annotated[
    str,
    TextForm(
        r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
        "a name for a receiver",
        "use letters, digits, `_`, `.` and `-`, a letter or digit first, at most 128",
    ),
]


class ForwarderOptions(SinkOptions):
    """`sinks.<name>.options` of a forwarder."""

    to: Address | None = Field(None, description="Address of the receiver, `tcp://host:port`.")
    book: str | None = Field(
        None,
        description="Instead of `to`: the address book (a folder or a URI) in which receivers are announced.",
    )
    receiver: str = Field(
        "*", description="Glob over the names of receivers in the book; of several the one that takes all "
        "hooks, and of those one by the name of this run, so that runs spread over them.",
    )  # fmt: skip
    keys: Path | None = Field(
        None,
        description="Folder with this client's CURVE keys (`asys-run keys`), `<client>.secret` and "
        "`<client>.public`, and `receiver.public` where no book says it. null: no encryption.",
    )
    client: str = Field(CLIENT, description="Name of the client whose keys are taken.")
    receiver_key: str | None = Field(
        None, description="Public key of the receiver, in Z85; null: that of the book or of `keys`."
    )
    job: str | None = Field(
        None,
        max_length=256,
        description="Name of the job; a receiver takes the packets of one. null: SLURM_JOB_ID or "
        "TORCHELASTIC_RUN_ID, else `run.id` or `run.name`.",
    )
    max_mib_in_flight: float = Field(
        64, gt=0, le=1 << 16, description="Most MiB of packets that wait for the receiver's answer."
    )
    batch_mib: float = Field(
        4,
        gt=0,
        le=64,
        description="MiB of payloads in one message; a 64th more is left for headers.",
    )
    hold_s: float = Field(
        0.1,
        ge=0,
        le=60,
        description="Most seconds that a lease waits for the receiver's answer: of a forwarder that is "
        "killed meanwhile nothing is lost. The bus gives no memory back behind a lease that waits.",
    )
    wait_s: float = Field(
        5.0,
        ge=0,
        le=86400,
        description="Seconds that packets wait for a receiver that cannot be reached; then they are dropped "
        "and counted. One that still starts its workers can be reached.",
    )
    on_slow: Literal["drop", "sample"] | None = Field(
        None,
        description="When the receiver or the network is slower than the hooks. drop: packets without room "
        "are dropped and counted here. sample: they stay in the bus, which fills, so that the hooks' "
        "sampling rate falls (for every sink). null: drop where an at_least_once sink of this run takes the "
        "same hooks, sample otherwise.",
    )
    connect_timeout_s: float = Field(
        5.0, gt=0, le=600, description="Seconds that a try to connect may take."
    )
    backoff_max_s: float = Field(
        5.0, gt=0, le=3600, description="Most seconds between two tries to connect."
    )

    def misfits(self, workers: int, hooks: Sequence[str]) -> Iterable[Misfit]:
        """No receiver or two, no address book, several workers, keys that cannot be used."""
        if (self.to is None) == (self.book is None):
            yield Misfit(
                ("options", "to"),
                "give one of `to` (an address) and `book`",
                self.to,
                "name the receiver",
            )
        if self.book is not None and (why := place_problem(self.book)) is not None:
            yield Misfit(("options", "book"), why, self.book, "")
        if self.to is not None and not is_address(self.to):
            yield Misfit(("options", "to"), "has a port that is not 1 to 65535", self.to, "")
        if workers != 1:
            yield Misfit(
                ("workers",),
                "must be 1: one process keeps the account of a group",
                workers,
                "add another sink of kind forwarder with other hooks",
            )
        if self.receiver_key is not None and not is_key(self.receiver_key):
            yield Misfit(("options", "receiver_key"), "is no key in Z85", self.receiver_key, "")
        if self.batch_mib > self.max_mib_in_flight:
            yield Misfit(
                ("options", "batch_mib"),
                f"must be at most max_mib_in_flight = {self.max_mib_in_flight:g}",
                self.batch_mib,
                "",
            )
        if self.keys is not None:
            try:
                read_pair(self.keys, self.client)
            except (KeyFileError, OSError) as error:
                yield Misfit(("options", "keys"), str(error), str(self.keys), "")


class ReceiverOptions(HostOptions):
    """Options of the `receiver` host."""

    listen: ListenAt = Field(
        default="127.0.0.1:0",
        description="host:port to listen at; port 0 takes a free one. Other than loopback only with `keys`",
    )
    advertise: ReachedAt | None = Field(
        default=None,
        description="host or host:port under which training nodes reach it, for the address book; null: as "
        "`listen`, or this machine's name where that is all addresses",
    )
    name: ReceiverName = Field(
        default="receiver",
        description="what it is called, in the address book and in its messages",
    )
    hooks: tuple[str, ...] = Field(
        default=("*",), min_length=1, description="globs over the names of hooks that it takes"
    )
    job: str = Field(
        default="",
        max_length=256,
        description="the job whose packets it takes; empty: that of the first forwarder",
    )
    keys: Path | None = Field(
        default=None,
        description="folder of CURVE keys as `asys-run keys` makes it: `receiver.secret`, and in `allowed/` "
        "the clients that are let in. null: no encryption, on loopback alone",
    )
    book: str | None = Field(
        default=None, description="address book (a folder or a URI) in which it is announced"
    )
    generation: int | None = Field(
        default=None,
        ge=0,
        description="what its entry in the book is numbered; null: one more than the last",
    )
    lifeline_fd: int | None = Field(
        default=None,
        ge=0,
        description="descriptor of a pipe: when its other end is closed, it stops in order",
    )
    window_mib: float = Field(
        default=64, gt=0, le=1 << 16, description="most MiB of one connection that are under way"
    )
    memory_mib: float = Field(
        default=512,
        gt=0,
        le=1 << 20,
        description="most MiB under way of all connections; the process gives all connections up when it has "
        "taken twice that",
    )
    max_message_mib: float = Field(
        default=64,
        gt=0,
        le=1024,
        description="largest message, and so the largest packet, in MiB; never more than `window_mib` or "
        "`memory_mib`",
    )
    max_connections: int = Field(
        default=256, ge=1, le=4096, description="forwarders at a time; more are refused"
    )
    shards: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="shards of its bus, one for each rank that sends, each of `bus.capacity_mib`; null: the "
        "ranks of the first forwarder's job",
    )
    idle_ttl_s: float | None = Field(
        default=None,
        gt=0,
        description="it ends after so many seconds without a connection; null: never",
    )

    def misfits(self) -> Iterator[Misfit]:
        """A place that is no book, keys that cannot be used, an address that everybody reaches without."""
        from asys_bench.cluster.router import is_loopback

        for name, text, least in (("listen", self.listen, 0), ("advertise", self.advertise, 1)):
            port = _port_of(text)
            if port is not None and not least <= port < 1 << 16:
                yield Misfit((name,), f"has a port that is not {least} to 65535", text, "")
        if self.book is not None and (why := place_problem(self.book)) is not None:
            yield Misfit(("book",), why, self.book, "")
        if self.keys is not None:
            try:
                read_pair(self.keys, RECEIVER)
            except (KeyFileError, OSError) as error:
                yield Misfit(("keys",), str(error), str(self.keys), "")
        elif not is_loopback(self.listen.rpartition(":")[0].strip("[]")):
            yield Misfit(
                ("listen",),
                "is not on loopback, and without keys anybody could connect",
                self.listen,
                "asys-run keys DIR makes keys; name the folder as `keys`",
            )


def _port_of(place: str | None) -> int | None:
    """None: it names no port."""
    found = re.search(f"{_PORT}$", place or "")
    return int(found[0][1:]) if found is not None else None
