"""The sink `reservoir`: a sample of each hook's rows over the whole run (`windows`), for questions about
old moments. An archive with a budget deletes its oldest shards; this one keeps some of every moment.

Most packets are not decoded: whether a row stays is known from its moment. A worker that is killed
loses what came since the last `FLUSH_S` seconds, and goes on with its files.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from asys_bench.change.reservoir.rows import (
    ABOUT,
    NO_SEQUENCE,
    ReservoirRows,
    kept_values,
    moment_hash,
    picked,
    ranks,
)
from asys_bench.change.reservoir.windows import (
    CONSTANT_ROWS,
    WindowedSample,
    reservoir_folder,
    rows_per_window,
)
from asys_bench.contracts.bus import Delivery, Lease
from asys_bench.contracts.packet import NO_TEXT, ActivationPacket, PacketError
from asys_bench.contracts.sink import (
    BaseSink,
    SinkContext,
    SinkOptions,
    SinkPlugin,
    patience_s,
    worth_a_pull,
)
from asys_bench.contracts.stats import Counter, Gauge
from asys_bench.system.allocator import keep_freed_memory
from asys_bench.system.files.atomic import Fsync

log = logging.getLogger(__name__)
FLUSH_S = 10.0
"""Between two writes of the newest window: at most so much of a run is lost to a SIGKILL."""
MOST_WAITING = 64 << 20
"""Bytes of changed windows in memory, above which they are written earlier."""
_IDENTITY = 0
"""The encoding of packets whose payload is the tensor."""
_OF_PACKETS = ("host_step", "weights_version", "source", "shard", "seq", "microbatch", "text")
_told_of = attrgetter(*_OF_PACKETS, "call_index")
ROW_COLUMN_BYTES = 64
"""Of a row's columns besides its values."""


class ReservoirOptions(SinkOptions):
    """`sinks.<name>.options` of a reservoir."""

    max_mib: float = Field(
        256,
        gt=0,
        le=256,
        description="Most MiB of rows of a hook, on the disk and, while windows are joined, in memory, "
        "(0, 256]. They are 256 windows of up to 512 rows, as float16.",
    )


@dataclass
class _Hook:
    """One hook's sample, made when its first rows are decoded."""

    name: str
    rows: Counter
    kept: Gauge
    refused: Counter
    samples: dict[bool, WindowedSample] = field(default_factory=dict)
    """By whether they are of the constant batch."""
    failures: int = 0


