"""The accounts of a cluster: what receivers say in the address book, and hosts' runs of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asys_bench.cluster.accounts import AccountError, ForwarderAccount, read_forwarders
from asys_bench.cluster.identities import ClusterCheck, check_cluster
from asys_bench.cluster.status import Cluster, read_cluster
from asys_bench.cluster.view import problems_of
from asys_bench.contracts.run_files import SUMMARY_FILE, attempts_in, is_run, runs_in
from asys_bench.rundir.attach import RunGoneError
from asys_bench.system.files.below import read_json


@dataclass(frozen=True)
class ClusterVerification:
    """A cluster's accounts. problems: identities that do not hold, and files that cannot be read."""

    cluster: Cluster
    check: ClusterCheck
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.problems

    def to_plain(self) -> dict[str, Any]:
        """The document of `asys-run verify --cluster BOOK --json`."""
        check = self.check
        return {
            "schema": "asys.cluster_verify/1",
            "book": self.cluster.uri,
            "holds": self.holds,
            "quiet": check.quiet,
            **{name: check.total(name) for name in ("taken", "acked", "in_flight", "accepted")},
            "dropped": check.dropped,
            "receivers": [
                {"name": one.name, "id": one.id, "run_id": one.run_id, "accepted": one.accepted,
                 "duplicates": one.duplicates, "in_doubt": one.in_doubt, "expired": one.expired,
                 "refused": dict(one.refused), "final": one.final}
                for one in check.receivers
            ],
            "forwarders": [
                {**asdict(one), "verdict": str(one.verdict), "lag_s": _known(one.lag_s)}
                for one in check.senders
            ],
            "problems": list(self.problems),
        }  # fmt: skip


def verify_cluster(place: str, runs: Path | None = None) -> ClusterVerification:
    """Check the cluster of an address book.

    runs: a run, or a folder of runs, whose forwarders' own accounts are taken as well.

    Raises:
        BookError: there is no such book, or it cannot be read. RunGoneError: `runs` is neither.
    """
    cluster = read_cluster(place)
    own: list[ForwarderAccount] = []
    problems: list[str] = []
    for run_dir in _runs(runs):
        try:
            found = read_forwarders(run_dir)
        except (AccountError, OSError) as error:
            problems.append(str(error))
            continue
        own += found
        problems += [problem for one in found for problem in _of_the_bus(run_dir, one)]
    check = check_cluster((one.account for one in cluster.statuses), own)
    unreadable = [f"{where}: {why}" for where, why in cluster.unreadable.items()]
    return ClusterVerification(cluster, check, (*problems_of(check), *problems, *unreadable))


def _runs(path: Path | None) -> list[Path]:
    if path is None:
        return []
    if is_run(path):
        return [path]
    try:
        found = runs_in(path)
    except OSError as error:
        raise RunGoneError(f"{path}: {error}") from None
    if not found:
        raise RunGoneError(f"{path}: neither a run nor a folder of runs")
    return found


def _of_the_bus(run_dir: Path, one: ForwarderAccount) -> Iterator[str]:
    """What the bus has delivered to a forwarder is what it took, once its run has ended."""
    attempts = attempts_in(run_dir)
    if not one.final or not attempts or attempts[-1]["attempt"] != one.attempt:
        return
    try:
        groups = read_json(run_dir / SUMMARY_FILE, below=run_dir)["bus"]["groups"]
        delivered = {group["group"]: group["delivered"] for group in groups}.get(one.group)
    except (OSError, ValueError, LookupError, TypeError):
        return  # killed before its summary; `asys-run verify RUN` says so
    if delivered is not None and delivered != one.taken:
        yield f"{run_dir}: {one.worker} took {one.taken} packets, and the bus delivered {delivered}"


def _known(value: float) -> float | None:
    return value if value == value else None
