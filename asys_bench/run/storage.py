"""What a run's own process does for its copy in a store: ask before it starts, and see to the rest when
it has ended.

Both happen in processes of their own (`store.probe`, `asys-run upload`). Meanwhile a worker sends
(`monitors.upload`); run.json with the result, the summary and the report are written when it has left.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from asys_bench.config import LoadedConfig, MasterConfig
from asys_bench.config.problems import Problem
from asys_bench.config.sections.run import Resume
from asys_bench.contracts.exit_codes import EXIT_OK
from asys_bench.contracts.run_files import RunFileError, began_unix_ns, read_run_file
from asys_bench.run.attempts import id_of, newest_of
from asys_bench.run.preflight import origin_of
from asys_bench.run.run_dir import names_alike
from asys_bench.store.claims import hold_of
from asys_bench.store.probe import PROBE_S, Found, ask
from asys_bench.store.uri import RUN_ID, place_of

log = logging.getLogger(__name__)
PATH = ("storage", "uri")
START_S = 3.0
"""Of the time that a process gets to send, kept for its start and its end. With less nothing is begun."""


def storage_problems(loaded: LoadedConfig, within_s: float = PROBE_S) -> list[Problem]:
    """Why the run cannot be sent to its store, where waiting does not mend that. A store that is away is said
    and waited for."""
    config = loaded.config
    uri = config.storage.uri
    if uri is None:
        return []
    run_dir = _goes_on(config)
    name = run_dir.name if run_dir is not None else _new_name(config)
    found = ask(uri.replace(RUN_ID, name), within_s)
    message, fix = found.problem, "name a place that takes the files of a run"
    if message is not None and not found.lasting:
        log.warning("%s; the run's files wait here for it", message)
        return []
    comes_back = run_dir is None and config.run.resume is not Resume.NEVER and found.run_id == name
    if message is None and found.run_id is not None and not comes_back:
        if not _is(found, run_dir):
            message = f"holds the run {found.run_id!r}, and one place holds one run"
            fix = f"write {RUN_ID} in it: {uri.rstrip('/')}/{RUN_ID}"
        elif run_dir is not None and found.term > _term_of(run_dir, uri):
            who = f" ({found.holder})" if found.holder else ""
            message = f"its run went on elsewhere{who}, and {run_dir} is behind it"
            fix = (
                f"move {run_dir} away and start again: what is needed is brought from the store (what of it "
                "was not sent is in that folder alone)"
            )
    if message is None:
        return []
    return [Problem.at(origin_of(loaded, PATH), message, path=".".join(PATH), value=uri, fix=fix)]


def _goes_on(config: MasterConfig) -> Path | None:
    """The folder of the run that this start goes on with."""
    run = config.run
    return None if run.resume is Resume.NEVER else newest_of(run.dir, id_of(run))


def _new_name(config: MasterConfig) -> str:
    """Of the folder of a run that begins, where that can be known."""
    run = config.run
    if run.resume is not Resume.NEVER:
        return id_of(run)
    if run.id is None:
        return "new"
    return next(name for name in names_alike(run.id) if not (run.dir / name).exists())


def _term_of(run_dir: Path, uri: str) -> int:
    hold = hold_of(run_dir.resolve(), str(place_of(uri, run_dir.name)))
    return hold.claim.term if hold is not None else 0


def _is(found: Found, run_dir: Path | None) -> bool:
    if run_dir is None:
        return False
    try:
        document = read_run_file(run_dir.resolve())
    except RunFileError:
        return False
    return (found.run_id, found.began_unix_ns) == (document["run_id"], began_unix_ns(document))


@dataclass(frozen=True, slots=True)
class Sent:
    """How sending ended. said: in words, for a person."""

    complete: bool
    said: str


def not_all_sent(run_dir: Path) -> str:
    """What to do about it, in words."""
    return f"not everything of {run_dir} is in its store; send it with: asys-run upload {run_dir}"


def send_rest(config: MasterConfig, run_dir: Path, within_s: float | None = None) -> Sent | None:
    """Send what was written last, and what the run's worker has left; None: the run has no store.

    within_s: it is over by then; by default after `run.drain_timeout_s` and the time for a process.
    """
    if config.storage.uri is None:
        return None
    within_s = config.run.drain_timeout_s + START_S if within_s is None else within_s
    later = not_all_sent(run_dir)
    if within_s < START_S:
        return Sent(False, f"{later} (there was no time for it)")
    command = [
        *(sys.executable, "-P", "-m", "asys_bench.cli.run", "upload", str(run_dir)),
        *("--within", f"{within_s - START_S:.1f}"),
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=within_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return Sent(False, later)
    said = done.stdout.decode(errors="replace").strip().removeprefix("asys-run upload: ")
    complete = done.returncode == EXIT_OK
    return Sent(complete, said or later)
