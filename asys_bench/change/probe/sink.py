"""`ProbeWorker`: linear probes from the activations of a hook, or the features of an SAE, to labels.

Rows wait for their labels (`change.label_join`), then go into one of two windows of recent rows, of blocks
that are trained on or of blocks that are held out (`blocks`, `window`). Every so often a thread of its own
fits a probe for each label to the one and scores it on the other; gauges and `<run>/probes/` say what it is
worth. Fits take at most a fortieth of the time that passes: the trainer and the host come first.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BeforeValidator, Field

from asys_bench.change.label_join import CallKey, Joined, LabelJoin
from asys_bench.change.probe import probes
from asys_bench.change.probe.blocks import BLOCK_LABELS, BlockRule, Ids, is_held_out
from asys_bench.change.probe.files import write_probes
from asys_bench.change.probe.fit import Dense, Features, Sparse
from asys_bench.change.probe.gate import Gate, may_be_in
from asys_bench.change.probe.probes import Probe, fitted
from asys_bench.change.probe.targets import Kind, Target
from asys_bench.change.probe.window import Rows, Window
from asys_bench.change.sae_choice import OF_RUN, missing_folders, sae_of
from asys_bench.config.sections.hooks import LabelsConfig
from asys_bench.config.sections.run import as_list
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
from asys_bench.contracts.names import LABELS, SIDE_STREAMS, matches
from asys_bench.contracts.packet import ActivationPacket, PacketError
from asys_bench.contracts.sink import (
    BaseSink,
    Misfit,
    SinkContext,
    SinkOptions,
    SinkPlugin,
    patience_s,
    worth_a_pull,
)
from asys_bench.contracts.stats import StatsError
from asys_bench.rundir.probes import ACTIVATIONS
from asys_bench.sae import CheckpointError, SparseAutoencoder
from asys_bench.sae.config import OF_SEVERAL_HOOKS
from asys_bench.sae.exchange import ExchangeError
from asys_bench.sae.exchange.hub import is_hub
from asys_bench.sinks.sae.start import StartFrom

log = logging.getLogger(__name__)

SHARE_OF_TIME = 1 / 40
FIT_SHARE, RENEWED_SHARE = 0.5, 1.0
"""A hook is fitted again when so much of its windows has changed while they grow, so that all fits on the
way to full windows cost as much as the last few of them, and when they are new once they are full;"""
FIT_S, MOST_FITS = 60.0, 60
"""or when something has, and so much time has passed: a minute, and of more than an hour a sixtieth."""
SAE_RELOADED_S = 300.0
MOST_FEATURES = 64
"""Of a row that are kept: its largest."""
BULK_ROWS, BULK_BYTES = 2048, 4 << 20
"""So many joined rows are brought into the windows together, and of narrow ones up to four times as many,
while that is no more than half a window."""
HELD_OUT_PART = 3
"""The window of held-out rows is this part of the other."""
MOST_LABELS = 64
Floats = npt.NDArray[np.float64]


class ProbeOptions(SinkOptions):
    """Options of the `probe` sink."""

    learn: Annotated[tuple[str, ...], BeforeValidator(as_list)] = Field(
        default=("*",),
        min_length=1,
        description="fnmatch globs over names of labels that probes learn; what is a block is never one",
    )
    kinds: dict[str, Kind] = Field(
        default_factory=dict,
        description="name of a label -> `class` (logistic regression, AUC) or `number` (ridge regression, "
        "R2); others are classes where their values are few whole numbers or texts",
    )
    block: str | None = Field(
        default=None,
        description="label whose equal values make a block, which is trained on or held out as a whole. "
        f"null: the first of {', '.join(BLOCK_LABELS)} that comes, else sequences of a text or places of "
        "an image, else 64 calls in a row",
    )
    saes: dict[str, str] = Field(
        default_factory=dict,
        description="fnmatch glob over hook names -> SAE whose features a probe reads, as of `sae_watch`; "
        f"`{OF_RUN}`: the newest checkpoint of this run's own. The last glob that matches wins, hooks "
        "without one are read as they are",
    )
    window_rows: int = Field(
        default=16384,
        ge=64,
        le=1 << 24,
        description="most rows of a hook that probes are fitted to",
    )
    window_mib: float = Field(default=64, gt=0, description="most MiB of them")
    evaluate_interval_s: float = Field(
        default=10.0, ge=0, le=86400, description="seconds between two fits of a hook, at the least"
    )
    l2: float = Field(
        default=1.0, gt=0, description="penalty of squared weights, for features of unit variance"
    )

    def misfits(self, workers: int, hooks: Sequence[str]) -> Iterator[Misfit]:
        """Folders that are not there."""
        return missing_folders(self.saes)


@dataclass(eq=False)
class _Payload:
    """Rows of one packet, copied. draw_N: as `Rows.draw_N`."""

    hook: _Hook
    x_ND: torch.Tensor
    draw_N: Floats
    dims: tuple[int, ...] | None
    text: int


@dataclass(eq=False)
class _Bulk:
    """Joined rows that are not in a window yet."""

    parts: list[Joined[_Payload]] = field(default_factory=list)
    rows: int = 0


class _Hook:
    """One hook: its windows, its labels and its probes."""

    def __init__(self, name: str, options: ProbeOptions, context: SinkContext, width: int) -> None:
        self.name, self.width = name, width
        self.folder = sae_of(options.saes, name)
        life = (context.attempt << 32) + context.incarnation
        self.rule = BlockRule(options.block, life)
        kept = min(width, MOST_FEATURES) * 3 if self.folder is not None else width
        most = int(options.window_mib * (1 << 20)) // (4 * kept)
        self.capacity = max(64, min(options.window_rows, most))
        self.trained = Window(self.capacity)
        self.held_out = Window(max(32, self.capacity // HELD_OUT_PART))
        self.targets: dict[str, Target] = {}
        self.columns: dict[str, int] = {}
        self.probes: dict[str, Probe] = {}
        self.bulk = _Bulk()
        self.sae: SparseAutoencoder | None = None
        self.sae_at = -math.inf
        self.sae_path: Path | None = None
        self.bulk_rows = max(
            BULK_ROWS, min(4 * BULK_ROWS, self.capacity // 2, BULK_BYTES // (4 * width))
        )
        self.gate = Gate(self.capacity)
        self.newest_step = 0
        self.due = 0.0
        self.began_at = time.monotonic()
        self.fitted_at = -math.inf
        self.changed = 0
        """Rows that came into the windows since the last fit."""
        slot = context.slot
        self.rows = slot.counter("probe_rows", hook=name)
        self.labelled = slot.counter("probe_labelled_rows", hook=name)

    def open_gate(self) -> None:
        """As wide as the windows want it now."""
        share = max(self.trained.share, self.held_out.share)
        boost = max((target.most_boost for target in self.targets.values()), default=1.0)
        self.gate.want(share, boost)

    def came(
        self, rows_M: npt.NDArray[np.int64], newest_step: int, call_M: Floats
    ) -> npt.NDArray[np.bool_]:
        """Packets of so many rows, of these calls: which of them are to be read."""
        rows = int(rows_M.sum())
        self.rows.add(rows)
        self.gate.count(rows, self.trained.share, is_full=self.trained.is_full)
        self.newest_step = max(self.newest_step, newest_step)
        return self.gate.takes(call_M, rows_M)

    def is_due(self, now: float) -> bool:
        """Whether it is to be fitted."""
        changed = self.changed + self.bulk.rows
        if not changed or now < self.due:
            return False
        held = len(self.trained) + len(self.held_out) + self.bulk.rows
        share = RENEWED_SHARE if self.trained.is_full else FIT_SHARE
        pause_s = max(FIT_S, (now - self.began_at) / MOST_FITS)
        return changed >= share * held or now - self.fitted_at >= pause_s


class ProbeWorker(BaseSink):
    """See the module docstring."""

    def __init__(self, options: ProbeOptions) -> None:
        self._options = options
        self._hooks: dict[int, _Hook | None] = {}
        self._names: dict[int, tuple[tuple[str, ...] | None, bool]] = {}
        self._labels_id = -1
        self._texts: dict[int, str] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._running: tuple[_Hook, Future[tuple[list[Probe], float]]] | None = None
        self._not_before = 0.0
        self._failed = False
        self._limit = 1.0
        """Of all hooks the widest: labels of calls beyond it are left unread."""

    def open(self, context: SinkContext) -> None:
        self._context = context
        torch.set_num_threads(1)
        self.linger_s = patience_s(context.config)
        self._join: LabelJoin[_Payload] = LabelJoin(
            int(context.config.get("labels", {}).get("horizon", LabelsConfig().horizon))
        )
        self._coin = coin_key(context.seed, 0, "probe")
        self._draw = np.random.default_rng([context.seed, context.attempt, context.incarnation])
        self._unjoined_rows = context.slot.counter("probe_unjoined_rows")
        self._unjoined_labels = context.slot.counter("probe_unjoined_labels")
        self._before = self._unjoined_rows.value, self._unjoined_labels.value

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
        now = time.monotonic()
        if self._running is not None:
            hook, future = self._running
            if not future.done():
                return
            self._running = None
            self._finish(hook, future)
        if now < self._not_before:
            return
        due = [hook for hook in self._known() if hook.is_due(now)]
        if due:
            self._start(min(due, key=lambda hook: hook.due))

    def close(self) -> None:
        """Everything that waits goes into its window; each hook is fitted once more."""
        if self._running is not None:
            hook, future = self._running
            self._running = None
            self._wait(future)
            self._finish(hook, future)
        for done in self._join.flush():
            self._take(done)
        for hook in self._known():
            self._settle(hook)
            if hook.changed and self._context.time_left_s() > 1.0:
                self._start(hook)
                if self._running is not None:
                    self._wait(self._running[1])
                    self._finish(*self._running)
                    self._running = None
            self._context.heartbeat()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _known(self) -> list[_Hook]:
        return [hook for hook in self._hooks.values() if hook is not None]

    def _wait(self, future: Future[Any]) -> None:
        """While there is time."""
        while not future.done() and self._context.time_left_s() > 0.5:
            time.sleep(0.01)
            self._context.heartbeat()

    # ---- what comes

    def _meet(self, packet: ActivationPacket) -> None:
        name = self._context.name_of(packet.hook_id)
        if name == LABELS:
            self._labels_id = packet.hook_id
            return
        hook = None
        tensor = self._context.decode(packet) if name not in SIDE_STREAMS else None
        if tensor is not None and tensor.ndim and tensor.numel() and not tensor.is_complex():
            hook = _Hook(name, self._options, self._context, tensor.shape[-1])
            self._hooks[packet.hook_id] = hook
            self._limit = hook.gate.limit
        elif tensor is None:
            self._hooks[packet.hook_id] = None
        else:  # the next packet may have rows
            self._hooks.pop(packet.hook_id, None)
            raise PacketError(f"{name}: a tensor of shape {tuple(tensor.shape)} has no rows")

    def _take_rows(self, packet: ActivationPacket, hook: _Hook) -> None:
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
        payload = _Payload(hook, x_ND, draw_N[in_N] / hook.gate.pace, dims, packet.text)
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

    def _take(self, done: Joined[_Payload]) -> None:
        if not done.labels:
            return
        hook = done.payload.hook
        hook.bulk.parts.append(done)
        hook.bulk.rows += len(done.rows_N)
        if hook.bulk.rows >= hook.bulk_rows:
            self._settle(hook)

    # ---- into the windows

    def _settle(self, hook: _Hook) -> None:
        """Bring joined rows into the windows."""
        bulk, hook.bulk = hook.bulk, _Bulk()
        if not bulk.parts or not self._has_features(hook):
            return
        labels_NK = self._labels_of(hook, bulk)
        draw_N = np.concatenate([part.payload.draw_N for part in bulk.parts])
        block_N = self._blocks_of(hook, bulk)
        boost_N = np.ones(len(draw_N))
        for name, target in hook.targets.items():
            values_N = labels_NK[:, hook.columns[name]]
            target.saw(values_N)
            boost_N = np.maximum(boost_N, target.boost(values_N))
        out_N = is_held_out(block_N, self._context.seed)
        x_ND = torch.cat([part.payload.x_ND for part in bulk.parts])
        for window, own_N in ((hook.held_out, out_N), (hook.trained, ~out_N)):
            own_boost_N = boost_N.clip(max=max(1.0, hook.gate.reach / window.share))
            place_M = np.flatnonzero(own_N & (draw_N < own_boost_N * window.share))
            if len(place_M):
                features = self._features(hook, x_ND[torch.from_numpy(place_M)])
                window.add(
                    Rows(
                        features, labels_NK[place_M], draw_N[place_M], own_boost_N[place_M],
                        block_N[place_M],
                    )
                )  # fmt: skip
                hook.changed += len(place_M)
        hook.labelled.add(len(draw_N))
        hook.open_gate()

    def _blocks_of(self, hook: _Hook, bulk: _Bulk) -> Ids:
        """The block of each row; of all parts at once where a label is the block, as `BlockRule.of`."""
        rule, attempt, parts = hook.rule, self._context.attempt, bulk.parts
        if rule.kind in parts[0].labels and all(rule.kind in part.labels for part in parts):
            values_N = np.concatenate([part.labels[rule.kind] for part in parts])
            if np.isfinite(values_N).all():
                source_N = np.repeat(
                    [part.key.source for part in parts], [len(part.rows_N) for part in parts]
                )
                return rule.of_label(attempt, source_N, values_N)
        return np.concatenate(
            [
                rule.of(
                    part.key,
                    attempt,
                    part.payload.dims,
                    part.payload.text,
                    part.rows_N,
                    part.labels,
                )
                for part in parts
            ]
        )

    def _labels_of(self, hook: _Hook, bulk: _Bulk) -> Floats:
        for name in dict.fromkeys(name for part in bulk.parts for name in part.labels):
            if name in hook.columns or len(hook.columns) >= MOST_LABELS or not self._wants(name):
                continue
            hook.columns[name] = len(hook.columns)
            hook.targets[name] = Target(name, self._options.kinds.get(name))
        labels_NK = np.full((bulk.rows, max(1, len(hook.columns))), np.nan)
        at = 0
        for part in bulk.parts:
            for name, values_N in part.labels.items():
                if name in hook.columns:
                    labels_NK[at : at + len(values_N), hook.columns[name]] = values_N
            at += len(part.rows_N)
        return labels_NK

    def _wants(self, name: str) -> bool:
        options = self._options
        if name == options.block or (options.block is None and name in BLOCK_LABELS):
            return False
        return any(matches(name, glob) for glob in options.learn)

    def _has_features(self, hook: _Hook) -> bool:
        """Whether there is what makes them: not while an SAE is missing."""
        if hook.folder is None:
            return True
        self._load(hook)
        return hook.sae is not None

    def _features(self, hook: _Hook, x_ND: torch.Tensor) -> Features:
        if hook.sae is None:
            return Dense(x_ND)
        with torch.no_grad():
            acts_NF = hook.sae.encode(x_ND)
            value_NK, index_NK = acts_NF.topk(min(MOST_FEATURES, acts_NF.shape[1]), dim=1)
        return Sparse(index_NK, value_NK.clamp(min=0), acts_NF.shape[1])

    def _load(self, hook: _Hook) -> None:
        now = time.monotonic()
        if now < hook.sae_at + (SAE_RELOADED_S if hook.sae is not None else 1.0):
            return
        hook.sae_at = now
        if hook.sae is not None and hook.folder != OF_RUN:
            return
        assert hook.folder is not None
        source = str(self._context.run_dir) if hook.folder == OF_RUN else hook.folder
        try:
            start = StartFrom(path=source)
            path = start.folder_for(hook.name).resolve()
            if path == hook.sae_path:
                return
            sae = start.read(hook.name)
        except (CheckpointError, ExchangeError, OSError) as error:
            if hook.folder != OF_RUN and not self._failed:
                self._failed = True
                log.error("%s has no probes: %s", hook.name, str(error))
            if is_hub(hook.folder):  # was there when the run began; not asked again and again
                hook.sae_at = math.inf
            return
        if sae.name in OF_SEVERAL_HOOKS or sae.d_in != hook.width:
            log.error("%s has no probes: an SAE of other rows is in %s", hook.name, path)
            hook.sae_at = math.inf
            return
        hook.sae, hook.sae_path = sae.eval().requires_grad_(False), path
        hook.trained.clear()  # features have changed
        hook.held_out.clear()

    # ---- fits

    def _start(self, hook: _Hook) -> None:
        """Fit the hook's probes in the thread."""
        self._settle(hook)
        trained, held_out = hook.trained.settle(), hook.held_out.settle()
        hook.fitted_at = time.monotonic()
        hook.due = hook.fitted_at + self._options.evaluate_interval_s
        hook.changed = 0
        hook.open_gate()
        if trained is None or held_out is None:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(
                1, "probes", initializer=torch.set_num_threads, initargs=(1,)
            )
        both = (
            probes.Side(trained, hook.trained.weights(trained)),
            probes.Side(held_out, hook.held_out.weights(held_out)),
        )
        targets = [hook.targets[name] for name in sorted(hook.targets)]
        columns, before = dict(hook.columns), dict(hook.probes)
        l2 = self._options.l2

        def fit() -> tuple[list[Probe], float]:
            began = time.thread_time()
            found = fitted(targets, columns, *both, before, l2)
            return found, time.thread_time() - began

        self._running = hook, self._thread.submit(fit)

    def _finish(self, hook: _Hook, future: Future[tuple[list[Probe], float]]) -> None:
        """Show and write what was fitted."""
        if not future.done():
            log.warning("%s: the last fit did not end in time", hook.name)
            return
        try:
            found, seconds = future.result()
        except Exception as error:  # noqa: BLE001 - a fit that fails costs itself
            log.error("%s: probes were not fitted: %s: %s", hook.name, type(error).__name__, error)
            return
        self._not_before = time.monotonic() + seconds / SHARE_OF_TIME
        for probe in found:
            probe.note(hook.newest_step)
            self._publish(hook, probe)
        hook.probes = {probe.label: probe for probe in found}
        context = self._context
        about = {
            "width": hook.width,
            "features": ACTIVATIONS if hook.folder is None else str(hook.sae_path),
            "block": hook.rule.kind,
            "worker": context.name,
            "attempt": context.attempt,
            "incarnation": context.incarnation,
            "unix_ns": time.time_ns(),
            "host_step": hook.newest_step,
            "rows_seen": hook.rows.value,
            "labelled_rows": hook.labelled.value,
            "unjoined_rows": self._unjoined_rows.value,
            "unjoined_labels": self._unjoined_labels.value,
            "level": 0.95,
        }
        try:
            write_probes(context.run_dir, hook.name, about, found, self._texts)
        except OSError as error:
            log.error("%s: probes are not written: %s", hook.name, str(error))

    def _publish(self, hook: _Hook, probe: Probe) -> None:
        for name, value in (
            (f"probe_{probe.metric}", probe.score.value),
            ("probe_low", probe.score.low),
            ("probe_high", probe.score.high),
        ):
            if math.isfinite(value):
                try:
                    self._context.slot.gauge(name, hook=hook.name, label=probe.label).set(value)
                except StatsError as error:
                    log.warning("%s of %s is not shown: %s", name, probe.label, str(error))


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
