"""The files of a run's folder: their names, their schemas, and how a reader gets at run.json.

    run.json            what is observed, by which process, where its shared memory is; `result` at the end
    config.yaml         the whole configuration, each value with its origin
    plan.json           which process runs on which CPUs
    summary.json        what the run came to; written at its end
    histograms.json     every histogram of the last reading
    metrics.csv         every metric at every interval
    monitor.log         events, a JSON object a line
    prometheus.json     where the exporter listens; removed when it ends
    vocabulary.json     token texts of a text model
    observation.json    what the numbers of an environment's observation are
    report.html         the report, as `asys-run report` writes it
    features.html       every feature, as `asys-run report --all-features` writes it
    logs/               a log per worker and the watchdog's; eye.log of an eyepiece that the run started
    archive/ sae/       activations; checkpoints of the SAEs
    evaluation/         what SAEs do to the model when they are put back into it
    host/               weights that a host kept of the model that it trained
    host-state/         checkpoints of a host that can be saved; of others what they keep there
    watch/              what an `sae_watch` sink found
    probes/             linear probes of a `probe` sink, with what they are worth
    alarm/              what an `alarm` sink raised and watched
    reservoir/          rows of the whole run, a folder per hook (`change.reservoir`)
    timeline/           which features were born when (`change.timeline`)
    feature_index/      what each feature fires on, a folder per hook (`rundir.feature_index_layout`)
    names/              names that a language model proposed for features (`rundir.feature_names`)
    tensorboard/        event files
    trackers/           which runs of wandb, trackio and MLflow show this one (`monitors.tracker`)
    eye.json            pins, names and notes of features, as viewers of `asys-run eye` wrote them
    .readers/           locks of subscribers from outside
    .host.lock          held by the host; .workers.lock: by watchdog and workers (`workers.run_lock`);
                        archive/.lock: by whoever decides what of the archive is deleted;
                        .upload.lock: by the process that sends the run to its store;
                        .eye.lock: by whoever changes eye.json
    .copy.json          what this folder has of the run's copy (`store.claims`)

A run's folder is input: anybody may have written it. Every reader opens its files through
`system.files.below`, with the run's folder as `below`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from asys_bench.system.files.below import is_file, read_json, scan_if_there

RUN_FILE, RUN_SCHEMA = "run.json", "asys.run/1"
CONFIG_FILE = "config.yaml"
PLAN_FILE, PLAN_SCHEMA = "plan.json", "asys.plan/1"
SUMMARY_FILE, SUMMARY_SCHEMA = "summary.json", "asys.run_summary/1"
HISTOGRAMS_FILE = "histograms.json"
METRICS_FILE = "metrics.csv"
EVENTS_FILE = "monitor.log"
EXPORTER_FILE = "prometheus.json"
VOCABULARY_FILE, VOCABULARY_SCHEMA = "vocabulary.json", "asys.vocabulary/1"
OBSERVATION_FILE, OBSERVATION_SCHEMA = "observation.json", "asys.observation/1"
REPORT_FILE = "report.html"
FEATURES_FILE = "features.html"
EYE_FILE, EYE_SCHEMA = "eye.json", "asys.eye/1"
LOGS_DIR = "logs"
ARCHIVE_DIR = "archive"
SHARD_SUFFIX, SIDECAR_SUFFIX, DELETED_SUFFIX = ".arrows", ".json", ".deleted.jsonl"
"""Of shards, of what says of a closed one what is in it, and of a worker's record of deletions."""
SAE_DIR = "sae"
LATEST = "latest"
"""The link in a folder of checkpoints that names the newest."""
_CHECKPOINT = re.compile(r"step_(\d{9,})(?:\.(\d+))?")
EVALUATION_DIR, EVALUATION_SCHEMA = "evaluation", "asys.evaluation/1"
HOST_DIR, WEIGHTS_FILE, WEIGHTS_SCHEMA = "host", "weights.json", "asys.weights/1"
STATE_DIR = "host-state"
WATCH_DIR, WATCH_SCHEMA = "watch", "asys.watch/1"
PROBES_DIR, PROBES_SCHEMA = "probes", "asys.probes/1"
ALARM_DIR, ALARM_SCHEMA, ALARM_OVER_SCHEMA = "alarm", "asys.alarm/1", "asys.alarm_over/1"
ALARMS_FILE, ALARM_VALUES_SCHEMA = "alarms.jsonl", "asys.alarm_values/1"
RESERVOIR_DIR = "reservoir"
TIMELINE_DIR, TIMELINE_SCHEMA = "timeline", "asys.timeline/1"
FEATURE_INDEX_DIR, FEATURE_INDEX_SCHEMA = "feature_index", "asys.feature_index/1"
NAMES_DIR, NAMES_SCHEMA = "names", "asys.names/1"
TENSORBOARD_DIR = "tensorboard"
TRACKERS_DIR, TRACKED_SCHEMA = "trackers", "asys.tracked/1"
READERS_DIR = ".readers"
HOST_LOCK, WORKERS_LOCK, UPLOAD_LOCK = ".host.lock", ".workers.lock", ".upload.lock"
EYE_LOCK = ".eye.lock"
ARCHIVE_LOCK_NAME = ".lock"
ARCHIVE_LOCK = f"{ARCHIVE_DIR}/{ARCHIVE_LOCK_NAME}"
COPY_FILE = ".copy.json"
LOCKS = (HOST_LOCK, WORKERS_LOCK, UPLOAD_LOCK, ARCHIVE_LOCK, EYE_LOCK)

