"""Callbacks of real libraries around an observation whose reader is in this process: no workers."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asys_bench.callbacks import observed_training
from asys_bench.capture.hooker import ActivationHooker
from asys_bench.capture.points.hookpoints import resolve
from asys_bench.capture.tags.clock import StepClock
from asys_bench.config.assembly import build_preprocessor, create_data_bus
from asys_bench.config.sections.bus import BusConfig
from asys_bench.config.sections.hooks import HookConfig, LabelsConfig
from asys_bench.contracts.bus import GroupSpec
from asys_bench.contracts.labels import calls_of, is_of_several, label_names
from asys_bench.contracts.names import LABELS
from asys_bench.contracts.stats import StatsPage
from asys_bench.run.observation import Observation


class Session:
    """Hooks and clock as an observation has them; packets are read as they come."""

    def __init__(self, model, hooks, first_step, wants_labels=True, one_call=False):
        self.page = StatsPage.create(["host"])
        self.slot = self.page.slot("host")
        self.clock = StepClock(self.slot, first_step)
        self.bus = create_data_bus(
            BusConfig(capacity_packets=4096, capacity_mib=8), [GroupSpec("g")]
        )
        points = resolve(model, [HookConfig(match=(hook,)) for hook in hooks])
        kernels = [build_preprocessor(point.config) for point in points]
        self.hooker = ActivationHooker(
            self.bus, points, kernels, self.slot, self.clock, coins=[1] * len(points),
            label_horizon=10_000 if wants_labels else None, count_forwards=not one_call,
        )  # fmt: skip
        self.labels = []
        self.hooker.attach()
        self.hooks = hooks

    def close(self):
        self.hooker.detach()
        self.bus.close()
        self.page.close()

    def counts(self):
        metrics = self.slot.metrics()
        names = ("calls", "captured", "skipped")
        return tuple(metrics[f"hook_{n}{{hook={self.hooks[0]}}}"].value for n in names)

    def packets(self):
        """What the hooks captured; labels go to `labels`, as (step, microbatch, name, values)."""
        found = []
        while True:
            with self.bus.pull_batch("g", 4096, timeout_s=0.1) as lease:
                for p in lease:
                    self._take(p, found)
            if not self.bus.account().group("g").ready:
                return found

    def _take(self, p, found):
        encoding = self.bus.name_of(p.encoding_id)
        names = label_names(encoding)
        if self.bus.name_of(p.hook_id) != LABELS:
            found.append((p.host_step, p.microbatch, p.shape[0]))
        elif names is not None:
            values, tags = (
                p.raw_tensor().numpy().copy(),
                (p.host_step, p.weights_version, p.microbatch),
            )
            several = is_of_several(encoding)
            for (step, _, microbatch), one in (
                calls_of(tags, values) if several else [(tags, values)]
            ):
                self.labels += [
                    (step, microbatch, name, torch.from_numpy(one[..., k]))
                    for k, name in enumerate(names)
                ]


class Watched(Observation):
    """An `Observation` around a `Session`; what it saw is kept when it closes."""

    def __init__(self, model, first_step, options):
        settings = SimpleNamespace(config=None, provenance=None)
        super().__init__(model, settings, None, options["step_unit"], first_step)
        self.options, self.first = options, first_step
        hooks = options["hooks"]
        self._life.hooks = (hooks,) if isinstance(hooks, str) else tuple(hooks)
        archived = options.get("archive") is not False  # the sink that takes labels
        one_call = options.get("one_call_per_step", False)
        self._life.session = Session(model, self.hooks, first_step, archived, one_call)
        self.seen, self.counted, self.reported = [], (), Counter()
        self.config = SimpleNamespace(labels=LabelsConfig(**options.get("labels", {})))
        self.labels = []

    def report(self, name, value):
        self.reported[name] += 1

    def close(self):
        if self._closed:
            return
        session = self._life.session
        self.seen, self.counted = session.packets(), session.counts()
        self.labels = session.labels
        self._closed = True
        self._life.close()


@pytest.fixture
def observations(monkeypatch):
    """Every observation that callbacks have started, in order."""
    started: list[Watched] = []

    def observe(model: Any, config: Any, *, start_step: int, optimizers: Any, **options: Any):
        started.append(Watched(model, start_step, options))
        return started[-1]

    monkeypatch.setattr(observed_training, "observe", observe)
    yield started
    for one in started:
        one.close()
