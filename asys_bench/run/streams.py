"""What a session captures: the configured hook points, and side streams that describe their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from asys_bench.capture.hook_stream import encoding_of
from asys_bench.capture.points.hookpoints import HookError, HookPoint, resolve, unmatched
from asys_bench.capture.shards import columns_of, mesh_places
from asys_bench.capture.tags.text_inputs import TextInputs
from asys_bench.config.assembly import build_preprocessor
from asys_bench.config.schema import MasterConfig
from asys_bench.config.sections.hooks import HookConfig, Missing, SamplingCoin
from asys_bench.config.sections.sinks import SinkConfig
from asys_bench.contracts.bus import GroupSpec
from asys_bench.contracts.coin import coin_key
from asys_bench.contracts.encodings.padding import PADDED
from asys_bench.contracts.encodings.parts import part_name
from asys_bench.contracts.host import Feed
from asys_bench.contracts.names import LABELS, TOKENS, matches
from asys_bench.contracts.preprocessor import Preprocessor
from asys_bench.system.launcher import LocalRanks

Told = Mapping[str, Any]
"""What a rank hooks, as plain data: `streams` (described), `side` (names), `encodings` and `unmatched`
(globs)."""


@dataclass(frozen=True)
class Streams:
    """Hook points in module order, then the side streams; no points where packets come from elsewhere.

    described: what run.json says of each stream. trained: names of the configured ones, on any rank of the
    node; a sink that trains one thing per hook gets only these. side: names of the side streams (`tokens`);
    every other sink that takes all hooks gets them too, and one that says `takes_tokens` the tokens. text:
    reads what the root is fed; None when it takes no text.
    labels: some sink wants what the host says of its rows; those that do get it, and no other.
    encodings: names of encodings that other ranks of the node will use and this one does not.
    unmatched: globs of rules with `missing: ok` that match no module on any rank asked.
    """

    points: list[HookPoint]
    trained: list[str]
    side: list[str]
    text: TextInputs | None
    described: Sequence[Mapping[str, Any]] = ()
    labels: bool = False
    encodings: Sequence[str] = ()
    unmatched: Sequence[str] = ()

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
    config: MasterConfig,
    model: torch.nn.Module,
    root: torch.nn.Module | None = None,
    ranks: LocalRanks | None = None,
    told: Sequence[Told] = (),
) -> Streams:
    """The streams of `model` under `config`; `root` is what is called, if a wrapper of it is.

    ranks: this process's place among those of its job; None: it is the only one, as far as its run goes.
    told: what the other ranks of the node hook (`tell`).

    Raises:
        HookError: a glob that matches no module; `ranks` of a rule that are none.
    """
    resolved = resolve(model, config.hooks)
    here = RanksHere(config.hooks, model, ranks)
    points = [point for point in resolved if here.captures(point.config)]
    described = {point.name: _described(point) for point in resolved}
    for one in told:
        for stream in one["streams"]:
            described.setdefault(stream["name"], stream)
    side_told = {name for one in told for name in one["side"]}
    trained = [name for name in described if name not in side_told]
    encodings = _encodings_of_others(resolved, here, ranks, told)
    missing = _unmatched(config, model, told)
    if not trained:
        return Streams(points, trained, [], None, unmatched=missing)
    text = TextInputs.of(model, root)
    # Of rows that this rank captures.
    wanted = bool(points) and _somebody_wants_side_streams(config)
    side = text.points if text is not None and wanted else []
    side = [point for point in side if point.name not in trained]
    points = [*points, *side]
    described |= {point.name: _described(point) for point in side}
    labels = any(sink.plugin().takes_labels for sink in config.enabled_sinks.values())
    listed: list[Mapping[str, Any]] = list(described.values())
    if labels:
        listed.append(_LABELS_DESCRIBED)
    names = [*(point.name for point in side), *sorted(side_told)]
    return Streams(
        points, trained, list(dict.fromkeys(names)), text, listed, labels, encodings, missing
    )


def hooks_differ(config: MasterConfig) -> bool:
    """Whether ranks may hook different modules, so that the one that owns the run must be told."""
    return any(rule.missing is Missing.OK for rule in config.hooks)


def tell(
    config: MasterConfig, model: torch.nn.Module, root: torch.nn.Module, ranks: LocalRanks
) -> Told:
    """What a rank says of its hooks to the one that owns the run. Raises HookError."""
    streams = plan_streams(config, model, root, ranks)
    encodings = set(streams.encodings)
    for point, kernel in zip(streams.points, streams.preprocessors(), strict=True):
        encodings |= {encoding_of(point, kernel), f"{PADDED}+{kernel.encoding}"}
    return {
        "streams": [dict(one) for one in streams.described if one["name"] != LABELS],
        "side": streams.side,
        "encodings": sorted(encodings),
        "unmatched": list(streams.unmatched),
    }


def _unmatched(config: MasterConfig, model: torch.nn.Module, told: Sequence[Told]) -> list[str]:
    found = unmatched(model, config.hooks)
    for one in told:
        found = [pattern for pattern in found if pattern in one["unmatched"]]
    return found


def _encodings_of_others(
    points: Sequence[HookPoint],
    here: RanksHere,
    ranks: LocalRanks | None,
    told: Sequence[Told],
) -> list[str]:
    """Names of encodings beside this rank's own: of parts of rows that the node's other ranks hold, of rules
    that they alone capture, and what they told of."""
    found = {name for one in told for name in one["encodings"]}
    if ranks is None or ranks.local_world_size < 2:
        return sorted(found)
    first = ranks.rank - ranks.local_rank
    for point in points:
        in_columns = point.part is not None and point.part.columns is not None
        captured = here.captures(point.config)
        if captured and not in_columns:
            continue  # a preprocessor may take long to build
        kernel = build_preprocessor(point.config)
        if not captured:
            found |= {encoding_of(point, kernel), f"{PADDED}+{kernel.encoding}"}
        if in_columns and not kernel.samples:
            assert point.parameter is not None
            assert point.rows is not None
            axis = point.rows.axis_of(tuple(point.parameter.shape))
            columns = columns_of(
                point.parameter, axis, range(first, first + ranks.local_world_size)
            )
            found |= {part_name(kernel.encoding, one) for one in columns}
    return sorted(found)


class RanksHere:
    """Which rules this rank captures (`hooks[].ranks`).

    Raises:
        HookError: a number that is no rank of the job, or a name that no device mesh has.
    """

    def __init__(
        self, rules: Sequence[HookConfig], model: torch.nn.Module, ranks: LocalRanks | None
    ) -> None:
        asked = [one for rule in rules for one in rule.ranks or ()]
        known = ranks or (LocalRanks.from_environment() if asked else None)
        self._rank, size = (known.rank, known.world_size) if known is not None else (0, 1)
        self._places = mesh_places(model) if any(isinstance(one, str) for one in asked) else {}
        for one in asked:
            if isinstance(one, str) and one not in self._places:
                names = ", ".join(self._places) or "none"
                raise HookError(
                    f"hooks: ranks {one!r} is no dimension of a device mesh that the model's parameters are "
                    f"spread over; there are: {names}. Name one in init_device_mesh(mesh_dim_names=...), "
                    "call parallelize_module and fully_shard before observe(), or give numbers of ranks"
                )
            if isinstance(one, int) and known is not None and not 0 <= one < size:
                raise HookError(
                    f"hooks: ranks {one} is no rank of this job of {size} (0 to {size - 1})"
                )

    def captures(self, rule: HookConfig) -> bool:
        """This rank is among those of the rule."""
        return rule.ranks is None or any(
            self._places[one] == 0 if isinstance(one, str) else one == self._rank
            for one in rule.ranks
        )


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
