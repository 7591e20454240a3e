"""A run that goes on from its copy in a store, where its folder is not here (`monitors.upload.bringing`)."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

from asys_bench.config import MasterConfig
from asys_bench.config.sections.run import Resume
from asys_bench.monitors.upload.bringing import Cause
from asys_bench.store.uri import place_of, without_secrets

log = logging.getLogger(__name__)


class NotBroughtError(RuntimeError):
    """The run is not brought back from its copy; says why and what to do. no_copy: there is none."""

    def __init__(self, message: str, *, no_copy: bool = False) -> None:
        super().__init__(message)
        self.no_copy = no_copy


def bring(uri: str, parent: Path | None, *, strict: bool, id: str | None = None) -> Path:
    """The folder of the copy's run, brought here or here already; takes as long as its checkpoints do.

    parent: the folder of runs; None: the run's own. strict, id: see `bring_back`.

    Raises:
        NotBroughtError.
    """
    command = [sys.executable, "-P", "-m", "asys_bench.monitors.upload.bringing", uri]
    command += [] if parent is None else ["--dir", str(parent)]
    command += ["--strict"] if strict else []
    command += [] if id is None else ["--id", id]
    began = time.monotonic()
    log.warning("asking %s for the run ...", without_secrets(uri))
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        found = json.loads(done.stdout)
    except (OSError, ValueError) as error:
        said = "" if isinstance(error, OSError) else done.stderr.decode(errors="replace").strip()
        raise NotBroughtError(
            f"{without_secrets(uri)} was not asked: {without_secrets(said)[-500:] or error}"
        ) from None
    if "error" in found:
        raise NotBroughtError(found["error"], no_copy=found["cause"] == Cause.NO_COPY)
    for note in found["notes"]:
        log.warning("%s", note)
    if found["new"]:
        log.warning(
            "%s: %d files (%.3g MB) brought here in %.1f s; %d shards stay in the store",
            found["path"], found["files"], found["bytes"] / 1e6, time.monotonic() - began, found["shards"],
        )  # fmt: skip
    return Path(found["path"])


def bring_if_missing(config: MasterConfig, id: str) -> Path | None:
    """The folder of the run `id`, which is not here, where it has a copy; None: it has none, or
    `run.resume` is never.

    Raises:
        NotBroughtError: nobody knows whether there is one, or it cannot be had. A new run must not begin
            then: it would be another of this id, for which the store has no place.
    """
    uri = config.storage.uri
    if uri is None or config.run.resume is Resume.NEVER:
        return None
    try:
        strict = config.run.resume is Resume.REQUIRE
        return bring(str(place_of(uri, id)), config.run.dir, strict=strict, id=id)
    except NotBroughtError as error:
        if error.no_copy:
            return None
        raise NotBroughtError(
            f"{error}; or begin a new run, of another id (run.id) or with run.resume: never"
        ) from None