DELETED_FOR = {
    "budget": "to keep max_gib",
    "age": "as older than max_age_s",
    "free_space": "to keep min_free_gib",
    "stored": "as the run's store has them",
}
"""Why shards of an archive were deleted, as its records say it -> as people say it."""

_FIELDS = {"run_id": str, "hooks": list, "host_pid": int}
"""Fields that run.json always has, with their types."""
_COUNTS = ("attempt", "first_step", "first_packet", "repeated_steps", "last_step", "host_step",
           "weights_version", "unix_ns")  # fmt: skip
_ACCOUNT_FIELDS = {"attempt", "unix_ns", "host_step", "weights_version", "account"}


class RunFileError(RuntimeError):
    """A folder is no run, or its run.json cannot be read as one; says which and why."""


def read_run_file(run_dir: Path) -> dict[str, Any]:
    """What run.json says. Its run_id, hooks and host_pid are there and of their types.

    Raises:
        RunFileError: there is no run, or its file is not readable as one (no regular file, too large,
            nested too deep, another schema, or a field is missing).
    """
    path = run_dir / RUN_FILE
    try:
        document = read_json(path, below=run_dir)
    except FileNotFoundError:
        raise RunFileError(f"{run_dir}: no {RUN_FILE} there; give the folder of one run") from None
    except (OSError, ValueError) as error:
        raise RunFileError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != RUN_SCHEMA:
        raise RunFileError(f"{path}: not an {RUN_SCHEMA} document")
    for name, kind in _FIELDS.items():
        if name not in document:
            raise RunFileError(f"{path}: lacks {name}")
        if not isinstance(document[name], kind):
            raise RunFileError(f"{path}: {name} is {str(document[name])[:80]!r}")
    if not all(isinstance(hook, str) for hook in document["hooks"]):
        raise RunFileError(f"{path}: hooks are not all names")
    return document


def checkpoint_order(name: str) -> tuple[int, int] | None:
    """(step, how often it was written again) of the folder of a checkpoint; None: no checkpoint is called
    so."""
    match = _CHECKPOINT.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2] or 0))


