"""What happens beside a run of the production pipeline, which has processes of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from asys_bench.config import MasterConfig
from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.scenario import IntegrityCount, RoundContext, ScenarioError
from asys_bench.contracts.stats import Counter
from asys_bench.harness.faults.host_process import HostTask, outcome_account, read_outcome
from asys_bench.harness.faults.observed import START_PATIENCE_S, ObservedRun
from asys_bench.run.lifecycle import RunOutcome


def master_config(context: RoundContext) -> MasterConfig:
    """The pipeline's whole configuration, to run it in this process."""
    config = context.config
    if not isinstance(config, MasterConfig):
        raise ScenarioError("this scenario runs the pipeline itself: it takes a MasterConfig")
    return config


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


END_PATIENCE_S = 90.0
POLL_S = 0.01


@contextmanager
def running(context: RoundContext) -> Iterator[ObservedRun]:
    """The case's pipeline, observed and with packets delivered to every group; then its orderly end.

    Its bus's account goes to the round's integrity.

    Raises:
        ScenarioError: it did not start, or failed, or did not end in order.
    """
    runs = context.scratch / "runs"
    runs.mkdir()
    task = HostTask(str(context.scratch), context.config.to_plain(), check_weights=False)
    run = ObservedRun.start(task, runs, {})
    try:
        _await_packets(run)
        yield run
        run.stop_host()
        try:
            run.process.wait(END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise ScenarioError(f"the run had not ended after {END_PATIENCE_S:g} s") from None
        outcome = read_outcome(context.scratch)
        if "failure" in outcome or not outcome["orderly"]:
            reason = outcome.get("failure", "not every worker drained in time; see its log")
            raise ScenarioError(f"the run failed: {reason}")
        account = outcome_account(outcome)
        if account is not None:
            count_packets(context.integrity, account)
    finally:
        run.close()


def _await_packets(run: ObservedRun) -> None:
    deadline = time.monotonic() + START_PATIENCE_S
    if not run.attach(START_PATIENCE_S):
        raise ScenarioError("the run ended before it began; see the log")
    while (account := run.account()) is not None and not all(g.delivered for g in account.groups):
        if run.process.poll() is not None or time.monotonic() > deadline:
            raise ScenarioError("not every consumer got packets; see the log")
        time.sleep(POLL_S)
