"""Which folder a run has, and what may change when it goes on (`run.resume`, `run.id`).

An attempt is one life of a host on a run: 0 the first time, and one more each time that it went on. The
attempts of a run share its folder, its id and its SAEs; run.json lists them.

- `never`: a new folder.
- `auto`: the newest run of this id goes on; where there is none, or it is damaged, a new one begins
  beside it, and the log says what is damaged.
- `require`: it goes on, or it is an error.

Where the folder is not here and `storage.uri` has the run's copy, what is needed of it is brought first
(`from_store`).

What may not change is what the files of the run are made of (`FIXED`, `FIXED_OF_SAE`). The rest may: length
and budgets, sampling, monitors, bus, placement.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from asys_bench.config import ConfigError, LoadedConfig, MasterConfig
from asys_bench.config.document import read_run_config
from asys_bench.config.paths import Path as FieldPath
from asys_bench.config.paths import format_path
from asys_bench.config.problems import Problem
from asys_bench.config.sections.run import Resume, RunConfig
from asys_bench.contracts.run_files import (
    ARCHIVE_DIR,
    CONFIG_FILE,
    DELETED_SUFFIX,
    EXPORTER_FILE,
    HISTOGRAMS_FILE,
    HOST_LOCK,
    LATEST,
    LOGS_DIR,
    METRICS_FILE,
    OBSERVATION_FILE,
    RUN_FILE,
    SAE_DIR,
    SUMMARY_FILE,
    VOCABULARY_FILE,
    WORKERS_LOCK,
    RunFileError,
    accounts_of,
    is_attempt,
    read_run_file,
)
from asys_bench.monitors.metrics_csv import last_step
from asys_bench.run.from_store import bring_if_missing
from asys_bench.run.preflight import origin_of
from asys_bench.run.run_dir import RunDir, names_alike
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError
from asys_bench.sae.checkpoint.checkpoint_store import CheckpointStore, check_seal
from asys_bench.system.files.below import EntryKind, remove, scan, scan_if_there, walk
from asys_bench.system.launcher import job_name, node_name
from asys_bench.workers.run_lock import RunLock

log = logging.getLogger(__name__)

FIXED = ("run.seed", "host.kind", "hooks.*")
"""Fields that may not change, but for `hooks[].sampling`."""
FIXED_OF_SAE = frozenset(
    (
        *("architecture", "d_sae", "expansion_factor", "k", "matryoshka_widths", "dtype", "seed"),
        *("normalize", "normalizer_window_rows", "outliers", "buffer_rows", "held_out_rows"),
    )
)
"""Fields of an SAE that may not change, wherever in a sink's options they are given."""
_BEGUN_BY = {CONFIG_FILE, HOST_LOCK, WORKERS_LOCK, VOCABULARY_FILE, OBSERVATION_FILE, LOGS_DIR}
"""What a run has before its run.json."""
_OF_THE_LAST_END = (SUMMARY_FILE, HISTOGRAMS_FILE, EXPORTER_FILE)
"""Files that say how an attempt ended; they are removed when another begins."""
_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]")


class ResumeError(RuntimeError):
    """`run.resume: require`, and the run cannot go on; says why."""


class DamagedRunError(RuntimeError):
    """A run that no attempt can go on from; says what is damaged."""


def id_of(run: RunConfig, env: Mapping[str, str] | None = None) -> str:
    """What the run is found by: `run.id`, or the job's id and the run's name, or that name alone.

    Each node of a job has a run of its own: nodes but the first add theirs.
    """
    name = run.id
    if name is None:
        job = job_name(env)
        name = run.name if job is None else f"{_NO_NAME.sub('-', job)[:60]}-{run.name}"
    node = node_name(env)
    return name if node == "0" else f"{name}-node{_NO_NAME.sub('-', node)[:8]}"


def open_run_dir(loaded: LoadedConfig) -> RunDir:
    """The run's folder, locked, new or one that goes on.

    Raises:
        RunBusyError: another process has it, and who. ResumeError: `require`, and it cannot go on.
        NotBroughtError: its copy in the store cannot be had.
        ConfigError: what may not change has changed. OSError: the folder cannot be written.
    """
    run = loaded.config.run
    if run.resume is Resume.NEVER:
        new = RunDir.create(run.dir, run.name) if run.id is None else None
        return (new or RunDir.create_for(run.dir, str(run.id))).locked()
    wanted = id_of(run)
    found = newest_of(run.dir, wanted) or bring_if_missing(loaded.config, wanted)
    if found is None:
        if run.resume is Resume.REQUIRE:
            uri = loaded.config.storage.uri
            stored = "" if uri is None else f" or in {uri}"
            raise ResumeError(
                f"no run {wanted!r} under {run.dir}{stored}, and run.resume is require"
            )
        return RunDir.create_for(run.dir, wanted).locked()
    path = found.resolve()
    lock = RunLock(path)
    try:
        earlier = _attempts_of(path)
        if earlier:
            if problems := changes(loaded, path):
                raise ConfigError(problems)
            for name in _OF_THE_LAST_END:
                remove(path / name, below=path)
        return RunDir(path, found.name, id=wanted, attempt=len(earlier), earlier=earlier, lock=lock)
    except DamagedRunError as error:
        lock.release()
        if run.resume is Resume.REQUIRE:
            raise ResumeError(f"{found} cannot go on: {error}") from None
        log.warning("%s cannot go on, so a new run begins beside it: %s", found, error)
        return RunDir.create_for(run.dir, wanted).locked()
    except BaseException:
        lock.release()
        raise