def share_coin(run_dir: Path, hooks: Collection[str]) -> bool:
    """Whether one sampling coin decided on the calls of all these hooks (`contracts.coin`), as run.json
    says; False where it does not say, as in runs of earlier versions."""
    try:
        streams = read_run_file(run_dir).get("streams")
    except RunFileError:
        return False
    told = [one for one in streams if isinstance(one, dict)] if isinstance(streams, list) else []
    sharing = [one.get("name") for one in told if one.get("coin") == "shared"]
    return all(hook in sharing for hook in hooks)


def began_unix_ns(document: Mapping[str, Any]) -> int | None:
    """When a run's first attempt began, as run.json says: with the run's id it tells runs apart. None: it
    does not say."""
    attempts = document.get("attempts")
    first = attempts[0] if isinstance(attempts, list) and attempts else document
    began = first.get("started_unix_ns") if isinstance(first, dict) else None
    return began if type(began) is int and 0 <= began < 1 << 63 else None


def attempts_in(run_dir: Path) -> list[dict[str, Any]]:
    """What run.json lists as attempts; none where it lists none or cannot be read. Entries that no
    attempt has are left out."""
    try:
        attempts = read_run_file(run_dir).get("attempts")
    except RunFileError:
        return []
    return [one for one in attempts if is_attempt(one)] if isinstance(attempts, list) else []


def first_steps_after(attempts: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Attempt -> the first step that a later attempt made again, for those of which one did."""
    begun = {
        one["attempt"]: one["first_step"] for one in attempts if one.get("first_step") is not None
    }
    later = {
        attempt: [step for other, step in begun.items() if other > attempt] for attempt in begun
    }
    return {attempt: min(steps) for attempt, steps in later.items() if steps}


def is_attempt(entry: Any) -> bool:
    """What run.json, or a worker whose host is gone, says of an attempt: counts are whole numbers."""
    if not isinstance(entry, dict) or entry.get("attempt") is None:
        return False
    account = entry.get("account")
    if account is not None and not (isinstance(account, dict) and "produced" in account):
        return False
    counts = [entry.get(name) for name in _COUNTS]
    counts += [account["produced"]] if account is not None else []
    return all(n is None or (type(n) is int and 0 <= n < 1 << 63) for n in counts)


def accepted_by(account: Mapping[str, Any]) -> int:
    """Packets that a bus took, by an account as documents have it: those offered less those it dropped.
    What is no whole number counts nothing."""
    dropped = account.get("dropped")
    counts = [account.get("produced"), *(dropped.values() if isinstance(dropped, dict) else ())]
    offered, *lost = (one if type(one) is int else 0 for one in counts)
    return offered - sum(lost)


def account_file(run_dir: Path, worker: str) -> Path:
    """Where a worker whose host is gone says what the bus had counted when it left."""
    return run_dir / LOGS_DIR / f"{worker}.account.json"


def accounts_of(run_dir: Path) -> list[dict[str, Any]]:
    """What such workers have said; what cannot be read is left out."""
    found = []
    try:
        entries = scan_if_there(run_dir / LOGS_DIR, below=run_dir)
    except OSError:
        return []
    for path, _ in entries:
        if path.name.endswith(".account.json"):
            with suppress(OSError, ValueError):
                document = read_json(path, below=run_dir)
                if is_attempt(document) and document.keys() >= _ACCOUNT_FIELDS:
                    found.append(document)
    return found


def is_run(folder: Path, *, below: Path | None = None) -> bool:
    """The folder has a run.json, which is a regular file."""
    return is_file(folder / RUN_FILE, below=below)


def runs_in(folder: Path) -> list[Path]:
    """The runs in a folder of runs; none where it is missing.

    Raises:
        OSError: it cannot be listed.
    """
    return [path for path, _ in scan_if_there(folder) if is_run(path, below=folder)]


def log_file(run_dir: Path, process: str) -> Path:
    """Where the log of a worker (or of the watchdog) is."""
    return run_dir / LOGS_DIR / f"{process}.log"
