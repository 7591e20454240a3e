"""A run that is going on, as another process of the same user reaches it.

run.json names the descriptors of the stats page and the bus: under `/proc/<host pid>/fd`, which the
kernel opens to the same user and to nobody else. Nothing is asked of the host process.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from asys_bench.contracts.bus import BusClient, BusHandle, BusPlugin
from asys_bench.contracts.run_files import RUN_FILE, RunFileError, read_run_file
from asys_bench.contracts.stats import RunState, StatsError, StatsPage
from asys_bench.registry import registry
from asys_bench.system.process import is_same_start, start_time


class LiveRunError(RuntimeError):
    """The run cannot be attached to: it has ended, is another user's, or is no run at all."""


class ReadingError(RuntimeError):
    """There is no such run, hook or column; the message names what there is."""


class NothingObservedError(LiveRunError):
    """The run observes no hook, so it has no bus to attach to."""


class LiveRun:
    """An attachment: `page` (heartbeats, counters) and `client` (the bus)."""

    def __init__(
        self, run_dir: Path, document: dict[str, Any], page: StatsPage, client: BusClient
    ) -> None:
        self.run_dir, self.document = run_dir, document
        self.page, self.client = page, client

    @classmethod
    def attach(cls, run_dir: str | os.PathLike[str]) -> Self:
        """Attach to the run in `run_dir`.

        Raises:
            LiveRunError: see the class; BusError, PluginError: its bus cannot be attached to here.
        """
        path = Path(run_dir)
        try:
            document = read_run_file(path)
        except RunFileError as error:
            raise LiveRunError(str(error)) from error
        pid = document.get("host_pid")
        bus = document.get("bus")
        if document.get("result") is not None:
            raise LiveRunError(f"{path}: the run has ended; open_run() reads what it wrote")
        if not isinstance(pid, int) or not isinstance(bus, dict):
            raise NothingObservedError(
                f"{path}: the run has no bus to attach to (it observes no hook)"
            )
        if not host_lives(document):
            raise LiveRunError(
                f"{path}: its host (pid {pid}) is gone; open_run() reads what it wrote"
            )
        page = attach_page(path, document)
        fds: list[int] = []
        try:
            fds += [_open(path, pid, name) for name in bus["fds"]]
            client = _attach(bus["handle"], fds)
        except (KeyError, TypeError, AttributeError) as error:
            page.close()
            raise LiveRunError(f"{path / RUN_FILE}: what it says of its bus is damaged") from error
        except BaseException:
            page.close()
            raise
        finally:
            for fd in fds:  # a client maps or duplicates what it needs
                os.close(fd)
        return cls(path, document, page, client)

    @property
    def hooks(self) -> tuple[str, ...]:
        return tuple(self.document["hooks"])

    @property
    def goes_on(self) -> bool:
        """Whether the host lives and has not ended the run."""
        return self.page.run_state in (RunState.STARTING, RunState.RUNNING) and host_lives(
            self.document
        )

    def close(self) -> None:
        """Detach. Idempotent."""
        self.client.close()
        self.page.close()


def host_lives(document: Mapping[str, Any]) -> bool:
    """Whether the host process that a run file names is there, and not another of the same pid."""
    pid, started = document.get("host_pid"), document.get("host_start")
    if not isinstance(pid, int) or not isinstance(started, int):
        return False
    return is_same_start(start_time(pid), started)


def goes_on(document: Mapping[str, Any]) -> bool:
    """Whether the run of this run file has neither ended nor lost its host."""
    return document.get("result") is None and host_lives(document)


def descriptor_paths(fds: Sequence[int]) -> list[str]:
    """Where other processes find this process's descriptors."""
    return [f"/proc/{os.getpid()}/fd/{fd}" for fd in fds]


def attach_page(run_dir: Path, document: Mapping[str, Any]) -> StatsPage:
    """The stats page of the run with this run file; its host process is `host_pid`.

    Raises:
        LiveRunError: the host is gone, or the page is not to be opened by this user.
    """
    fd = _open(run_dir, int(document.get("host_pid") or 0), document.get("stats_page"))
    try:
        return StatsPage.attach(fd)
    except (StatsError, OSError, ValueError) as error:
        os.close(fd)
        raise LiveRunError(f"{run_dir}: its host is gone ({error})") from None


def _open(run_dir: Path, pid: int, name: Any) -> int:
    """A descriptor of the run's host. `name` comes from a file: nothing else is ever opened by it."""
    if not isinstance(name, str) or not re.fullmatch(rf"/proc/{pid}/fd/\d{{1,9}}", name):
        raise LiveRunError(f"{run_dir / RUN_FILE}: {name!r} is no descriptor of its host ({pid})")
    refused: OSError | None = None
    for flags in (os.O_RDWR, os.O_RDONLY):
        try:
            if not stat.S_ISREG(os.stat(name).st_mode):
                raise LiveRunError(f"{run_dir / RUN_FILE}: {name} is no shared memory")
            return os.open(name, flags | os.O_CLOEXEC)
        except OSError as error:
            refused = error
    assert refused is not None
    raise LiveRunError(
        f"{run_dir}: {name} cannot be opened ({refused.strerror}): attach as the user that started the "
        "run, on the same machine and in the same container"
    )


def _attach(handle: dict[str, Any], fds: Sequence[int]) -> BusClient:
    return (
        registry("backend")
        .get(str(handle["backend"]), BusPlugin)
        .attach(BusHandle.from_dict(handle, fds))
    )
