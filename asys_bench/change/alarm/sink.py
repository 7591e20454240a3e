"""`AlarmWorker`: watches figures of a live run and raises alarms when they change.

Every `interval_s` each watcher gives a value to the `DetectorBank`. An alarm is, in this order: figures and
a count in the stats page (what the host's loop reads), the flight recorder, a line in the worker's log, a
line in `<run>/alarm/alarms.jsonl`, a webhook. A monitor writes it into monitor.log as an event. When values
are back to what they were before, flag, log, alarms.jsonl and event say that the alarm is over.

After a minute, then every ten, and at the end `<run>/alarm/<worker>-<attempt>.<incarnation>.json` says what
is watched, the rate of false alarms, and the smallest change that each watcher would find. A restarted worker
begins anew: its detectors know nothing yet, and the budget holds for them too.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from asys_bench.change.alarm.bank import SPANS, DetectorBank, Finding, Power, Side
from asys_bench.change.alarm.e_detector import Floats
from asys_bench.change.alarm.options import MOST_WATCHERS, AlarmOptions, Watch
from asys_bench.change.alarm.record import AlarmRecord
from asys_bench.change.alarm.recorder import FlightRecorder
from asys_bench.change.alarm.values import SUFFIX, Baseline, ValuesFile
from asys_bench.change.alarm.watchers import (
    PageWatchers,
    ProbeWatch,
    RowWatch,
    RowWatchers,
    SAEWatch,
    SpreadWatch,
)
from asys_bench.contracts.bus import Delivery, Lease
from asys_bench.contracts.names import file_slug, matches
from asys_bench.contracts.run_files import ALARM_DIR, ALARM_SCHEMA
from asys_bench.contracts.sink import BaseSink, SinkContext, SinkOptions, SinkPlugin
from asys_bench.contracts.stats import Counter, StatsPage
from asys_bench.monitors.alarm_page import AlarmsOnPage
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.probes import ACTIVATIONS, read_probes
from asys_bench.sae import CheckpointError, SparseAutoencoder
from asys_bench.sae.exchange import ExchangeError
from asys_bench.sinks.sae.start import read_of_one_hook
from asys_bench.system.files.atomic import replace_file

log = logging.getLogger(__name__)
POWER_EVERY_S = 600.0
"""The document's figures of what would be found are made anew this often; the first after `POWER_FIRST_S`."""
POWER_FIRST_S = 60.0
POWER_REST, POWER_FITS = 9.0, 0.8
"""Between two figures packets are read for so many times as long as one took: those of 240 watchers in a
row took 40 s, in which no row was looked at. One that fits into so much of an interval is not begun where
it would delay a value."""
_CLOSE_S = 2.0


