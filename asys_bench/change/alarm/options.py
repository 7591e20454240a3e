"""Options of the sink `alarm`: what is watched, and what may happen when it changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, model_validator

from asys_bench.change.alarm.bank import Side
from asys_bench.contracts.run_files import ALARM_DIR, PROBES_DIR
from asys_bench.contracts.sink import Misfit, SinkOptions
from asys_bench.contracts.text_form import TextForm
from asys_bench.sinks.sae.start import missing_at

MOST_WATCHERS = 256
WebAddress = Annotated[
    str, TextForm(r"^https?://.*$", "a web address", "write https://host/path, or http://")
]


class Watch(BaseModel, extra="forbid", frozen=True):
    """An entry of `watch`: figures of the stats page, of the rows themselves, or what a known SAE or probe
    says of them."""

    metric: str | None = Field(
        None,
        min_length=1,
        description="fnmatch glob over the run's metrics, such as `sae_fvu`, `sae_new_lives_ratio`, "
        "`host_reward_mean` or `probe_auc{hook=*,label=done}`; without braces labels do not matter. "
        "Each metric that matches is a watcher: of a gauge each new value, of a counter its rate, of a "
        "histogram the mean",
    )
    spread: bool = Field(
        False,
        description="how far rows lie apart is a watcher: the logarithm of their mean squared distance from "
        "their mean. It needs neither SAE nor probe; with `side: up` it tells of states that are new",
    )
    sae: str | None = Field(
        None,
        min_length=1,
        description="folder of a known SAE (SAELens, sparsify or dictionary_learning), or a run, of which "
        "the hook's SAE is taken: its FVU on the rows, and the densities of `features`, are watchers",
    )
    features: tuple[int, ...] = Field(
        (), description="numbers of the SAE's features whose density is watched"
    )
    probe: str | None = Field(
        None,
        min_length=1,
        description="a run whose probe of `label` is taken, of the hook of the same name: the mean of what "
        "it says of the rows is a watcher",
    )
    label: str | None = Field(None, min_length=1, description="the label that the probe is for")
    hooks: str = Field(
        "*", min_length=1, description="fnmatch glob over hooks, for `spread`, `sae` and `probe`"
    )
    side: Side = Field("both", description="which way the values may not go: up, down or both")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(map(bool, (self.metric, self.spread, self.sae, self.probe))) != 1:
            raise ValueError("an entry watches one of metric, spread, sae and probe")
        if (self.probe is None) != (self.label is None):
            raise ValueError("probe and label go together")
        if self.features and self.sae is None:
            raise ValueError("features are those of a sae")
        if any(number < 0 for number in self.features):
            raise ValueError("features count from 0")
        return self


class AlarmOptions(SinkOptions):
    """Options of the `alarm` sink."""

    watch: tuple[Watch, ...] = Field(
        min_length=1, max_length=MOST_WATCHERS, description="what is watched"
    )
    false_alarms_per_day: float = Field(
        1.0,
        gt=0,
        le=10_000,
        description="most false alarms per day of all watchers together, on average",
    )
    interval_s: float = Field(
        0.1,
        ge=0.01,
        le=3600,
        description="seconds between two values of a watcher. A change is found a few values later, and "
        "the budget is spread over all of them",
    )
    rows: int = Field(
        128,
        ge=1,
        le=1 << 20,
        description="most rows of a hook that a value is made of; what comes beyond is not looked at",
    )
    baseline: str | None = Field(
        None,
        min_length=1,
        description="a clean run with the same watchers: what is watched is then the difference from its "
        "value at the same host step, so that what both learn raises no alarm",
    )
    before_s: float = Field(
        60.0,
        ge=0,
        le=86400,
        description="seconds before an alarm whose archive shards are pinned",
    )
    after_s: float = Field(
        60.0,
        ge=0,
        le=86400,
        description="seconds after an alarm in which hooks sample at the highest rate that bus and row "
        "budget allow (`bus.on_full: sample`), and shards are pinned; so long its watcher raises no "
        "other, unless its values were back in between",
    )
    webhook: WebAddress | None = Field(
        None,
        description="URL that gets a JSON document per alarm, without activations",
    )
    webhook_timeout_s: float = Field(
        5.0, gt=0, le=60, description="seconds that a request may take"
    )
    threads: int = Field(1, ge=1, le=1024, description="torch threads of the worker")

    def misfits(self, workers: int, hooks: Sequence[str]) -> Iterator[Misfit]:
        """Folders that are not there, a URL without a host, and workers that would share the rows."""
        if workers > 1:
            yield Misfit(
                ("workers",),
                "watchers need all rows of a hook, and workers share them",
                workers,
                "set it to 1",
            )
        for number, one in enumerate(self.watch):
            if one.sae is not None:
                path = ("options", "watch", number, "sae")
                fix = "name the folder of an SAE, or a run"
                if (found := missing_at(path, one.sae, fix)) is not None:
                    yield found
            if one.probe is not None and not (Path(one.probe).expanduser() / PROBES_DIR).is_dir():
                yield Misfit(
                    ("options", "watch", number, "probe"),
                    f"no run with a folder {PROBES_DIR}/",
                    one.probe,
                    "name a run that had the sink `probe`",
                )
        baseline = self.baseline
        if baseline is not None and not (Path(baseline).expanduser() / ALARM_DIR).is_dir():
            yield Misfit(
                ("options", "baseline"),
                f"no run with a folder {ALARM_DIR}/",
                baseline,
                "name a run that had the sink `alarm`",
            )
        if self.webhook is not None and not urlsplit(self.webhook).hostname:
            yield Misfit(
                ("options", "webhook"), "names no host", self.webhook, "write https://host/path"
            )
