"""Every file of a run, whether it goes on, has ended or was killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asys_bench.cluster.accounts import (
    CLUSTER_DIR,
    MAX_BYTES,
    RECEIVER_FILE,
    ForwarderAccount,
    ReceiverAccount,
)
from asys_bench.cluster.identities import check_cluster, imbalances
from asys_bench.cluster.ledger import LEDGER_DOCUMENT, LEDGER_FILE
from asys_bench.contracts.run_files import (
    ARCHIVE_DIR,
    CONFIG_FILE,
    FEATURE_INDEX_DIR,
    HOST_DIR,
    LATEST,
    LOCKS,
    LOGS_DIR,
    READERS_DIR,
    RESERVOIR_DIR,
    SAE_DIR,
    STATE_DIR,
    TENSORBOARD_DIR,
    RunFileError,
    accepted_by,
    attempts_in,
    read_run_file,
)
from asys_bench.rundir.feature_index_layout import LATEST_FILE
from asys_bench.rundir.live_run import goes_on
from asys_bench.rundir.verify.archive import ArchiveCheck
from asys_bench.rundir.verify.checkpoints import CheckpointCheck
from asys_bench.rundir.verify.files import (
    CHECKS,
    REQUIRED,
    check_document,
    check_events,
    check_index,
    check_lines,
    check_window,
)
from asys_bench.rundir.verify.finding import Finding, State, Verification
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError
from asys_bench.sae.checkpoint.checkpoint_store import (
    TEMPORARY,
    CheckpointStore,
    check_seal,
)
from asys_bench.system.files.below import (
    EntryKind,
    read_json,
    remove,
    scan,
    scan_if_there,
    walk,
)

KEPT = "what an earlier repair cut off; kept until you delete it"
TEXTS = (LOGS_DIR, READERS_DIR)
"""Folders of text and locks: nothing in them can be wrong."""
FOLDERS = (
    ARCHIVE_DIR, SAE_DIR, CLUSTER_DIR, TENSORBOARD_DIR, RESERVOIR_DIR, FEATURE_INDEX_DIR, *TEXTS,
)  # fmt: skip


def verify_run(run_dir: Path, *, repair: bool = False, keep_torn: bool = True) -> Verification:
    """Check (and with `repair` mend) the run in the folder `run_dir`.

    keep_torn: keep cut-off bytes beside the file that they were cut from.

    A run that goes on is only read: what its processes are writing is never taken for damage, and
    never repaired. Files of other kinds are listed and left alone.
    """
    check = _RunCheck(Path(run_dir), repair, keep_torn)
    return Verification(check.path, check.run_id, check.live, tuple(check.findings()))


class _RunCheck:
    def __init__(self, path: Path, repair: bool, keep_torn: bool) -> None:
        self.path, self._repair, self._keep_torn = path, repair, keep_torn
        document = _document(path)
        self.run_id = str(document.get("run_id", ""))
        self.live = goes_on(document)

    def findings(self) -> Iterator[Finding]:
        for name in REQUIRED:
            if not os.path.lexists(self.path / name):
                yield Finding(name, "document", State.DAMAGED, "is missing")
        try:
            entries = scan(self.path)
        except OSError as error:
            yield Finding(".", "other", State.DAMAGED, str(error))
            return
        for path, kind in entries:
            if kind is EntryKind.FOLDER:
                yield from self._guarded(path.name, self._folder(path))
            elif kind is EntryKind.FILE:
                yield self._file(path)
            else:
                ours = path.name in (*REQUIRED, *FOLDERS, *CHECKS)
                state = State.DAMAGED if ours else State.FOREIGN
                detail = f"a {kind}, which a run does not write; left alone"
                yield Finding(path.name, "other", state, detail)

    def _guarded(self, name: str, findings: Iterator[Finding]) -> Iterator[Finding]:
        """`findings`, of which a folder that cannot be walked is one."""
        try:
            yield from findings
        except OSError as error:
            yield Finding(name, "other", State.DAMAGED, str(error))

    def _folder(self, folder: Path) -> Iterator[Finding]:
        if folder.name == ARCHIVE_DIR:
            yield from ArchiveCheck(
                self.path, self.run_id, repair=self._repair, keep_torn=self._keep_torn
            ).findings()
            return
        if folder.name == SAE_DIR:
            yield from CheckpointCheck(
                self.path, SAE_DIR, live=self.live, repair=self._repair
            ).findings()
            return
        if folder.name in (STATE_DIR, HOST_DIR):
            yield from self._of_the_host(folder)
            return
        if folder.name == CLUSTER_DIR:
            yield from self._of_the_cluster(folder)
            return
        if self._holds_stores(folder):
            # Of `asys-run train`, which may be at work though the run has ended: only read.
            yield from CheckpointCheck(self.path, folder.name, live=True, repair=False).findings()
            return
        for path, kind in walk(folder, below=self.path):
            name = path.relative_to(self.path).as_posix()
            if kind is not EntryKind.FILE:
                yield Finding(name, "other", State.FOREIGN, f"a {kind}; left alone")
            elif folder.name in TEXTS:
                continue
            elif folder.name == TENSORBOARD_DIR and ".tfevents." in path.name:
                yield self._events(path, name)
            elif folder.name == RESERVOIR_DIR and path.suffix == ".safetensors":
                yield check_window(path, name, live=self.live)
            elif folder.name == FEATURE_INDEX_DIR and path.name == LATEST_FILE:
                yield Finding(name, "index", State.OK, "rewritten while the sink is at work")
            elif folder.name == FEATURE_INDEX_DIR and path.suffix == ".safetensors":
                found = check_index(path, name, self.path, live=self.live)
                yield found if found is not None else self._unfinished(path)
            elif path.name.endswith(".tmp"):
                yield self._unfinished(path)
            elif path.suffix == ".json":
                yield check_document(path, name, self.path)
            else:
                yield Finding(name, "other", State.FOREIGN, "of no kind that a run writes")

    def _of_the_host(self, folder: Path) -> Iterator[Finding]:
        """Its checkpoints and its weights, by their checksums; what else is there is the host's own."""
        for path in CheckpointStore(folder, below=self.path).checkpoints():
            name = path.relative_to(self.path).as_posix()
            try:
                whole = check_seal(path)
            except CheckpointError as error:
                yield Finding(name, "checkpoint", State.DAMAGED, str(error))
                continue
            yield Finding(name, "checkpoint", State.OK, "" if whole else "has no manifest")
        for path, _ in scan_if_there(folder, below=self.path):
            if path.name.startswith(TEMPORARY):
                yield self._unfinished(path)

    def _of_the_cluster(self, folder: Path) -> Iterator[Finding]:
        """Accounts of forwarders and of the receiver, each by its own identity, and the ledger."""
        for path, kind in walk(folder, below=self.path):
            name = path.relative_to(self.path).as_posix()
            if kind is not EntryKind.FILE:
                yield Finding(name, "other", State.FOREIGN, f"a {kind}; left alone")
            elif path.name.endswith((".tmp", ".partial")):
                yield self._unfinished(path)
            elif path.name == LEDGER_FILE:
                yield Finding(
                    name, "other", State.OK, "checked by the receiver that goes on with it"
                )
            elif path.suffix != ".json":
                yield Finding(name, "other", State.FOREIGN, "of no kind that a run writes")
            elif path.name == LEDGER_DOCUMENT:
                yield check_document(path, name, self.path)
            else:
                yield self._account(path, name)

    def _account(self, path: Path, name: str) -> Finding:
        try:
            document = read_json(path, MAX_BYTES, below=self.path)
            detail = ""
            if path.name == RECEIVER_FILE:
                receiver = ReceiverAccount.of(document)
                problems = [*check_cluster([receiver]).problems]
                detail = "" if self.live else self._without_account(receiver.accepted)
            else:
                problems = imbalances([ForwarderAccount.of(document)])
        except (OSError, ValueError) as error:
            return Finding(name, "document", State.DAMAGED, str(error))
        if problems:
            return Finding(name, "document", State.DAMAGED, "; ".join(problems))
        return Finding(name, "document", State.OK, detail)

    def _without_account(self, accepted: int) -> str:
        """What is to be said of attempts that a receiver and all of its workers did not survive."""
        attempts = attempts_in(self.path)
        ended = [str(one["attempt"]) for one in attempts if one.get("account") is None]
        accounts = [one["account"] for one in attempts if one.get("account") is not None]
        counted = sum(map(accepted_by, accounts))
        if not ended or accepted <= counted:
            return ""
        return (
            f"{accepted - counted:,} of {accepted:,} accepted packets are in no account of this run: "
            f"attempt {', '.join(ended)} ended with the receiver and all of its workers at once, and what "
            "was unread on its bus is gone"
        )

    def _holds_stores(self, folder: Path) -> bool:
        inner = (path for path, kind in scan(folder, below=self.path) if kind is EntryKind.FOLDER)
        return any(os.path.lexists(path / LATEST) for path in inner)

    def _events(self, path: Path, name: str) -> Finding:
        if path.name.endswith(".torn"):
            return Finding(name, "other", State.OK, KEPT)
        return check_events(
            path, name, self.path, live=self.live, repair=self._repair, keep_torn=self._keep_torn
        )

    def _file(self, path: Path) -> Finding:
        name = path.name
        if name in CHECKS:
            return check_lines(path, live=self.live, repair=self._repair, keep_torn=self._keep_torn)
        if path.suffix == ".json" or name == CONFIG_FILE:
            return check_document(path, name, self.path)
        if name.endswith(".html") or name in LOCKS:
            return Finding(name, "other", State.OK)
        if name.endswith(".torn"):
            return Finding(name, "other", State.OK, KEPT)
        if name.endswith((".tmp", ".partial")):
            return self._unfinished(path)
        return Finding(name, "other", State.FOREIGN, "of no kind that a run writes")

    def _unfinished(self, path: Path) -> Finding:
        name = path.relative_to(self.path).as_posix()
        if self.live:
            return Finding(name, "document", State.BEING_WRITTEN)
        done = None
        if self._repair:
            remove(path, below=self.path)
            done = "removed"
        return Finding(name, "document", State.LEFTOVER, "of a killed writer", repair=done)


def _document(path: Path) -> dict[str, Any]:
    try:
        return read_run_file(path)
    except RunFileError:
        return {}