class ReservoirWorker(BaseSink):
    """See the module docstring."""

    def __init__(self, options: ReservoirOptions) -> None:
        self._options = options
        self._hooks: dict[int, _Hook] = {}
        self._flushed_at = time.monotonic()

    def open(self, context: SinkContext) -> None:
        self._context = context
        self._sync = context.fsync is Fsync.ALWAYS
        self.linger_s = patience_s(context.config)  # a lease of one takes as long as one of many
        keep_freed_memory()

    def consume(self, lease: Lease) -> None:
        self.min_packets = worth_a_pull(lease, self._context.config)
        by_hook: dict[tuple[int, bool], list[ActivationPacket]] = defaultdict(list)
        for packet in lease:
            by_hook[packet.hook_id, packet.is_constant].append(packet)
        for (hook_id, constant), packets in by_hook.items():
            hook = self._hooks.get(hook_id)
            if hook is None:
                hook = self._hooks[hook_id] = self._hook(hook_id)
            try:
                self._take(hook, packets, constant)
            except (PacketError, ValueError, OverflowError) as error:
                hook.refused.add(len(packets))
                self._say(hook, error)

    def _hook(self, hook_id: int) -> _Hook:
        name, slot = self._context.name_of(hook_id), self._context.slot
        return _Hook(
            name,
            rows=slot.counter("reservoir_rows", hook=name),
            kept=slot.gauge("reservoir_kept_rows", hook=name),
            refused=slot.counter("reservoir_refused_packets", hook=name),
        )

    def _say(self, hook: _Hook, error: Exception) -> None:
        hook.failures += 1
        if hook.failures == 1:
            log.error("%s: not kept (further failures are only counted): %s", hook.name, str(error))

    def _take(self, hook: _Hook, packets: list[ActivationPacket], constant: bool) -> None:
        packets = [one for one in packets if one.shape and one.dtype != torch.complex64]
        sizes_P = np.array([math.prod(one.shape[:-1]) for one in packets])
        if not sizes_P.sum():
            return
        if not constant:
            hook.rows.add(int(sizes_P.sum()))
        sample = hook.samples.get(constant)
        if sample is None:
            sample = hook.samples[constant] = self._sample(hook, packets[0], constant)
        weight_P = np.array([1.0 / one.sampling_rate for one in packets])
        told_P = self._told(packets, weight_P)
        rank_N = self._ranks(
            told_P, sizes_P, np.ones(len(packets)) if constant else weight_P, constant
        )
        wanted_N = rank_N < np.repeat(sample.limits(told_P["host_step"]), sizes_P)
        sample.extend(self._rows(packets, told_P, sizes_P, wanted_N, rank_N))
        self._context.heartbeat()

    def _told(
        self, packets: list[ActivationPacket], weight_P: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.void]:
        """What each packet says of its rows, `ABOUT`[P]."""
        told_P = np.empty(len(packets), ABOUT)
        numbers_PC = np.array(list(map(_told_of, packets)), np.int64)
        for name, number_P in zip((*_OF_PACKETS, "call"), numbers_PC.T, strict=True):
            told_P[name] = number_P
        told_P["weight"], told_P["attempt"] = weight_P, self._context.attempt
        return told_P

    def _ranks(
        self,
        told_P: npt.NDArray[np.void],
        sizes_P: npt.NDArray[np.int64],
        weight_P: npt.NDArray[np.float64],
        constant: bool,
    ) -> npt.NDArray[np.float64]:
        """Of every row. Of the constant batch by its place alone: the same rows at each moment."""
        starts_P = np.cumsum(sizes_P) - sizes_P
        row_N = np.arange(int(sizes_P.sum())) - np.repeat(starts_P, sizes_P)
        names = ("source", "call") if constant else (
            "source", "host_step", "weights_version", "microbatch", "call")  # fmt: skip
        seed_P = np.full(len(told_P), self._context.seed & (1 << 63) - 1, np.uint64)
        attempt_P = np.full(len(told_P), 0 if constant else self._context.attempt, np.uint64)
        moment_P = moment_hash(seed_P, attempt_P, *(told_P[name] for name in names))
        return ranks(np.repeat(moment_P, sizes_P), row_N, np.repeat(weight_P, sizes_P))

    def _rows(
        self,
        packets: list[ActivationPacket],
        told_P: npt.NDArray[np.void],
        sizes_P: npt.NDArray[np.int64],
        wanted_N: npt.NDArray[np.bool_],
        rank_N: npt.NDArray[np.float64],
    ) -> ReservoirRows:
        """The wanted rows of some packets that decode to finite numbers."""
        wanted = np.flatnonzero(wanted_N)
        ends_P = np.cumsum(sizes_P)
        owner = np.searchsorted(ends_P, wanted, side="right")
        row = wanted - (ends_P - sizes_P)[owner]
        owners, owner = np.unique(owner, return_inverse=True)
        packets = [packets[index] for index in owners.tolist()]
        if not packets:
            return _NO_ROWS
        about = picked(told_P, owners[owner])
        about["rank"] = rank_N[wanted]
        values_KD = _picked_from_payloads(packets, owner, row)
        if values_KD is not None:
            about["row"], about["sequence"] = row, NO_SEQUENCE
        else:
            values_KD, about = self._picked_one_by_one(packets, owner, row, about)
        rows = ReservoirRows(kept_values(values_KD), about)
        if values_KD.is_floating_point() and not torch.isfinite(values_KD.sum()):
            rows = rows[np.flatnonzero(torch.isfinite(values_KD).all(1).numpy())]
        return rows

    def _picked_one_by_one(
        self,
        packets: list[ActivationPacket],
        owner_K: npt.NDArray[np.int64],
        row_K: npt.NDArray[np.int64],
        about_K: npt.NDArray[np.void],
    ) -> tuple[torch.Tensor, npt.NDArray[np.void]]:
        """(values, `ABOUT`) of these rows. owner: the packet of each, ascending; about: what is known of each
        without decoding."""
        values, places, sequences, there = [], [], [], np.ones(len(row_K), bool)
        for index, packet in enumerate(packets):
            own = slice(*np.searchsorted(owner_K, [index, index + 1]).tolist())
            values_KD, place_K, sequence_K = self._decoded(packet, row_K[own])
            values.append(values_KD)
            places.append(place_K)
            sequences.append(sequence_K)
            there[own][len(values_KD) :] = False  # padding, left out by the decoder
        about = about_K[there]
        each = np.array([self._context.rows_each(one) for one in packets])
        about["text"][each[owner_K[there]] > 1] = NO_TEXT  # rows are heads, and no tokens
        about["row"], about["sequence"] = np.concatenate(places), np.concatenate(sequences)
        return torch.cat(values), about

    def _decoded(
        self, packet: ActivationPacket, row_K: npt.NDArray[np.int64]
    ) -> tuple[torch.Tensor, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(values of these rows of a packet, which row of the captured tensor each is, which sequence
        it is of)."""
        context = self._context
        tensor = context.decode(packet)
        rows_ND = tensor.reshape(-1, tensor.shape[-1])
        row_K = row_K[row_K < len(rows_ND)]
        place, grid = context.rows(packet), context.grid(packet)
        place_K = row_K if place is None or len(place) != len(rows_ND) else place[row_K]
        each = context.rows_each(packet)
        if each > 1:  # heads: a sequence is one of tokens
            place_of_token_K, grid = place_K // each, grid[:-1]
        else:
            place_of_token_K = place_K
        unknown = 0 if packet.text else NO_SEQUENCE  # a text's packet is one block at least
        sequence_K = np.full(len(row_K), unknown)
        if len(grid) >= 2:
            sequence_K = place_of_token_K // max(1, grid[-1])
        return rows_ND[torch.from_numpy(row_K)], place_K, sequence_K

    def _sample(self, hook: _Hook, packet: ActivationPacket, constant: bool) -> WindowedSample:
        context = self._context
        item = 2 if packet.dtype.is_floating_point else 8
        most = int(self._options.max_mib * (1 << 20))
        share = most // 4 if constant else most * 3 // 4
        each = rows_per_window(item * max(1, packet.shape[-1]) + ROW_COLUMN_BYTES, share)
        if constant:
            each = min(CONSTANT_ROWS, each)
        folder = reservoir_folder(context.run_dir, hook.name)
        return WindowedSample(each, folder, context.run_dir, constant=constant)

    def idle(self) -> None:
        now = time.monotonic()
        samples = [one for hook in self._hooks.values() for one in hook.samples.values()]
        if (
            now - self._flushed_at > FLUSH_S
            or sum(s.unwritten_bytes for s in samples) > MOST_WAITING
        ):
            self._flushed_at = now
            self._flush()

    def _flush(self) -> None:
        for hook in self._hooks.values():
            for sample in hook.samples.values():
                try:
                    sample.flush(self._sync)
                except OSError as error:
                    self._say(hook, error)
                self._context.heartbeat()
            usual = hook.samples.get(False)
            hook.kept.set(len(usual) * usual.rows_each if usual is not None else 0)

    def close(self) -> None:
        """Write what has changed."""
        self._flush()


def _picked_from_payloads(
    packets: list[ActivationPacket],
    owner_K: npt.NDArray[np.int64],
    row_K: npt.NDArray[np.int64],
) -> torch.Tensor | None:
    """Rows of packets that are matrices of one type and width without an encoding, copied row by row and
    without a tensor for each packet. None: some are not. owner: the packet of each row, ascending."""
    first = packets[0]
    width = first.shape[-1]
    row_bytes = width * first.dtype.itemsize
    for one in packets:
        if (
            (one.encoding_id, one.text, one.dtype) != (_IDENTITY, NO_TEXT, first.dtype)
            or len(one.shape) != 2
            or one.shape[1] != width
            or one.payload.nbytes != one.shape[0] * row_bytes
        ):
            return None
    one_row = np.dtype((np.void, row_bytes))
    picked_K, begin = np.empty(len(row_K), one_row), 0
    for one, end in zip(packets, np.cumsum(np.bincount(owner_K)).tolist(), strict=True):
        rows_N = np.frombuffer(one.payload, one_row)
        rows_N.take(row_K[begin:end], out=picked_K[begin:end], mode="clip")  # "raise" copies twice
        begin = end
    return torch.from_numpy(picked_K.view(np.uint8)).view(first.dtype).reshape(-1, width)


_NO_ROWS = ReservoirRows(torch.zeros(0, 1), np.empty(0, ABOUT))


def _build(options: SinkOptions) -> BaseSink:
    assert isinstance(options, ReservoirOptions)
    return ReservoirWorker(options)


plugin = SinkPlugin(
    name="reservoir",
    summary="keeps a sample of the rows of the whole run, for `asys-run timeline` and `diff`",
    options=ReservoirOptions,
    build=_build,
    default_delivery=Delivery.AT_MOST_ONCE,
    preload=("asys_bench.change.reservoir.windows",),
    partition=True,
)
