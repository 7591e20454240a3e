"""What can be set of a forwarder (`sinks.<name>.options`), and what does not go together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from asys_bench.cluster.book import ADDRESS, is_address, place_problem
from asys_bench.cluster.keys import CLIENT, KeyFileError, is_key, read_pair
from asys_bench.contracts.sink import Misfit, SinkOptions


class ForwarderOptions(SinkOptions):
    """`sinks.<name>.options` of a forwarder."""

    to: str | None = Field(
        None, pattern=f"^{ADDRESS}$", description="Address of the receiver, `tcp://host:port`."
    )
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
