"""What a session captures: the configured hook points, and side streams that describe their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from asys_bench.capture.points.hookpoints import HookPoint, resolve
from asys_bench.capture.tags.text_inputs import TextInputs
from asys_bench.config.assembly import build_preprocessor
from asys_bench.config.schema import MasterConfig
from asys_bench.config.sections.hooks import SamplingCoin
from asys_bench.config.sections.sinks import SinkConfig
from asys_bench.contracts.bus import GroupSpec
from asys_bench.contracts.coin import coin_key
from asys_bench.contracts.names import matches
from asys_bench.contracts.preprocessor import Preprocessor


@dataclass(frozen=True)
class Streams:
    """Hook points in module order, then the side streams.

    trained: names of the configured ones; a sink that trains one thing per hook gets only these.
    side: names of the side streams (`tokens`); every other sink that takes all hooks gets them too.
    text: reads what the root is fed; None when it takes no text.
    """

    points: list[HookPoint]
    trained: list[str]
    side: list[str]
    text: TextInputs | None

    def preprocessors(self) -> list[Preprocessor]:
        """One per point."""
        return [build_preprocessor(point.config) for point in self.points]

    def with_side_streams(
        self, config: MasterConfig, groups: Sequence[GroupSpec]
    ) -> list[GroupSpec]:
        """`groups` (planned over `trained`) with the hooks that each really selects."""
        if not self.side:
            return list(groups)
        return [self._selected(config, group) for group in groups]

    def _selected(self, config: MasterConfig, group: GroupSpec) -> GroupSpec:
        sink = _sink_of(config, group.name)
        if sink.plugin().partition:
            return replace(group, hooks=group.hooks or tuple(self.trained))
        wanted = [name for name in self.side if any(matches(name, g) for g in sink.hooks)]
        if group.hooks is None and wanted == self.side:
            return group
        return replace(group, hooks=(*(group.hooks or self.trained), *wanted))


def plan_streams(
    config: MasterConfig, model: torch.nn.Module, root: torch.nn.Module | None = None
) -> Streams:
    """The streams of `model` under `config`; `root` is what is called, if a wrapper of it is.

    Raises:
        HookError: a glob that matches no module.
    """
    points = resolve(model, config.hooks)
    trained = [point.name for point in points]
    if not points:
        return Streams(points, trained, [], None)
    text = TextInputs.of(model, root)
    side = text.points if text is not None and _somebody_wants_side_streams(config) else []
    side = [point for point in side if point.name not in trained]
    return Streams([*points, *side], trained, [point.name for point in side], text)


def coin_keys(config: MasterConfig, points: Sequence[HookPoint], rank: int = 0) -> list[int]:
    """The key of each point's sampling coin: one for all, but for those that ask for their own."""
    return [
        coin_key(
            config.run.seed,
            rank,
            point.name if point.config.sampling.coin is SamplingCoin.OWN else None,
        )
        for point in points
    ]


def _somebody_wants_side_streams(config: MasterConfig) -> bool:
    return any(not sink.plugin().partition for sink in config.enabled_sinks.values())


def _sink_of(config: MasterConfig, group: str) -> SinkConfig:
    """A group is called as its sink, or `<sink>-<n>` where a sink has one per worker."""
    sinks = config.enabled_sinks
    return sinks[group] if group in sinks else sinks[group.rpartition("-")[0]]
