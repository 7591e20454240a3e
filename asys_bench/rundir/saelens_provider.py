"""Our rows for other people's trainers: from the archive, or live from the bus.

`data_provider` makes of a dataset of shuffled batches what SAELens's `SAETrainer` takes, an iterator of
tensors float32[batch_rows, D]:

    archive = open_run("runs/<run>").archive
    rows = archive.torch("policy.mlp", batch_rows=4096, shuffle_window=32_768, drop_last=True)
    SAETrainer(cfg, sae, data_provider(rows, epochs=None)).fit()

    rows = LiveRows.of_run("runs/<run>", "policy.mlp", batch_rows=4096)
    SAETrainer(cfg, sae, data_provider(rows)).fit()

Rows are served once an epoch, in random order over a window of them. They are not weighted by their
sampling rate, because those trainers know no weights.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Self

import torch
from torch.utils.data import IterableDataset, get_worker_info

from asys_bench.contracts.bus import BusClient, BusSubscription, Delivery, GroupSpec, Lease
from asys_bench.rundir.live_run import LiveRun
from asys_bench.rundir.row_dataset import RowDataset
from asys_bench.sinks.decoding import Decoder

MAX_PACKETS = 1024
MAX_PULLS = 16
"""Leases taken in a row before a batch is served, however much more there is."""
LINGER_S = 0.05


class RowsEndedError(RuntimeError):
    """There are no more rows; says how many there were and what to change."""


class _Pool:
    """Rows waiting to be served, each exactly once, in random order.

    A batch leaves once `mix_rows` are there. At most `most_rows` wait: beyond that new rows take the places
    of random old ones.
    """

    def __init__(self, batch_rows: int, mix_rows: int, seed: int, most_rows: int) -> None:
        if not 1 <= batch_rows <= mix_rows:
            raise ValueError(f"batch_rows {batch_rows} must be 1..buffer_rows {mix_rows}")
        self._batch, self._mix, self._most = batch_rows, mix_rows, most_rows
        self._generator = torch.Generator().manual_seed(seed)
        self._rows_CD = torch.zeros(0, 0)
        self._count = 0

    def add(self, rows_ND: torch.Tensor) -> None:
        """Copy rows in."""
        room = max(0, self._most - self._count)
        fresh_ND, late_ND = rows_ND[:room], rows_ND[room:]
        end = self._count + len(fresh_ND)
        if end > len(self._rows_CD):
            grown_CD = torch.empty(max(end, 2 * len(self._rows_CD)), rows_ND.shape[1])
            if self._count:
                grown_CD[: self._count] = self._rows_CD[: self._count]
            self._rows_CD = grown_CD
        self._rows_CD[self._count : end] = fresh_ND
        self._count = end
        if len(late_ND):
            late_ND = late_ND[-self._count :]
            places = torch.randperm(self._count, generator=self._generator)[: len(late_ND)]
            self._rows_CD[places] = late_ND

    def take(self, *, ending: bool = False) -> torch.Tensor | None:
        """The next batch, if there is one now; before `mix_rows` are there only when `ending`."""
        if self._count < (self._batch if ending else self._mix):
            return None
        chosen = torch.randperm(self._count, generator=self._generator)[: self._batch]
        batch_BD = self._rows_CD[chosen]
        kept = self._count - self._batch
        stays = torch.ones(self._batch, dtype=torch.bool)
        stays[chosen[chosen >= kept] - kept] = False
        # Rows past the new end move into the holes before it.
        self._rows_CD[chosen[chosen < kept]] = self._rows_CD[kept : self._count][stays]
        self._count = kept
        return batch_BD

    def rest(self) -> Iterator[torch.Tensor]:
        """What is left when no more rows come; less than a batch stays behind."""
        while (batch_BD := self.take(ending=True)) is not None:
            yield batch_BD


class LiveRows(IterableDataset[torch.Tensor]):
    """Shuffled batches of one hook's rows as the host makes them, until the run ends.

    It joins the bus as a consumer group of its own when iteration starts. Before each batch it
    takes everything that is ready; what a slow trainer does not get to is given up, so that it
    never holds the bus. It stays in this process (no `DataLoader` workers).

    patience_s: give up when no row has come for so long.
    """

    def __init__(
        self,
        client: BusClient,
        hook: str,
        batch_rows: int,
        *,
        buffer_rows: int = 32_768,
        group: str = "saelens",
        patience_s: float = 60.0,
        seed: int = 0,
    ) -> None:
        self._client, self._hook, self._group = client, hook, group
        self._batch_rows, self._buffer_rows = batch_rows, max(batch_rows, buffer_rows)
        self._patience_s, self._seed = patience_s, seed
        self._decode = Decoder(client.name_of)
        self._run: LiveRun | None = None

    @classmethod
    def of_run(
        cls, run_dir: Path | str, hook: str, batch_rows: int, *, buffer_rows: int = 32_768
    ) -> Self:
        """The rows of a run that another process of this user is doing; `close` them afterwards.

        Raises:
            LiveRunError: it has ended, or cannot be attached to; says why.
        """
        run = LiveRun.attach(run_dir)
        rows = cls(run.client, hook, batch_rows, buffer_rows=buffer_rows)
        rows._run = run
        return rows

    def close(self) -> None:
        """Let go of the run that `of_run` attached to. Idempotent."""
        if self._run is not None:
            self._run.close()
            self._run = None

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Raises RowsEndedError when nothing comes; BusError when the bus takes no more groups."""
        if get_worker_info() is not None:
            raise ValueError("live rows cannot be read in a DataLoader's worker; use num_workers=0")
        pool = _Pool(
            self._batch_rows,
            max(self._batch_rows, self._buffer_rows // 2),
            self._seed,
            self._buffer_rows,
        )
        spec = GroupSpec(self._group, Delivery.AT_MOST_ONCE, (self._hook,))
        member = f"{self._group}-{os.getpid()}"
        with self._client.subscribe(self._group, member, spec) as subscription:
            heard_at, wait_s = time.monotonic(), LINGER_S
            while not subscription.ended:
                taken = 0
                for _ in range(MAX_PULLS):
                    packets, rows = self._pull(subscription, wait_s, self._buffer_rows - taken)
                    if not packets:
                        break
                    wait_s = 0.0
                    if rows:
                        heard_at = time.monotonic()
                        pool.add(torch.cat(rows))
                        taken += sum(map(len, rows))
                batch_BD = pool.take()
                wait_s = LINGER_S if batch_BD is None else 0.0
                if batch_BD is not None:
                    yield batch_BD
                    heard_at = time.monotonic()  # the trainer's step is no silence of the host's
                elif time.monotonic() - heard_at > self._patience_s:
                    raise RowsEndedError(
                        f"no row of {self._hook!r} came in {self._patience_s:g} s; is it hooked, "
                        "and does the host run?"
                    )
        yield from pool.rest()

    def _pull(
        self, subscription: BusSubscription, wait_s: float, most_rows: int
    ) -> tuple[int, list[torch.Tensor]]:
        """(packets taken off the bus, rows of as many of them as `most_rows` lets in)."""
        with subscription.pull_batch(MAX_PACKETS, wait_s) as lease:
            return len(lease), self._copied(lease, most_rows)

    def _copied(self, lease: Lease, most_rows: int) -> list[torch.Tensor]:
        """Rows of their own memory; views of the lease end with this call."""
        found: list[torch.Tensor] = []
        for packet in lease:
            if most_rows <= 0:
                break
            if self._client.name_of(packet.hook_id) != self._hook or packet.is_constant:
                continue
            rows_ND = self._decode(packet)
            if rows_ND.ndim and rows_ND.numel():
                flat_ND = rows_ND.reshape(-1, rows_ND.shape[-1])
                found.append(flat_ND.to("cpu", torch.float32, copy=True))
                most_rows -= len(flat_ND)
        return found


def data_provider(
    rows: Iterable[torch.Tensor], epochs: int | None = 1
) -> Generator[torch.Tensor, None, None]:
    """An iterator for a trainer that asks for as many batches as it was told to train on.

    rows: `LiveRows`, or what `ArchiveView.torch` gives; epochs: times through the latter, each in an order of
        its own. None: without end.

    `close` it when the training has ended: until then `LiveRows` stays a consumer of the bus.

    Raises (from `next`):
        RowsEndedError: the rows are used up before that, instead of a StopIteration in its middle.
    """
    served = total = 0
    for epoch in range(epochs) if epochs is not None else itertools.count():
        if isinstance(rows, RowDataset):
            rows.set_epoch(epoch)
        before = served
        for batch_BD in rows:
            served, total = served + 1, total + len(batch_BD)
            yield batch_BD.to(torch.float32)
        if served == before:
            break  # an endless loop over nothing would never come back
    raise RowsEndedError(
        f"the rows ended after {served} batches ({total} rows); train on fewer, or raise `epochs`"
    )