class AlarmWorker(BaseSink):
    """See the module docstring."""

    def __init__(self, options: AlarmOptions) -> None:
        self._options = options
        self.linger_s = min(BaseSink.linger_s, options.interval_s / 4)

    def open(self, context: SinkContext) -> None:
        """Raises OSError: the baseline, or this run's own folder, cannot be opened."""
        options, slot = self._options, context.slot
        self._context = context
        torch.set_num_threads(options.threads)
        self._page = AlarmsOnPage(slot)
        self._intervals = slot.counter("alarm_intervals")
        self._behind = slot.counter("alarm_full_leases")
        self._latency = slot.histogram("alarm_latency_ns")
        self._watching = slot.gauge("alarm_watchers")
        self._bank = DetectorBank(
            false_alarms_per_day=options.false_alarms_per_day,
            interval_s=options.interval_s,
            seed=context.seed,
        )
        self._names: list[str] = []
        self._number_of: dict[tuple[str, int], int] = {}
        self._quiet_until_s: dict[int, float] = {}
        self._rows_of: dict[int, RowWatchers | None] = {}
        self._pages = [
            (number, PageWatchers(context.page, entry.metric, MOST_WATCHERS))
            for number, entry in enumerate(options.watch)
            if entry.metric is not None and context.page is not None
        ]
        self._host_steps = _host_steps(context.page)
        self._step = self._version = 0
        baseline = options.baseline
        self._baseline = Baseline.read(Path(baseline).expanduser()) if baseline else None
        folder = context.run_dir / ALARM_DIR
        folder.mkdir(mode=0o700, exist_ok=True)
        self._stem = f"{file_slug(context.name)}-{context.attempt}.{context.incarnation}"
        self._values = ValuesFile(folder / f"{self._stem}{SUFFIX}")
        self._record = AlarmRecord(context, options, folder)
        self._recorder = FlightRecorder(
            context,
            options.before_s,
            options.after_s,
            self._page.until,
            slot.counter("alarm_pinned_shards"),
        )
        self._next_s = time.monotonic() + options.interval_s
        self._raised: dict[int, int] = {}
        """Watcher -> number of its last alarm."""
        self._power_s = time.monotonic() + POWER_FIRST_S
        self._power_took_s = 0.0
        self._powers: list[Power] = []
        """Of each watcher over each span, as far as they are made."""

    def consume(self, lease: Lease) -> None:
        """Of a full lease, behind which more packets wait, the newest alone: a value of what was long ago
        would find a change as late, and each interval would begin further behind."""
        newest = lease.packets[-1]
        self._step, self._version = newest.host_step, newest.weights_version
        is_behind = len(lease) >= self.max_packets
        if is_behind:
            self._behind.add()
            for watchers in self._rows_of.values():
                if watchers is not None:
                    watchers.forget()
        for packet in reversed(lease.packets) if is_behind else lease.packets:
            if packet.hook_id not in self._rows_of:
                hook = self._context.name_of(packet.hook_id)
                self._rows_of[packet.hook_id] = self._watchers_of(hook)
            if packet.is_constant:  # no part of the training
                continue
            watchers = self._rows_of[packet.hook_id]
            if watchers is not None and not watchers.is_full:
                tensor = self._context.decode(packet)
                watchers.take(tensor, packet.sampling_rate, packet.timestamp_ns)
            if not is_behind:
                self._tick()
        self._tick()

    def idle(self) -> None:
        self._tick()
        began_s = time.monotonic()
        if began_s < self._power_s:
            return
        number, span = divmod(len(self._powers), len(SPANS))
        if number >= len(self._names):
            self._power_s = began_s + POWER_EVERY_S
            self._write()
            self._powers = []
            return
        if self._next_s - began_s < self._power_took_s < POWER_FITS * self._options.interval_s:
            return  # right after the next value there is time for it
        self._powers.append(self._bank.power_over(number, span))
        now_s = time.monotonic()
        self._power_took_s = now_s - began_s
        self._power_s = now_s + POWER_REST * self._power_took_s

    def close(self) -> None:
        """Look at what came last, then write what was watched."""
        self._next_s = -math.inf
        self._tick()
        self._next_s = math.inf
        self._values.flush()
        self._values.close()
        self._powers = []
        for number in range(len(self._names)):
            if self._context.time_left_s() <= 4 * _CLOSE_S:
                break
            self._powers += self._bank.power(number)
            self._context.heartbeat()
        self._write()
        self._context.heartbeat()
        left_s = max(0.0, min(self._context.time_left_s(), 4 * _CLOSE_S))
        self._recorder.close(min(_CLOSE_S, left_s / 2))
        self._context.heartbeat()
        self._record.close(min(_CLOSE_S, left_s / 2))

    def _watchers_of(self, hook: str) -> RowWatchers | None:
        found: list[RowWatch] = []
        for number, entry in enumerate(self._options.watch):
            if entry.metric is None and matches(hook, entry.hooks):
                made = self._row_watch(hook, entry, number)
                found += [made] if made is not None else []
        if not found:
            return None
        refused = self._context.slot.counter("alarm_refused_rows", hook=hook)
        return RowWatchers(found, self._options.rows, refused)

    def _row_watch(self, hook: str, entry: Watch, number: int) -> RowWatch | None:
        if entry.spread:
            return SpreadWatch(hook, number)
        make = self._sae_watch if entry.sae is not None else self._probe_watch
        return make(hook, entry, number)

    def _probe_watch(self, hook: str, entry: Watch, number: int) -> ProbeWatch | None:
        assert entry.probe is not None
        try:
            probes = read_probes(Path(entry.probe).expanduser()).get(hook, [])
        except (ReadingError, OSError) as error:
            log.error("%s is not watched: %s", hook, error)
            return None
        fitted = [one for one in probes if one.label == entry.label and one.weight is not None]
        if not fitted:
            log.error("%s is not watched: %s has no probe of %s", hook, entry.probe, entry.label)
            return None
        (probe,) = fitted[:1]
        assert probe.weight is not None
        assert probe.bias is not None
        sae = None
        if probe.features != ACTIVATIONS and (sae := self._sae(hook, probe.features)) is None:
            return None
        name = f"{hook} probe {probe.label}"
        return ProbeWatch(name, probe.weight, probe.bias, probe.classes, sae, number)

    def _sae(self, hook: str, folder: str) -> SparseAutoencoder | None:
        try:
            return read_of_one_hook(folder, hook)
        except (CheckpointError, ExchangeError) as error:
            log.error("%s is not watched: %s", hook, error)
            return None

    def _sae_watch(self, hook: str, entry: Watch, number: int) -> SAEWatch | None:
        assert entry.sae is not None
        sae = self._sae(hook, entry.sae)
        if sae is None:
            return None
        features = tuple(feature for feature in entry.features if feature < sae.d_sae)
        if len(features) < len(entry.features):
            log.error("%s: features from %d on are not in %s", hook, sae.d_sae, entry.sae)
        return SAEWatch(hook, sae, features, number)

    def _tick(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = _next_of_grid(self._next_s, now_s, self._options.interval_s)
        if self._host_steps is not None:
            self._step = self._host_steps.value or self._step
        values = self._read(now_s)
        self._intervals.add()
        self._values.add(self._step, values)
        if self._baseline is not None:
            values = values - [self._baseline.at(name, self._step) for name in self._names]
        for finding in self._bank.update(values):
            if self._quiet_until_s.get(finding.watcher, -math.inf) <= now_s:
                self._quiet_until_s[finding.watcher] = now_s + self._options.after_s
                self._raise(finding)
        for watcher in self._bank.back:
            self._quiet_until_s.pop(watcher, None)
            if (number := self._raised.pop(watcher, None)) is not None:
                self._say_over(watcher, number, float(values[watcher]))

    def _read(self, now_s: float) -> Floats:
        """A value of each watcher; NaN where there is none."""
        found: dict[int, float] = {}
        self._newest_ns = 0
        for watchers in self._rows_of.values():
            if watchers is None:
                continue
            for entry, name, value in watchers.values():
                found[self._numbered(name, entry)] = value
            self._newest_ns = max(self._newest_ns, watchers.newest_ns)
        for entry, page in self._pages:
            for name, value in page.values(now_s):
                found[self._numbered(name, entry)] = value
        found.pop(-1, None)
        values = np.full(len(self._names), np.nan)
        values[list(found)] = list(found.values())
        return values

    def _numbered(self, name: str, entry: int) -> int:
        """The watcher's number, which it gets when its first value comes; -1: there are too many."""
        number = self._number_of.get((name, entry))
        if number is None:
            if len(self._names) >= MOST_WATCHERS:
                log.error("%s is not watched: there are %d watchers already", name, MOST_WATCHERS)
                self._number_of[name, entry] = -1
                return -1
            shown = name if name not in self._names else f"{name} (watch {entry})"
            side: Side = self._options.watch[entry].side
            least = SAEWatch.least_of(name) if self._options.watch[entry].sae else 0.0
            number = self._number_of[name, entry] = self._bank.add(side, least)
            self._names.append(shown)
            self._values.watch(shown)
            self._page.watch(shown)
            self._watching.set(float(len(self._names)))
        return number

    def _raise(self, finding: Finding) -> None:
        name, context = self._names[finding.watcher], self._context
        now_ns = time.monotonic_ns() + context.clock_shift_ns
        self._page.raise_one(name, self._step, finding.value, finding.expected)
        self._raised[finding.watcher] = self._page.total
        self._recorder.record()
        latency_s = None
        if self._newest_ns:
            latency_s = (now_ns - self._newest_ns) / 1e9
            self._latency.record(max(0, now_ns - self._newest_ns))
        text = (
            f"{name} went {'up' if finding.up else 'down'} at step {self._step}: {finding.value:.4g} "
            f"where {finding.expected:.4g} was expected (mean of {finding.span} values)"
        )
        log.warning("alarm %d: %s", self._page.total, text)
        about = self._about(name, self._page.total) | {
            "against_baseline": self._baseline is not None and name in self._baseline,
            "watchers": len(self._names),
        }
        self._record.raised(finding, text, about, latency_s)

    def _say_over(self, watcher: int, number: int, value: float) -> None:
        """Values are back to what they were before alarm `number`."""
        name = self._names[watcher]
        self._page.is_over(name)
        text = (
            f"{name} is back at step {self._step} to what it was before alarm {number}: {value:.4g}"
        )
        log.warning("%s", text)
        self._record.over(text, self._about(name, number) | {"value": value})

    def _about(self, watcher: str, number: int) -> dict[str, str | int]:
        return {
            "number": number,
            "watcher": watcher,
            "host_step": self._step,
            "weights_version": self._version,
        }

    def _write(self) -> None:
        """What is watched, and what would be found as far as there was time for the figures."""
        each = len(SPANS)
        watchers = [
            {
                "watcher": name,
                "finds": [_plain(one) for one in self._powers[number * each : (number + 1) * each]],
            }
            for number, name in enumerate(self._names)
        ]
        document = {
            "schema": ALARM_SCHEMA,
            "worker": self._context.name,
            "attempt": self._context.attempt,
            "incarnation": self._context.incarnation,
            "host_step": self._step,
            "alarms": self._page.total,
            "intervals": self._intervals.value,
            "interval_s": self._options.interval_s,
            "false_alarms_per_day": self._options.false_alarms_per_day,
            "false_alarms_per_value": self._bank.alphas,
            "watchers": watchers,
        }
        path = self._context.run_dir / ALARM_DIR / f"{self._stem}.json"
        try:
            replace_file(path, (json.dumps(document, indent=1) + "\n").encode(), sync=False)
        except OSError as error:
            log.error("%s is not written: %s", path, error)


def _next_of_grid(due_s: float, now_s: float, interval_s: float) -> float:
    """When the interval after this one ends: at its own time, so that values come no more often than
    configured and, of a worker that keeps up, no less. What comes more than half an interval late moves
    it."""
    late = max(0.0, now_s - due_s) / interval_s
    return due_s + interval_s * (1 + math.floor(late + 0.5)) if math.isfinite(late) else now_s


def _plain(power: Power) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {
        key: value if isinstance(value, int) or math.isfinite(value) else None
        for key, value in asdict(power).items()
    }


def _host_steps(page: StatsPage | None) -> Counter | None:
    if page is None:
        return None
    host = dict(page.slots()).get("host")
    found = host.metrics().get("host_steps") if host is not None else None
    return found if isinstance(found, Counter) else None


def _build(options: SinkOptions) -> BaseSink:
    assert isinstance(options, AlarmOptions)
    return AlarmWorker(options)


plugin = SinkPlugin(
    name="alarm",
    summary="raises alarms when watched figures of a live run change",
    options=AlarmOptions,
    build=_build,
    default_delivery=Delivery.AT_MOST_ONCE,
    preload=("asys_bench.sae",),
    partition=True,
    once=True,  # the budget of false alarms is the run's
)
