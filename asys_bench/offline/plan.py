"""What an offline training is to do: read from a file, a run's own configuration and `--set`.

A file is either a plan (the fields of `OfflinePlan`) or a run's configuration, of which the first
enabled sink that trains SAEs is taken. Without a file the run's own configuration is, so that the same
SAEs are trained again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from asys_bench.config.diagnosis import diagnose
from asys_bench.config.document import read_run_config
from asys_bench.config.node import Node
from asys_bench.config.overrides import apply_sets
from asys_bench.config.plugin_access import trains_saes
from asys_bench.config.problems import ConfigError, Origin
from asys_bench.config.sections.run import Integer, Section, Text, as_list
from asys_bench.config.sources import read_layers
from asys_bench.contracts.names import SIDE_STREAMS, matches
from asys_bench.contracts.run_files import CONFIG_FILE
from asys_bench.sae import SAEConfig
from asys_bench.sinks.archive import Repeats
from asys_bench.sinks.sae.device_options import Device
from asys_bench.sinks.sae.options import (
    CrosscoderOptions,
    Group,
    SAETrainerOptions,
    TranscoderOptions,
)
from asys_bench.sinks.sae.start import StartFrom

_SHARED = ("sae", "overrides", "variants", "transcoders", "crosscoders", "plain_saes", "device",
           "group")  # fmt: skip
"""Fields that mean what they mean for the live trainer."""


@dataclass(frozen=True)
class Job:
    """One SAE to train."""

    label: str
    """The hook's name, `<hook>#<variant>` or `<input>-><output>`, as in a live run."""
    hook: str
    config: SAEConfig
    others: tuple[str, ...] = ()
    """Further hooks of a transcoder or crosscoder."""


class OfflinePlan(Section):
    """SAEs to train from an archive."""

    hooks: Annotated[tuple[Text, ...], BeforeValidator(as_list)] = Field(
        default=("*",), min_length=1, description="fnmatch globs over the archive's hook names"
    )
    epochs: Integer = Field(
        default=4,
        ge=1,
        le=10_000,
        description="times through the archive; each trains on each row once",
    )
    repeats: Repeats = Field(
        default="all",
        description="of a step that the host made again in a later attempt (`run.resume`): rows of "
        "`all` attempts, or of the `last`",
    )
    seed: Integer = Field(
        default=0, ge=0, lt=1 << 32, description="as `run.seed`: each hook's SAE gets its own"
    )
    sae: SAEConfig = Field(default_factory=SAEConfig, description="the SAE of every hook")
    overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="hook glob -> fields of `sae` that differ there"
    )
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="several SAEs per hook: name -> fields that differ"
    )
    transcoders: list[TranscoderOptions] = Field(
        default_factory=list, description="skip transcoders between two hooks of the archive"
    )
    crosscoders: list[CrosscoderOptions] = Field(
        default_factory=list, description="crosscoders over several hooks of the archive"
    )
    plain_saes: bool = Field(default=True, description="false: transcoders and crosscoders only")
    device: Device = Field(
        default="cpu",
        description="cpu; cuda:N, a GPU as torch counts them; cuda, the one with the most memory free; "
        "auto, that or the CPU where there is none",
    )
    group: Group | None = Field(
        default=None,
        description="processes that train each SAE together; of GPUs each takes one. null: one process",
    )
    start_from: dict[str, Text] = Field(
        default_factory=dict,
        description="hook (or label) glob -> SAELens folder (ours or anyone's, `hf://org/name/folder` on the "
        "hub) whose weights training goes on from; the last glob that matches wins. As for the live trainer, "
        "a transcoder goes on from an entry under its own name alone, a crosscoder from none",
    )

    @model_validator(mode="after")
    def _overrides_fit(self) -> Self:
        self.trainer_options()
        return self

    @property
    def ranks(self) -> int:
        """Processes that train an SAE."""
        return self.trainer_options().ranks

    def trainer_options(self) -> SAETrainerOptions:
        """The same choice of configurations as the live trainer's."""
        return SAETrainerOptions(**{name: getattr(self, name) for name in _SHARED})

    def jobs(self, hooks: Sequence[str]) -> list[Job]:
        """Every SAE to train, given the archive's hooks.

        Raises:
            ValueError: an SAE of several hooks names one that is not there, or nothing is to be trained.
        """
        options = self.trainer_options()
        found = []
        for hook in hooks:
            if hook in SIDE_STREAMS and hook not in self.hooks:
                continue  # token ids and labels are no activations; live trainers do not get them either
            if any(matches(hook, glob) for glob in self.hooks):
                found += [Job(label, hook, sae) for label, sae in options.saes_of(hook).items()]
        for sae in options.saes_of_several_hooks():
            missing = [name for name in sae.hooks if name not in hooks]
            if missing:
                raise ValueError(
                    f"{sae.config.architecture} {sae.label}: the archive has no {', '.join(missing)}; "
                    f"it has {', '.join(hooks)}"
                )
            found.append(Job(sae.label, sae.hook, sae.config, sae.others))
        if not found:
            raise ValueError(
                f"hooks {list(self.hooks)} match none of the archive's: {', '.join(hooks)}"
            )
        return found

    def start_of(self, label: str) -> Path | None:
        """The folder that a training goes on from; None: from scratch."""
        starts = {glob: StartFrom(path=path) for glob, path in self.start_from.items()}
        options = self.trainer_options().model_copy(update={"start_from": starts})
        start = options.start_of(label, label)
        return start.place if start is not None else None


def read_plan(
    run_dir: Path, config: str | None, sets: Sequence[str], grid: Sequence[str] = ()
) -> OfflinePlan:
    """The plan from `config` or else from the run's own configuration, and `sets` over it, and over them
    the values of one point of a grid.

    Raises:
        ConfigError: everything that is wrong, each with its place and a fix.
    """
    root = Node({}, Origin("--set"))
    if config is not None:
        root = read_layers(config)[0]
    elif os.path.lexists(run_dir / CONFIG_FILE):
        root = read_run_config(run_dir)
    if root.child("sinks") is not None:
        root = _of_run(root)
    problems = [*apply_sets(root, sets), *apply_sets(root, grid, "--grid")]
    if problems:
        raise ConfigError(problems)
    try:
        return OfflinePlan.model_validate(root.to_data())
    except ValidationError as error:
        raise ConfigError(diagnose(error, OfflinePlan, root)) from None


def _of_run(root: Node) -> Node:
    """The plan's fields in a run's configuration, with their places in its file."""
    found: dict[str, Node] = {}
    run = root.child("run")
    seed = run.child("seed") if run is not None else None
    if seed is not None:
        found["seed"] = seed
    sinks = root.child("sinks")
    for sink in sinks.content.values() if sinks is not None and sinks.content else ():
        kind, enabled = sink.child("kind"), sink.child("enabled")
        if kind is None or not trains_saes(kind.content) or (enabled and enabled.content is False):
            continue
        options = sink.child("options")
        parts = {"hooks": sink.child("hooks")}
        for name in _SHARED:
            parts[name] = options.child(name) if options is not None else None
        found |= {name: node for name, node in parts.items() if node is not None}
        break
    return Node(found, root.origin)
