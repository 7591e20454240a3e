"""`subscribe(run)`: a consumer of your own on the bus of a run that is going on.

It joins as a group that nobody declared, sees packets from now on, and is gone without a trace when it
closes or dies. A thread of this process takes packets off the bus as they come and keeps the newest
few, so that a slow reader skips samples instead of holding up the run.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from asys_bench.contracts.bus import BusAccount, BusError, BusSubscription, Delivery, GroupSpec
from asys_bench.contracts.names import matches
from asys_bench.contracts.origin import ORIGIN, OriginLease
from asys_bench.contracts.packet import NO_TEXT, ActivationPacket, Kind, PacketError
from asys_bench.contracts.run_files import READERS_DIR
from asys_bench.rundir.live_run import LiveRun, ReadingError
from asys_bench.rundir.open_run import Run, open_run
from asys_bench.sinks.decoding import Decoder
from asys_bench.system.files.below import real_folder
from asys_bench.workers.shard_bus import interned_names

log = logging.getLogger(__name__)

MOST_READERS = 16
_PULL_S = 0.05
_PULL_PACKETS = 64


@dataclass(frozen=True, slots=True)
class LiveSample:
    """One packet, copied out of the bus.

    tensor: as captured, in its own dtype; [..., D], or [n, D] where padding was left out.
    timestamp_ns: CLOCK_MONOTONIC of the capture. sampling_rate: each sample stands for 1 / rate.
    text: its rows are the tokens, one by one, of the sample of `tokens` with the same source, host_step,
    microbatch and text; 0: it is not known that they are tokens.
    """

    hook: str
    tensor: torch.Tensor
    kind: Kind
    source: int
    seq: int
    host_step: int
    weights_version: int
    timestamp_ns: int
    sampling_rate: float
    microbatch: int = 0
    text: int = NO_TEXT


def subscribe(
    run: Run | str | os.PathLike[str], hooks: str | Sequence[str] = "*", *, keep: int = 256
) -> LiveSubscription:
    """Read a live run's samples: ``for sample in subscribe("runs/..."): ...`` until the run ends.

    run: as `open_run` takes it, or what it gave.
    hooks: globs over hook names; `tokens` is the stream of token ids of a text model.
    keep: samples that wait for a slow reader; older ones are skipped and counted.

    Raises:
        LiveRunError: the run has ended, or belongs to another user; ReadingError: no such hook, or
        too many readers; BusError: the bus has no room for another group.
    """
    folder = run.path if isinstance(run, Run) else open_run(run).path
    return LiveSubscription(folder, [hooks] if isinstance(hooks, str) else list(hooks), keep)


class LiveSubscription:
    """Iterate it, or `get` single samples; close it, or use it as a context manager."""

    def __init__(self, run_dir: Path, hooks: Sequence[str], keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep {keep} must be at least 1")
        self._live = LiveRun.attach(run_dir)
        self._globs = hooks
        self.skipped = 0
        """Samples that a slow reader did not get to see."""
        self._kept: deque[LiveSample] = deque(maxlen=keep)
        self._news = threading.Condition()
        self._over = False
        self._stop = False
        self._seat = -1
        self._thread: threading.Thread | None = None
        try:
            streams = (*self._live.hooks, *self._live.document.get("side_streams", ()))
            if not any(matches(name, glob) for name in streams for glob in hooks):
                raise ReadingError(f"{run_dir}: {list(hooks)} match none of {list(streams)}")
            self._seat, group = _take_seat(run_dir)
            self._spec = GroupSpec(group, Delivery.AT_MOST_ONCE)
            self._subscription = self._join()
        except BaseException:
            self.close()
            raise
        self._thread = threading.Thread(target=self._read, name="asys-reader", daemon=True)
        self._thread.start()

    def get(self, timeout_s: float | None = None) -> LiveSample | None:
        """The oldest sample that is waiting; None after `timeout_s` or when the run has ended."""
        with self._news:
            self._news.wait_for(lambda: self._kept or self._over, timeout_s)
            return self._kept.popleft() if self._kept else None

    @property
    def ended(self) -> bool:
        """The run is over and every kept sample was taken."""
        return self._over and not self._kept

    @property
    def account(self) -> BusAccount:
        """The bus's counters, by group."""
        return self._live.client.account()

    def __iter__(self) -> Iterator[LiveSample]:
        while (sample := self.get()) is not None:
            yield sample

    def close(self) -> None:
        """Leave the bus. Idempotent."""
        self._stop = True
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._subscription.close()
        self._live.close()
        if self._seat >= 0:
            os.close(self._seat)
            self._seat = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _join(self) -> BusSubscription:
        return self._live.client.subscribe(self._spec.name, f"reader-{os.getpid()}", self._spec)

    def _read(self) -> None:
        decode = Decoder(self._live.client.name_of)
        try:
            origin_id = interned_names(self._live.client).get(ORIGIN)
            while not self._stop:
                self._read_until_the_end(decode, origin_id)
                time.sleep(_PULL_S)  # for the host to say that this was the end of the run
                if self._stop or not self._live.goes_on:
                    return
                # This process stood still while the bus was full, and was let go of.
                self._subscription.close()
                self._subscription = self._join()
        except (BusError, OSError) as error:
            log.warning("the subscription ends: %s", error)
        finally:
            with self._news:
                self._over = True
                self._news.notify_all()

    def _read_until_the_end(self, decode: Decoder, origin_id: int | None) -> None:
        while not self._stop and not self._subscription.ended:
            lease = self._subscription.pull_batch(_PULL_PACKETS, _PULL_S)
            if origin_id is not None:
                lease = OriginLease(lease, origin_id)
            with lease:
                count = len(lease)
                samples = [sample for p in lease if (sample := self._sample(p, decode))]
                delivered = lease.release()
            if delivered == count:
                self._keep(samples)
            else:  # taken away while this process stood still: what was read may be torn
                self.skipped += len(samples)

    def _sample(self, packet: ActivationPacket, decode: Decoder) -> LiveSample | None:
        hook = self._live.client.name_of(packet.hook_id)
        if packet.is_constant or not any(matches(hook, glob) for glob in self._globs):
            return None
        try:
            tensor = decode(packet).clone()
        except PacketError as error:
            log.warning("a packet of %s is left out: %s", hook, str(error))  # not its frames: views
            return None
        return LiveSample(
            hook,
            tensor,
            packet.kind,
            packet.source,
            packet.seq,
            packet.host_step,
            packet.weights_version,
            packet.timestamp_ns,
            packet.sampling_rate,
            packet.microbatch,
            packet.text,
        )

    def _keep(self, samples: list[LiveSample]) -> None:
        if not samples:
            return
        with self._news:
            room = (self._kept.maxlen or 0) - len(self._kept)
            self.skipped += max(0, len(samples) - room)
            self._kept.extend(samples)
            self._news.notify_all()


def _take_seat(run_dir: Path) -> tuple[int, str]:
    """A group name that no other reader of this run uses now, and the lock that says so.

    A bus keeps the few group names that it has ever seen, so readers use them again.

    Raises:
        ReadingError: all are taken.
    """
    (run_dir / READERS_DIR).mkdir(mode=0o700, exist_ok=True)
    try:
        folder = real_folder(run_dir, READERS_DIR)
    except OSError as error:
        raise ReadingError(f"{run_dir}: no reader can attach: {error}") from error
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    for number in range(MOST_READERS):
        name = f"reader-{number}"
        seat = os.open(folder / name, flags, 0o600)
        try:
            fcntl.flock(seat, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(seat)
            continue
        return seat, name
    raise ReadingError(f"{run_dir}: {MOST_READERS} readers are attached already")
