"""A model with hooks, a bus and one reader, all in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

from asys_bench.capture.hooker import ActivationHooker
from asys_bench.capture.points.hookpoints import resolve
from asys_bench.capture.tags.clock import StepClock
from asys_bench.capture.tags.text_inputs import TextInputs
from asys_bench.config.assembly import build_preprocessor, create_data_bus
from asys_bench.config.sections.bus import BusConfig
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.contracts.bus import BusPlugin, GroupSpec
from asys_bench.contracts.packet import Kind
from asys_bench.contracts.stats import StatsPage, slot_bytes
from asys_bench.registry import registry
from asys_bench.run.session import METRICS_PER_HOOK
from asys_bench.sinks.decoding import Decoder


def usable_bus(name):
    """`name`; skips the test where that bus cannot run."""
    reason = registry("backend").get(name, BusPlugin).unavailable()
    if reason is not None:
        pytest.skip(reason)
    return name


class Captured(NamedTuple):
    """A packet as the reader got it; `tensor` is a copy."""

    name: str
    kind: Kind
    tensor: torch.Tensor
    step: int
    version: int
    microbatch: int
    position: int
    call: int
    rate: float
    text: int = 0
    encoding: str = "identity"


class Rig:
    """Hooks on `model`, attached unless told otherwise."""

    def __init__(
        self,
        model,
        hooks,
        *,
        attach=True,
        called=None,
        text=None,
        labels=None,
        one_call=False,
        **bus,
    ):
        config = BusConfig(**{"capacity_packets": 256, "capacity_mib": 8, **bus})
        self.points = resolve(model, hooks)
        if text is not None:
            self.points += text.points
        names = [point.name for point in self.points]
        self.page = StatsPage.create({"host": slot_bytes(names, METRICS_PER_HOOK, 1)})
        self.slot = self.page.slot("host")
        self.clock = StepClock(self.slot)
        self.bus = create_data_bus(config, [GroupSpec("g")])
        self.hooker = ActivationHooker(
            self.bus,
            self.points,
            [build_preprocessor(point.config) for point in self.points],
            self.slot,
            self.clock,
            on_full=config.on_full,
            block_timeout_s=config.block_timeout_s,
            coins=[1] * len(self.points),
            called=called,
            text=text,
            label_horizon=labels,
            count_forwards=not one_call,
        )
        if attach:
            self.hooker.attach()

    def packets(self) -> list[Captured]:
        """Everything on the bus, in order."""
        decode = Decoder(self.bus.name_of)
        found: list[Captured] = []
        while True:
            with self.bus.pull_batch("g", 64, timeout_s=0.1) as lease:
                if not len(lease) and not self.bus.account().group("g").ready:
                    return found
                found += [
                    Captured(
                        self.bus.name_of(p.hook_id), p.kind, decode(p).clone(), p.host_step,
                        p.weights_version, p.microbatch, p.token_position, p.call_index,
                        p.sampling_rate, p.text, self.bus.name_of(p.encoding_id),
                    )
                    for p in lease
                ]  # fmt: skip

    def tensors(self, name: str | None = None) -> list[torch.Tensor]:
        return [p.tensor for p in self.packets() if name in (None, p.name)]

    def value(self, metric: str, hook: str) -> Any:
        return self.slot.metrics()[f"hook_{metric}{{hook={hook}}}"].value

    def is_accounted_for(self, hook: str) -> bool:
        parts = ("captured", "sampled_out", "dropped", "skipped")
        return self.value("calls", hook) == sum(self.value(part, hook) for part in parts)

    def close(self) -> None:
        self.hooker.detach()
        self.bus.close()
        self.page.close()


@pytest.fixture
def rig() -> Iterator[Any]:
    """rig(model, *hooks, **bus settings)"""
    rigs: list[Rig] = []

    def make(model, *hooks, **options):
        rules = [HookConfig.model_validate(hook) for hook in hooks]
        rigs.append(Rig(model, rules, **options))
        return rigs[-1]

    yield make
    for one in rigs:
        one.close()


@pytest.fixture
def watch(rig):
    """watch(model, *hooks): a rig of a text model."""

    def make(model, *hooks, called=None, **options):
        text = TextInputs.of(model, called)
        assert text is not None
        rules = [hook if isinstance(hook, dict) else {"match": hook} for hook in hooks]
        return rig(model, *rules, called=called, text=text, **options)

    return make
