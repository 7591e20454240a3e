"""What must hold between what hosts have sent and what receivers have. Pure.

    forwarder   taken = acked + dropped(reason) + in flight
    cluster     acked <= accepted <= acked + window at every moment, and equal when all is quiet
    receiver    accepted = the sum over its senders = the sum over its streams

A report of a forwarder is in its receiver's document because it came before that was written, so the
cluster's identity is checked as acked <= accepted - window, whatever the clocks of the machines say. What a
forwarder had sent and gave up waiting for may have arrived: it is counted as dropped there and as accepted
here, which is `IN_DOUBT`, with its number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from asys_bench.cluster.accounts import (
    ForwarderAccount,
    ReceiverAccount,
    ReportedAccount,
    Sender,
    SenderAccount,
)


class Verdict(StrEnum):
    """How the accounts of a forwarder and its receivers compare."""

    EQUAL = "equal"
    """Whatever was acknowledged was accepted, and nothing else; nothing is under way."""
    MOVING = "moving"
    """The identities hold, packets or acknowledgements are under way."""
    SILENT = "silent"
    """It has not said yet what it counts."""
    IN_DOUBT = "in doubt"
    """Packets that were accepted, and that the forwarder has counted as dropped."""
    LOST = "receiver lost"
    """A receiver left no last account: what it acknowledged after its last one is on its disk, or lost."""
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class SenderCheck:
    """One forwarder over all receivers that it was connected to."""

    sender: Sender
    node: str
    job: str
    receivers: tuple[str, ...]
    connected: bool
    taken: int
    acked: int
    dropped: Mapping[str, int]
    in_flight: int
    accepted: int
    duplicates: int
    window: int
    credit_bytes: int
    lag_s: float
    verdict: Verdict
    doubt: int
    """Packets that the verdict is about: in doubt, or on a lost receiver."""
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClusterCheck:
    """Every forwarder and receiver."""

    senders: tuple[SenderCheck, ...]
    receivers: tuple[ReceiverAccount, ...]
    problems: tuple[str, ...]
    """Of receivers."""

    @property
    def holds(self) -> bool:
        return not self.problems and not any(one.problems for one in self.senders)

    @property
    def quiet(self) -> bool:
        """Nothing is under way."""
        return all(one.verdict is not Verdict.MOVING for one in self.senders)

    @property
    def dropped(self) -> dict[str, int]:
        """Over all forwarders, by reason."""
        total: dict[str, int] = {}
        for one in self.senders:
            for reason, n in one.dropped.items():
                total[reason] = total.get(reason, 0) + n
        return total

    def total(self, name: str) -> int:
        """Of a count of `SenderCheck`."""
        return sum(int(getattr(one, name)) for one in self.senders)


def check_cluster(
    receivers: Iterable[ReceiverAccount], forwarders: Iterable[ForwarderAccount] = ()
) -> ClusterCheck:
    """Check everything that is known.

    receivers: any number of documents; of one ledger (`id`) the newest counts.
    forwarders: accounts from hosts' own runs, where they can be read; the later of a forwarder's account and
        of what it reported counts.
    """
    newest: dict[str, ReceiverAccount] = {}
    for one in receivers:
        before = newest.get(one.id)
        if before is None or (before.attempt, before.unix_ns) <= (one.attempt, one.unix_ns):
            newest[one.id] = one
    own = {one.sender: one for one in forwarders}
    known = sorted(newest.values(), key=lambda one: (one.name, one.unix_ns))
    parts: dict[Sender, list[tuple[ReceiverAccount, SenderAccount]]] = {}
    for receiver in known:
        for sender in receiver.senders:
            parts.setdefault(sender.sender, []).append((receiver, sender))
    keys = sorted({*parts, *own})
    return ClusterCheck(
        tuple(_sender(key, parts.get(key, ()), own.get(key)) for key in keys),
        tuple(known),
        tuple(problem for receiver in known for problem in _of_receiver(receiver)),
    )


def imbalances(accounts: Iterable[ForwarderAccount | ReportedAccount]) -> list[str]:
    """Of forwarders whose packets do not add up, by how much."""
    return [
        f"taken {one.taken} is not acked {one.acked} + dropped {sum(one.dropped.values())} + in flight "
        f"{one.in_flight}: {one.imbalance:+d}"
        for one in accounts
        if one.imbalance
    ]


def _sender(
    key: Sender,
    parts: Sequence[tuple[ReceiverAccount, SenderAccount]],
    own: ForwarderAccount | None,
) -> SenderCheck:
    reports: list[ReportedAccount | ForwarderAccount] = [
        part.reported for _, part in parts if part.reported is not None
    ]
    problems = imbalances([*reports, *((own,) if own is not None else ())])
    for receiver, part in parts:
        if part.reported is not None and len(parts) == 1:
            arrived = part.accepted - part.window
            if part.reported.acked > arrived:
                problems.append(
                    f"acked {part.reported.acked} is more than {receiver.name} accepted and acknowledged: "
                    f"{part.accepted} - {part.window}"
                )
    if own is not None:
        reports.append(own)
    last = max(reports, key=lambda one: (one.unix_ns, one.taken), default=None)
    accepted = sum(part.accepted for _, part in parts)
    verdict, doubt = _verdict(last, accepted, parts)
    if verdict is Verdict.BROKEN:
        assert last is not None
        problems.append(
            f"acked {last.acked}, accepted {accepted}, taken {last.taken}: {doubt:+d} of nobody"
        )
    lags = [part.lag_s for _, part in parts if not math.isnan(part.lag_s)]
    return SenderCheck(
        sender=key,
        node=next((part.node for _, part in reversed(parts)), ""),
        job=own.job if own is not None else next((one.job for one, _ in parts), ""),
        receivers=tuple(dict.fromkeys(receiver.name for receiver, _ in parts)),
        connected=any(part.connected for _, part in parts),
        taken=last.taken if last is not None else 0,
        acked=last.acked if last is not None else 0,
        dropped=last.dropped if last is not None else {},
        in_flight=last.in_flight if last is not None else 0,
        accepted=accepted,
        duplicates=sum(part.duplicates for _, part in parts),
        window=sum(part.window for _, part in parts),
        credit_bytes=sum(part.credit_bytes for _, part in parts),
        lag_s=max(lags, default=math.nan),
        verdict=Verdict.BROKEN if problems else verdict,
        doubt=doubt,
        problems=tuple(dict.fromkeys(problems)),
    )


def _verdict(
    last: ReportedAccount | ForwarderAccount | None,
    accepted: int,
    parts: Sequence[tuple[ReceiverAccount, SenderAccount]],
) -> tuple[Verdict, int]:
    """And the number of packets that it is about."""
    if last is None:
        return Verdict.SILENT, 0
    more = accepted - last.acked
    if more < 0:
        if parts and last.final and all(receiver.final for receiver, _ in parts):
            return Verdict.BROKEN, more
        # What it acknowledged since its last document; where it is gone, nobody writes another one.
        here = parts and all(receiver.final or part.connected for receiver, part in parts)
        return (Verdict.MOVING if here else Verdict.LOST), -more
    if not last.final and (more or last.in_flight):
        return Verdict.MOVING, more
    if more == 0:
        return Verdict.EQUAL, 0
    if len(parts) == 1 and accepted > last.taken:
        return Verdict.BROKEN, accepted - last.taken
    return Verdict.IN_DOUBT, more


def _of_receiver(one: ReceiverAccount) -> Iterable[str]:
    by_sender = sum(sender.accepted for sender in one.senders)
    if by_sender != one.accepted:
        yield f"{one.name}: accepted {one.accepted}, over its senders {by_sender}"
    by_stream = sum(stream.accepted for stream in one.streams)
    if by_stream != one.accepted:
        yield f"{one.name}: accepted {one.accepted}, over its streams {by_stream}"
