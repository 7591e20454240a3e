"""What a forwarder and a receiver say of themselves: metrics in their slots, and `cluster/receiver.json`."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from asys_bench.cluster.accounts import RECEIVER_SCHEMA
from asys_bench.cluster.arrivals import Connection
from asys_bench.cluster.intake import Intake
from asys_bench.cluster.ledger import Ledger, SenderKey
from asys_bench.cluster.outbox import Counts, Dropped, Outbox
from asys_bench.cluster.wire import Refusal
from asys_bench.contracts.stats import Slot


class ForwarderMeters:
    """A forwarder's counters in its slot. They outlive it."""

    def __init__(self, slot: Slot) -> None:
        self._taken, self._acked = slot.counter("remote_taken"), slot.counter("remote_acked")
        self._dropped = {
            reason: slot.counter("remote_dropped", reason=reason) for reason in Dropped
        }
        self._sent, self._resent = slot.counter("remote_sent_bytes"), slot.counter("remote_resent")
        self._connections = slot.counter("remote_connections")
        self._refused = {
            reason: slot.counter("remote_refused", reason=reason) for reason in Refusal
        }
        self._gauges = {
            name: slot.gauge(f"remote_{name}")
            for name in ("in_flight", "in_flight_bytes", "credit_bytes", "connected", "ack_s")
        }
        self._resent_before = self._resent.value

    def counts(self) -> Counts:
        """As the incarnation before has left them."""
        return Counts(
            self._taken.value,
            self._acked.value,
            {str(reason): counter.value for reason, counter in self._dropped.items()},
        )

    @property
    def refused(self) -> dict[str, int]:
        """By reason, of this incarnation and those before."""
        return {str(reason): counter.value for reason, counter in self._refused.items()}

    def refuse(self, reason: Refusal) -> None:
        self._refused[reason].add()

    def connection(self) -> int:
        """The number of the next connection."""
        self._connections.add()
        return self._connections.value

    @property
    def connections(self) -> int:
        return self._connections.value

    def sent_bytes(self, nbytes: int) -> None:
        self._sent.add(nbytes)

    def show(self, outbox: Outbox, *, credit: int, connected: bool, now: float) -> None:
        counts, oldest = outbox.counts, outbox.oldest
        self._taken.set(counts.taken)
        self._acked.set(counts.acked)
        for reason, counter in self._dropped.items():
            counter.set(counts.dropped[reason])
        self._resent.set(self._resent_before + outbox.resent)
        self._gauges["in_flight"].set(counts.in_flight)
        self._gauges["in_flight_bytes"].set(outbox.bytes)
        self._gauges["credit_bytes"].set(credit)
        self._gauges["connected"].set(int(connected))
        self._gauges["ack_s"].set(now - oldest if oldest is not None else 0.0)


class ReceiverMeters:
    """The receiver's counters, in the host's slot."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._counters = {
            name: slot.counter(f"receiver_{name}") for name in ("accepted", "accepted_bytes", "duplicates",
            "in_doubt", "expired", "connections_total")
        }  # fmt: skip
        self._refused = {
            reason: slot.counter("receiver_refused", reason=reason) for reason in Refusal
        }
        self._gauges = {
            name: slot.gauge(f"receiver_{name}")
            for name in ("connections", "credit_bytes", "window", "lag_s")
        }

    def count(self, ledger: Ledger, intake: Intake, refused_keys: int) -> None:
        total = ledger.total()
        values = {
            "accepted": total.accepted,
            "accepted_bytes": intake.accepted_bytes,
            "duplicates": total.duplicates,
            "expired": total.expired,
            "in_doubt": ledger.in_doubt,
            "connections_total": intake.opened,
        }
        for name, value in values.items():
            self._counters[name].set(value)
        for reason, counter in self._refused.items():
            counter.set(refused_keys if reason is Refusal.KEY else intake.refused.get(reason, 0))
        self._gauges["connections"].set(len(intake.connections))
        self._gauges["credit_bytes"].set(intake.outstanding)
        windows = (_window(ledger, intake, sender) for sender in ledger.senders())
        self._gauges["window"].set(sum(windows))
        lags = [_lag_s(one) for one in intake.connections.values()]
        self._gauges["lag_s"].set(max((lag for lag in lags if lag is not None), default=0.0))


def _window(ledger: Ledger, intake: Intake, sender: SenderKey) -> int:
    """Packets of a forwarder that are accepted, and that it has not reported as acknowledged."""
    told = intake.reports.get(sender)
    acked = told[0].acked if told is not None else 0
    return max(0, ledger.accepted(sender) - acked)


def _lag_s(connection: Connection) -> float | None:
    return None if connection.lag_ns is None else connection.lag_ns / 1e9


def describe(ledger: Ledger, intake: Intake) -> dict[str, Any]:
    """The receiver's account as JSON, but for what the caller knows."""
    live = {one.sender: one for one in intake.connections.values()}
    senders = []
    for sender in ledger.senders():
        connection, told = live.get(sender), intake.reports.get(sender)
        counted = ledger.total(sender)
        report = told[0] if told is not None else None
        senders.append(
            {
                "run_id": sender.run_id,
                "attempt": sender.attempt,
                "worker": sender.worker,
                "node": connection.hello.node if connection is not None else None,
                "hooks": sorted(connection.streams) if connection is not None else [],
                "connected": connection is not None,
                **counted._asdict(),
                "window": _window(ledger, intake, sender),
                "credit_bytes": connection.limit - connection.processed if connection else 0,
                "lag_s": _lag_s(connection) if connection is not None else None,
                "reported": None
                if told is None or report is None
                else {
                    "taken": report.taken,
                    "acked": report.acked,
                    "dropped": report.dropped,
                    "in_flight": report.in_flight,
                    "final": report.final,
                    "unix_ns": told[1],
                },
            }
        )
    accepted_of: Counter[int] = Counter()
    for account in ledger.accounts:
        accepted_of[account.stream.number] += account.accepted
    streams = [
        {
            "run_id": one.key.run_id,
            "attempt": one.key.attempt,
            "source": one.key.source,
            "shard": one.key.shard,
            "accepted": accepted_of[one.number],
        }
        for one in ledger.streams
    ]
    total = ledger.total()
    return {
        "schema": RECEIVER_SCHEMA,
        "id": ledger.id,
        "job": intake.job,
        "unix_ns": time.time_ns(),
        "accepted": total.accepted,
        "duplicates": total.duplicates,
        "expired": total.expired,
        "in_doubt": ledger.in_doubt,
        "refused": {str(reason): count for reason, count in intake.refused.items()},
        "window_bytes": intake.outstanding,
        "connections": len(intake.connections),
        "senders": senders,
        "streams": streams,
    }
