"""A finished pipeline's bus account as integrity counts."""

from __future__ import annotations

from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.scenario import IntegrityCount, RoundContext
from asys_bench.contracts.stats import Counter
from asys_bench.run.experiment import RunOutcome


def add_account(context: RoundContext, outcome: RunOutcome, *, kills: bool = False) -> None:
    """Add what the bus says became of every packet; `kills`: losses in flight were planned."""
    account, integrity = outcome.account, context.integrity
    if account is None:
        return
    count_packets(integrity, account)
    if kills:
        integrity.allowed_lost = integrity.lost
    for _, slot in outcome.page.slots():
        damaged = slot.metrics().get("archive_damaged_packets")
        if isinstance(damaged, Counter):
            integrity.torn += damaged.value


def count_packets(integrity: IntegrityCount, account: BusAccount) -> int:
    """Add what became of every packet in every group; how many the account does not explain."""
    integrity.offered += account.produced
    integrity.dropped += account.dropped_total
    unaccounted = 0
    for group in account.groups:
        integrity.delivered += group.delivered
        integrity.lost += group.lost_in_flight + group.dead_lettered
        unaccounted += abs(account.imbalance(group))
    integrity.unaccounted += unaccounted
    return unaccounted
