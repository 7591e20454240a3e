"""What a session captures: the configured hook points, and side streams that describe their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from asys_bench.capture.points.hookpoints import HookPoint, resolve
from asys_bench.capture.tags.text_inputs import TextInputs
from asys_bench.config.assembly import build_preprocessor
from asys_bench.config.schema import MasterConfig
from asys_bench.config.sections.hooks import SamplingCoin
from asys_bench.config.sections.sinks import SinkConfig
from asys_bench.contracts.bus import GroupSpec
from asys_bench.contracts.coin import coin_key
from asys_bench.contracts.host import Feed
from asys_bench.contracts.names import LABELS, TOKENS, matches
from asys_bench.contracts.preprocessor import Preprocessor


@dataclass(frozen=True)
class Streams:
    """Hook points in module order, then the side streams; no points where packets come from elsewhere.

    described: what run.json says of each stream. trained: names of the configured ones; a sink that trains
    one thing per hook gets only these. side: names of the side streams (`tokens`); every other sink that
    takes all hooks gets them too, and one that says `takes_tokens` the tokens. text: reads what the root is
    fed; None when it takes no text.
    labels: some sink wants what the host says of its rows; those that do get it, and no other.
    """

    points: list[HookPoint]
    trained: list[str]
    side: list[str]
    text: TextInputs | None
    described: Sequence[Mapping[str, Any]] = ()
    labels: bool = False

    @property
    def unhooked(self) -> list[str]:
        """Names of all streams that are not hooks'."""
        return [*self.side, *([LABELS] if self.labels else [])]

    @property
    def names(self) -> list[str]:
        """Of all streams."""
        return [*self.trained, *self.unhooked]

    def preprocessors(self) -> list[Preprocessor]:
        """One per point."""
        return [build_preprocessor(point.config) for point in self.points]

    def with_side_streams(
        self, config: MasterConfig, groups: Sequence[GroupSpec]
    ) -> list[GroupSpec]:
        """`groups` (planned over `trained`) with the hooks that each really selects."""
        if not self.unhooked:
            return list(groups)
        return [self._selected(config, group) for group in groups]

    def _selected(self, config: MasterConfig, group: GroupSpec) -> GroupSpec:
        sink = _sink_of(config, group.name)
        plugin = sink.plugin()
        wanted = [LABELS] if plugin.takes_labels and self.labels else []
        if plugin.takes_tokens:
            wanted += [name for name in self.side if name == TOKENS]
        elif not plugin.partition:
            wanted += [name for name in self.side if any(matches(name, g) for g in sink.hooks)]
        if group.hooks is None and len(wanted) == len(self.unhooked):
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
    points = [*points, *side]
    labels = any(sink.plugin().takes_labels for sink in config.enabled_sinks.values())
    described = [_described(one) for one in points]
    if labels:
        described.append(_LABELS_DESCRIBED)
    return Streams(points, trained, [point.name for point in side], text, described, labels)


def fed_streams(feed: Feed) -> Streams:
    """Those of a host that pushes its packets itself."""
    trained = [one.name for one in feed.streams if not one.side]
    side = [one.name for one in feed.streams if one.side]
    described = [{**one.described, "name": one.name} for one in feed.streams]
    unlabelled = [name for name in side if name != LABELS]
    return Streams([], trained, unlabelled, None, described, LABELS in side)


_LABELS_DESCRIBED: dict[str, str | int | None] = {
    "name": LABELS, "module": "", "kind": "activation", "rows": "last", "select": None, "coin": "own",
}  # fmt: skip


def _described(point: HookPoint) -> dict[str, str | int | None]:
    """What a stream's name is made of, what a row of it is and how its calls are drawn, for readers."""
    return {
        "name": point.name,
        "module": point.path,
        "kind": point.kind.name.lower(),
        "rows": point.rows.described if point.rows is not None else "last",
        "select": point.config.select,
        "coin": point.config.sampling.coin.value,
    }


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
    plugins = [sink.plugin() for sink in config.enabled_sinks.values()]
    return any(plugin.takes_tokens or not plugin.partition for plugin in plugins)


def _sink_of(config: MasterConfig, group: str) -> SinkConfig:
    """A group is called as its sink, or `<sink>-<n>` where a sink has one per worker."""
    sinks = config.enabled_sinks
    return sinks[group] if group in sinks else sinks[group.rpartition("-")[0]]
