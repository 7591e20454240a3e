"""`Fits`: the thread that fits the probes of one hook after another, and what is shown and written of them.

Fits take at most a fortieth of the time that passes: the trainer and the host come first.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from asys_bench.change.probe import probes
from asys_bench.change.probe.files import write_probes
from asys_bench.change.probe.hook import ProbedHook
from asys_bench.change.probe.options import ProbeOptions
from asys_bench.change.probe.probes import Probe, fitted
from asys_bench.contracts.sink import SinkContext
from asys_bench.contracts.stats import StatsError
from asys_bench.rundir.probes import ACTIVATIONS

log = logging.getLogger(__name__)

SHARE_OF_TIME = 1 / 40


class Fits:
    """One at a time.

    about: what the worker says in each file, e.g. how many rows found no label.
    texts: code of a label's value -> the text that it stands for.
    """

    def __init__(
        self,
        options: ProbeOptions,
        context: SinkContext,
        about: Callable[[], Mapping[str, Any]],
        texts: Mapping[int, str],
    ) -> None:
        self._options, self._context, self._about, self._texts = options, context, about, texts
        self._thread: ThreadPoolExecutor | None = None
        self._running: tuple[ProbedHook, Future[tuple[list[Probe], float]]] | None = None
        self._not_before = 0.0

    def idle(self, hooks: Sequence[ProbedHook]) -> None:
        """Take what has ended, and start the fit that is due for longest."""
        now = time.monotonic()
        if self._running is not None:
            if not self._running[1].done():
                return
            self._finish()
        if now < self._not_before:
            return
        due = [hook for hook in hooks if hook.is_due(now)]
        if due:
            self._start(min(due, key=lambda hook: hook.due))

    def wait(self) -> None:
        """For the fit that runs, while there is time."""
        if self._running is None:
            return
        while not self._running[1].done() and self._context.time_left_s() > 0.5:
            time.sleep(0.01)
            self._context.heartbeat()
        self._finish()

    def last(self, hook: ProbedHook) -> None:
        """Fit a hook once more, and wait for it; not where there is no time left."""
        hook.settle()
        if hook.changed and self._context.time_left_s() > 1.0:
            self._start(hook)
            self.wait()

    def close(self) -> None:
        """Nothing is fitted any more."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _start(self, hook: ProbedHook) -> None:
        """Fit the hook's probes in the thread."""
        hook.settle()
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

    def _finish(self) -> None:
        """Show and write what was fitted."""
        assert self._running is not None
        (hook, future), self._running = self._running, None
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
        self._write(hook, found)

    def _write(self, hook: ProbedHook, found: list[Probe]) -> None:
        context, source = self._context, hook.features
        about = {
            "width": hook.width,
            "features": ACTIVATIONS if source.folder is None else str(source.sae_path),
            "block": hook.rule.kind,
            "worker": context.name,
            "attempt": context.attempt,
            "incarnation": context.incarnation,
            "unix_ns": time.time_ns(),
            "host_step": hook.newest_step,
            "rows_seen": hook.rows.value,
            "labelled_rows": hook.labelled.value,
            **self._about(),
            "level": 0.95,
        }
        try:
            write_probes(context.run_dir, hook.name, about, found, self._texts)
        except OSError as error:
            log.error("%s: probes are not written: %s", hook.name, str(error))

    def _publish(self, hook: ProbedHook, probe: Probe) -> None:
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
