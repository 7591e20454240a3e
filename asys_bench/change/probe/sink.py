"""`ProbeWorker`: linear probes from the activations of a hook, or the features of an SAE, to labels.

Rows wait for their labels (`change.label_join`), then go into one of two windows of recent rows, of blocks
that are trained on or of blocks that are held out (`hook`). Every so often a thread of its own fits a probe
for each label to the one and scores it on the other (`fits`); gauges and `<run>/probes/` say what it is
worth.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.change.label_join import CallKey, Joined, LabelJoin
from asys_bench.change.probe.fits import Fits
from asys_bench.change.probe.gate import may_be_in
from asys_bench.change.probe.hook import Payload, ProbedHook
from asys_bench.change.probe.options import ProbeOptions
from asys_bench.config.sections.hooks import LabelsConfig
from asys_bench.contracts.bus import Delivery, Lease
from asys_bench.contracts.coin import coin_key, toss, tosses
from asys_bench.contracts.labels import (
    CALL_COLUMNS,
    LABEL_TEXT,
    calls_of,
    is_of_several,
    label_names,
    text_code,
    text_of,
)
from asys_bench.contracts.names import LABELS, SIDE_STREAMS
from asys_bench.contracts.packet import ActivationPacket, PacketError
from asys_bench.contracts.sink import (
    BaseSink,
    SinkContext,
    SinkOptions,
    SinkPlugin,
    patience_s,
    worth_a_pull,
)

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]


class ProbeWorker(BaseSink):
    """See the module docstring."""

    def __init__(self, options: ProbeOptions) -> None:
        self._options = options
        self._hooks: dict[int, ProbedHook | None] = {}
        self._names: dict[int, tuple[tuple[str, ...] | None, bool]] = {}
        self._labels_id = -1
        self._texts: dict[int, str] = {}
        self._limit = 1.0
        """Of all hooks the widest: labels of calls beyond it are left unread."""

    def open(self, context: SinkContext) -> None:
        self._context = context
        torch.set_num_threads(1)
        self.linger_s = patience_s(context.config)
        self._join: LabelJoin[Payload] = LabelJoin(
            int(context.config.get("labels", {}).get("horizon", LabelsConfig().horizon))
        )
        self._coin = coin_key(context.seed, 0, "probe")
        self._draw = np.random.default_rng([context.seed, context.attempt, context.incarnation])
        self._unjoined_rows = context.slot.counter("probe_unjoined_rows")
        self._unjoined_labels = context.slot.counter("probe_unjoined_labels")
        self._before = self._unjoined_rows.value, self._unjoined_labels.value
        self._fits = Fits(self._options, context, self._unjoined, self._texts)

    def consume(self, lease: Lease) -> None:
        self.min_packets = worth_a_pull(lease, self._context.config)
        self._limit = max((hook.gate.limit for hook in self._known()), default=1.0)
        for packet in self._wanted(lease):
            try:
                if packet.hook_id == self._labels_id:
                    self._take_labels(packet)
                else:
                    hook = self._hooks[packet.hook_id]
                    if hook is not None:
                        self._take_rows(packet, hook)
            except PacketError as error:
                log.warning("a packet is skipped: %s", str(error))
        unjoined_rows, unjoined_labels = self._before
        self._unjoined_rows.set(unjoined_rows + self._join.unjoined_rows)
        self._unjoined_labels.set(unjoined_labels + self._join.unjoined_labels)

    def _wanted(self, lease: Lease) -> list[ActivationPacket]:
        """Packets that are to be read; the others are counted. Of most it is their call that decides, for all
        of them at once."""
        packets = [one for one in lease if not one.is_constant]  # no part of the training
        for packet in packets:
            if packet.hook_id not in self._hooks and packet.hook_id != self._labels_id:
                try:
                    self._meet(packet)
                except PacketError as error:
                    log.warning("a packet is skipped: %s", str(error))
        if not packets:
            return []
        tags = [(one.host_step, one.weights_version, one.microbatch, one.source) for one in packets]
        hook_N = np.array([one.hook_id for one in packets])
        call_N = tosses(self._coin, *np.array(tags, np.uint64).T)
        wanted_N = may_be_in(call_N, self._limit) & (hook_N == self._labels_id)
        for at in np.flatnonzero((hook_N == self._labels_id) & ~wanted_N).tolist():
            wanted_N[at] = self._is_wanted_label(packets[at])
        for hook_id in np.unique(hook_N[hook_N != self._labels_id]).tolist():
            hook = self._hooks.get(hook_id)
            if hook is None:
                continue
            own = np.flatnonzero(hook_N == hook_id)
            rows_M = np.array([_rows_of(packets[at]) for at in own.tolist()])
            wanted_N[own] = hook.came(rows_M, packets[own[-1]].host_step, call_N[own])
        return [packets[at] for at in np.flatnonzero(wanted_N).tolist()]

    def idle(self) -> None:
        self._fits.idle(self._known())

    def close(self) -> None:
        """Everything that waits goes into its window; each hook is fitted once more."""
        self._fits.wait()
        for done in self._join.flush():
            self._take(done)
        for hook in self._known():
            self._fits.last(hook)
            self._context.heartbeat()
        self._fits.close()

    def _unjoined(self) -> dict[str, float]:
        return {
            "unjoined_rows": self._unjoined_rows.value,
            "unjoined_labels": self._unjoined_labels.value,
        }

    def _known(self) -> list[ProbedHook]:
        return [hook for hook in self._hooks.values() if hook is not None]

    # ---- what comes

    def _meet(self, packet: ActivationPacket) -> None:
        name = self._context.name_of(packet.hook_id)
        if name == LABELS:
            self._labels_id = packet.hook_id
            return
        hook = None
        tensor = self._context.decode(packet) if name not in SIDE_STREAMS else None
        if tensor is not None and tensor.ndim and tensor.numel() and not tensor.is_complex():
            hook = ProbedHook(name, self._options, self._context, tensor.shape[-1])
            self._hooks[packet.hook_id] = hook
            self._limit = hook.gate.limit
        elif tensor is None:
            self._hooks[packet.hook_id] = None
        else:  # the next packet may have rows
            self._hooks.pop(packet.hook_id, None)
            raise PacketError(f"{name}: a tensor of shape {tuple(tensor.shape)} has no rows")

    def _take_rows(self, packet: ActivationPacket, hook: ProbedHook) -> None:
        rows = _rows_of(packet)
        key = _key(packet)
        draw_N = hook.gate.draws(self._number(key), rows, self._draw)
        if draw_N is None:
            return
        tensor = self._context.decode(packet)
        if not tensor.ndim or tensor.shape[-1] != hook.width or tensor.is_complex():
            raise PacketError(f"{hook.name}: rows of {tuple(tensor.shape)}, not of {hook.width}")
        x_ND = tensor.reshape(-1, hook.width)
        if not len(x_ND):
            return
        places = self._context.rows(packet)
        place_N = np.arange(len(x_ND)) if places is None else places
        if len(draw_N) != len(x_ND):  # what is encoded has another shape
            draw_N = hook.gate.draws(self._number(key), len(x_ND), self._draw)
            if draw_N is None:
                return
        in_N = np.flatnonzero(draw_N < hook.gate.limit)
        if not len(in_N):
            return
        whole = len(in_N) == len(x_ND)
        x_ND = x_ND if whole else x_ND[torch.from_numpy(in_N)]
        x_ND = x_ND.to(torch.float32, copy=True)
        dims = self._context.grid(packet) or ((1,) if tensor.ndim == 1 else None)
        payload = Payload(hook, x_ND, draw_N[in_N] / hook.gate.pace, dims, packet.text)
        nbytes = 4 * x_ND.numel()
        for done in self._join.offer_rows(key, dims, packet.text, place_N[in_N], payload, nbytes):
            self._take(done)

    def _number(self, key: CallKey) -> float:
        """Of the call, as `gate` says."""
        return toss(self._coin, key.host_step, key.weights_version, key.microbatch, key.source)

    def _wants_labels_of(self, key: CallKey) -> bool:
        """Rows of the call wait for them, or may still come."""
        return bool(may_be_in(self._number(key), self._limit)) or self._join.has_rows(key)

    def _is_wanted_label(self, packet: ActivationPacket) -> bool:
        """Of a call of which no rows will come: rows that wait, or it is of more than that call."""
        known = self._names.get(packet.encoding_id)
        if known is None or known[0] == () or (known[0] and known[1]):
            return True
        return known[0] is not None and self._join.has_rows(_key(packet))

    def _take_labels(self, packet: ActivationPacket) -> None:
        if packet.encoding_id not in self._names:
            encoding = self._context.name_of(packet.encoding_id)
            found = () if encoding == LABEL_TEXT else label_names(encoding)
            several = found is not None and is_of_several(encoding)
            self._names[packet.encoding_id] = found, several
        names, of_several = self._names[packet.encoding_id]
        key = _key(packet)
        if names is None:
            return
        tensor = self._context.decode(packet)
        if not names:
            text = text_of(tensor.numpy().tobytes())
            if len(self._texts) < 1 << 16:
                self._texts[text_code(text)] = text
            return
        width = len(names) + (CALL_COLUMNS if of_several else 0)
        if tensor.ndim < 1 + of_several or tensor.shape[-1] != width:
            raise PacketError(f"{len(names)} labels in {tuple(tensor.shape)}")
        values = tensor.double().numpy().copy()  # float64 would be a view
        if of_several:
            for tags, of_call in calls_of(key[1:], values):
                call = CallKey(key.source, *tags)
                if self._wants_labels_of(call):
                    self._offer_labels(call, names, of_call, packet.text)
        else:
            self._offer_labels(key, names, values, packet.text)

    def _offer_labels(
        self, key: CallKey, names: tuple[str, ...], values: Floats, text: int
    ) -> None:
        """values: [*rows, K]."""
        dims, values_NK = values.shape[:-1], values.reshape(-1, len(names))
        for done in self._join.offer_labels(key, names, dims, text, values_NK):
            self._take(done)

    def _take(self, done: Joined[Payload]) -> None:
        if done.labels:
            done.payload.hook.add(done)


def _rows_of(packet: ActivationPacket) -> int:
    return math.prod(packet.shape[:-1]) if packet.shape else 0


def _key(packet: ActivationPacket) -> CallKey:
    return CallKey(packet.source, packet.host_step, packet.weights_version, packet.microbatch)


def _build(options: SinkOptions) -> BaseSink:
    assert isinstance(options, ProbeOptions)
    return ProbeWorker(options)


plugin = SinkPlugin(
    name="probe",
    summary="linear probes from activations or SAE features to labels, with held-out AUC and R2",
    options=ProbeOptions,
    build=_build,
    default_delivery=Delivery.AT_MOST_ONCE,
    preload=("asys_bench.sae", "scipy.optimize", "scipy.stats"),
    partition=True,
    takes_labels=True,
)