def bring_missing(config: MasterConfig) -> None:
    """Have the run's folder here, where it goes on from its copy. Raises NotBroughtError."""
    wanted = id_of(config.run)
    if newest_of(config.run.dir, wanted) is None:
        bring_if_missing(config, wanted)


def newest_of(parent: str | os.PathLike[str], id: str) -> Path | None:
    """The newest folder of a run of this id: `<id>`, or the last of those that began beside it."""
    newest: Path | None = None
    for name in names_alike(id):
        path = Path(parent) / name
        if not path.is_dir():
            break
        try:
            theirs = read_run_file(path).get("id", name)
        except RunFileError:
            theirs = id
        if name == id or theirs == id:
            newest = path
    return newest


def preview(loaded: LoadedConfig) -> list[Problem]:
    """What `open_run_dir` would refuse of the configuration, without a lock and without a folder."""
    run = loaded.config.run
    found = None if run.resume is Resume.NEVER else newest_of(run.dir, id_of(run))
    try:
        return changes(loaded, found) if found is not None and _attempts_of(found) else []
    except DamagedRunError:
        return []


def _attempts_of(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The attempts of a run that ended or was killed; none where it never began.

    Raises:
        DamagedRunError: see there.
    """
    _check_entries(path)
    try:
        document = read_run_file(path)
    except RunFileError as error:
        names = {entry.path.name for entry in scan(path)}
        if RUN_FILE not in names and all(name in _BEGUN_BY or name[0] == "." for name in names):
            return ()
        raise DamagedRunError(str(error)) from None
    attempts = document.get("attempts")
    if not isinstance(attempts, list) or not all(map(is_attempt, attempts)):
        raise DamagedRunError(f"{path / RUN_FILE} lists no attempts (a run of an earlier version?)")
    if [one.get("attempt") for one in attempts] != list(range(len(attempts))) or not attempts:
        raise DamagedRunError(f"{path / RUN_FILE}: its attempts are not numbered 0, 1, ...")
    try:
        read_run_config(path)
    except ConfigError as error:
        raise DamagedRunError(str(error)) from None
    _check_saes(path)
    return (*attempts[:-1], ended(path, attempts[-1]))


def _check_entries(path: Path) -> None:
    """Workers append to the files that they find, and remove what was half written: a run that somebody
    made must not lead them out of it, or to where they would wait for ever.

    Raises:
        DamagedRunError: an entry of the run is a link (but a store's `latest`), a FIFO or a device.
    """
    try:
        for entry in walk(path):
            link = entry.kind is EntryKind.LINK
            if link and entry.path.name == LATEST and _stays_beside(os.readlink(entry.path)):
                continue
            if link or entry.kind in (EntryKind.FIFO, EntryKind.DEVICE):
                raise DamagedRunError(f"{entry.path} is a {entry.kind}")
    except OSError as error:
        raise DamagedRunError(str(error)) from None


def _stays_beside(target: str) -> bool:
    return os.sep not in target and target != os.pardir


def _check_saes(path: Path) -> None:
    """Every SAE that has checkpoints has one that is whole.

    Raises:
        DamagedRunError: one has none.
    """
    try:
        entries = scan_if_there(path / SAE_DIR, below=path)
    except OSError as error:
        raise DamagedRunError(str(error)) from None
    for folder, kind in entries:
        if kind is not EntryKind.FOLDER:
            raise DamagedRunError(f"{folder} is a {kind}")
        first: CheckpointError | None = None
        try:
            for checkpoint in CheckpointStore(folder, below=path).candidates():
                try:
                    check_seal(checkpoint)
                except CheckpointError as error:
                    first = first or error
                else:
                    first = None
                    break
        except CheckpointError as error:
            first = error
        if first is not None:
            raise DamagedRunError(f"no checkpoint of an SAE is whole: {first}")


def ended(path: Path, attempt: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry of an attempt that is over: one without an end was killed. Its workers outlive it by
    some seconds, and the last of them to leave has written the account. Where they were killed with it,
    its last step is the last one that a monitor read."""
    if attempt.get("end") is not None:
        return attempt
    told = [one for one in accounts_of(path) if one.get("attempt") == attempt["attempt"]]
    last = max(told, key=lambda one: int(one["unix_ns"] or 0), default=None)
    return {
        **attempt,
        "end": "killed",
        "ended_unix_ns": last["unix_ns"] if last else None,
        "last_step": last["host_step"]
        if last
        else last_step(path / METRICS_FILE, int(attempt["attempt"])),
        "weights_version": last["weights_version"] if last else None,
        "account": last["account"] if last else None,
        "archive_deleted": _deleted_in(path, int(attempt["attempt"])),
    }


def _deleted_in(path: Path, attempt: int) -> dict[str, Any]:
    """Reason -> what was deleted from the archive in an attempt, as the records say."""
    if not any((path / ARCHIVE_DIR).glob(f"*{DELETED_SUFFIX}")):
        return {}  # pyarrow is not loaded for nothing
    from asys_bench.sinks.archive.deletions import Deleted, read_deletions

    of = [one for one in read_deletions(path).values() if one.attempt == attempt]
    return {reason: asdict(total) for reason, total in Deleted.by_reason(of).items()}


class AttemptEnd(StrEnum):
    """How an attempt ended; one whose host was killed is `killed`, as the next attempt finds."""

    FINISHED = "finished"
    STOPPED = "stopped"
    """By Ctrl-C, before its end."""
    PREEMPTED = "preempted"
    """By SIGTERM, before its end."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Continuation:
    """What an attempt counts on from. All 0 in the first."""

    weights_version: int = 0
    packets: int = 0
    """Packets that were offered before the point that the host goes on from."""

    @classmethod
    def after(cls, earlier: Sequence[Mapping[str, Any]]) -> Continuation:
        """What is known of the attempts before, where the host says nothing itself."""
        versions = [int(one.get("weights_version") or 0) for one in earlier]
        packets = [int((one.get("account") or {}).get("produced", 0)) for one in earlier]
        return cls(max(versions, default=0), sum(packets))


NOTHING_BEFORE = Continuation()


def changes(loaded: LoadedConfig, path: Path) -> list[Problem]:
    """What of the configuration may not be other than in the run in `path`, and is."""
    try:
        before = read_run_config(path).to_data()
    except ConfigError as error:
        return list(error.problems)
    old, new = dict(_fixed(before)), dict(_fixed(loaded.config.to_plain()))
    found = []
    for field in sorted({*old, *new}, key=str):
        if field[0] == "sinks" and not _same_sink(before, loaded.config, str(field[1])):
            continue  # a sink that was added, taken away or switched off
        was, is_ = old.get(field), new.get(field)
        if was == is_:
            continue
        found.append(
            Problem.at(
                origin_of(loaded, field),
                f"cannot change in a run that goes on: it was {was!r} in {path / CONFIG_FILE}",
                path=format_path(field),
                value=is_,
                fix="set it back, or start a new run (run.resume: never)",
            )
        )
    return found


def _same_sink(before: Any, config: MasterConfig, name: str) -> bool:
    sinks = before.get("sinks") if isinstance(before, Mapping) else None
    then = sinks.get(name) if isinstance(sinks, Mapping) else None
    return isinstance(then, Mapping) and then.get("enabled", True) and name in config.enabled_sinks


def _fixed(data: Any) -> Iterator[tuple[FieldPath, Any]]:
    """Fields that may not change, with their values."""
    for field, value in _leaves((), data):
        hooked = field[0] == "hooks" and "sampling" not in field[2:3]
        of_run = format_path(field) in FIXED
        of_sae = field[0] == "sinks" and len(field) > 3 and field[-1] in FIXED_OF_SAE
        if hooked or of_run or of_sae or (field[0] == "sinks" and field[2:] == ("kind",)):
            yield field, value


def _leaves(path: FieldPath, value: Any) -> Iterator[tuple[FieldPath, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves((*path, str(key)), inner)
    elif isinstance(value, list) and any(isinstance(one, Mapping | list) for one in value):
        for index, inner in enumerate(value):
            yield from _leaves((*path, index), inner)
    else:
        yield path, value


def new_entry(
    run_dir: RunDir, first_step: int, ranks: int, first_packet: int = 0
) -> dict[str, Any]:
    """The entry of an attempt that begins now."""
    before = run_dir.earlier[-1]["end"] if run_dir.earlier else None
    return {
        "attempt": run_dir.attempt,
        "began": "new" if before is None else f"after: {before}",
        "started_unix_ns": time.time_ns(),
        **steps_of(run_dir, first_step),
        "first_packet": first_packet,
        "ranks": ranks,
        "host_pid": os.getpid(),
        "machine": socket.gethostname(),
        "end": None,
        "ended_unix_ns": None,
        "last_step": None,
        "weights_version": None,
        "account": None,
        "archive_deleted": {},
    }


def steps_of(run_dir: RunDir, first_step: int) -> dict[str, int]:
    """Of an attempt's entry. Steps up to the last one of an attempt before it are made again where the
    host goes on from an older step: SAEs have seen them, and keep what they learnt."""
    last = [int(one["last_step"]) for one in run_dir.earlier if one.get("last_step") is not None]
    repeated = max(0, max(last) - first_step) if last else 0
    return {"first_step": first_step, "repeated_steps": repeated}
