"""What can be set for the `sae_trainer` sink, and which SAEs that means for a hook."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, Field, ValidationInfo, model_validator

from asys_bench.contracts.names import matches
from asys_bench.contracts.sink import Misfit, PlannedSAE
from asys_bench.sae import SAEConfig
from asys_bench.sae.config import OF_SEVERAL_HOOKS
from asys_bench.sae.ranks import Split
from asys_bench.sinks.sae.device_options import DeviceOptions
from asys_bench.sinks.sae.live_evaluation import LiveEvaluationOptions
from asys_bench.sinks.sae.start import StartFrom, StartsByHook, start_for, unusable

TRANSCODER, CROSSCODER = OF_SEVERAL_HOOKS
_LISTS = {TRANSCODER: "transcoders", CROSSCODER: "crosscoders"}


class TranscoderOptions(BaseModel, extra="forbid", frozen=True):
    """One transcoder: from the rows of one hook to those of another."""

    input: str = Field(description="name of the hook whose rows go in")
    output: str = Field(description="name of the hook whose rows are to come out")
    sae: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of `sae` that differ for it; architecture is skip_transcoder",
    )

    @property
    def label(self) -> str:
        """Its name in metrics and folders."""
        return f"{self.input}->{self.output}"

    @property
    def hooks(self) -> tuple[str, str]:
        """Input, then output."""
        return self.input, self.output


class CrosscoderOptions(BaseModel, extra="forbid", frozen=True):
    """One crosscoder: the same features for the rows of several hooks."""

    hooks: tuple[str, ...] = Field(
        min_length=2, description="names of the hooks, in the order of its columns; at least two"
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        description="its name in metrics and folders; unset: the hooks' names with + between them",
    )
    sae: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of `sae` that differ for it; architecture is crosscoder, d_in the sum of "
        "the hooks' widths",
    )

    @property
    def label(self) -> str:
        """Its name in metrics and folders."""
        return self.name or "+".join(self.hooks)


class GroupOptions(BaseModel, extra="forbid", frozen=True):
    """Processes that train each SAE together."""

    size: int = Field(
        ge=2,
        le=64,
        description="processes (ranks), 2..64; each takes a GPU, or `sae.threads` cores",
    )
    split: Split = Field(
        default="latents",
        description="what is spread over them. latents: each has a part of the features, with its "
        "weights and moments; rows: each has all features, and trains on a part of each batch",
    )


def _not_on_one_gpu(group: GroupOptions, of: ValidationInfo) -> GroupOptions:
    device = of.data.get("device", "")
    if device.startswith("cuda:"):
        raise ValueError(
            f"group.size asks for {group.size} processes, each with a GPU of its own, and device {device} "
            "is one GPU; valid: cpu, cuda, auto"
        )
    return group


Group = Annotated[GroupOptions, AfterValidator(_not_on_one_gpu)]
"""A field of a model that has `device` above it."""


class SAETrainerOptions(DeviceOptions):
    """Options of the `sae_trainer` sink."""

    sae: SAEConfig = Field(default_factory=SAEConfig, description="the SAE of every hook")
    overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="fnmatch glob over hook names -> fields of `sae` that differ there; "
        "the last glob that matches wins, field by field",
    )
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="several SAEs on every hook, fed by one pull: name -> fields of `sae` that "
        "differ (over `overrides`). They appear as <hook>#<name>. Empty: one SAE per hook",
    )
    transcoders: list[TranscoderOptions] = Field(
        default_factory=list,
        description="skip transcoders between two hooks of this sink; both hooks must be with one "
        "worker",
    )
    crosscoders: list[CrosscoderOptions] = Field(
        default_factory=list,
        description="crosscoders over several hooks of this sink; all of them must be with one worker",
    )
    start_from: StartsByHook = Field(
        default_factory=dict,
        description="SAEs to go on from instead of random weights: `{path: ..., format: ...}` for "
        "every hook, or fnmatch glob over hooks (or SAEs: `<hook>#<variant>`) -> that, or -> a path; "
        "the last glob that matches wins. A transcoder goes on from an entry under its own name alone "
        "(`<input>-><output>`), a crosscoder from none. `d_sae` comes from the SAE; "
        "optimizer and input scale are new. A run that was killed resumes its own checkpoints",
    )
    plain_saes: bool = Field(
        default=True,
        description="train SAEs of the single hooks (false: transcoders and crosscoders only)",
    )
    group: Group | None = Field(
        default=None,
        description="several processes train each SAE of a worker together, for example `{size: 2, split: "
        "latents}` (torch.distributed: NCCL where each has a GPU of its own, gloo otherwise). They end and "
        "restart as one, and a checkpoint is that of one process. null: one process",
    )
    max_lag_s: float = Field(
        default=10.0,
        gt=0,
        description="packets older than this when pulled are skipped and counted, in seconds: a "
        "trainer that cannot keep up stays at the present",
    )
    evaluate_interval_s: float = Field(
        default=2.0,
        gt=0,
        description="time between two held-out measurements of an SAE, in seconds",
    )
    evaluate: LiveEvaluationOptions | None = Field(
        default=None,
        description="put the SAEs back into the model while the run goes on (CE recovered, KL, return), in "
        "a process of its own; a host that trains then keeps its weights as often, which stops it "
        "for as long as writing them takes. null: not while it goes on",
    )
    final_train_s: float = Field(
        default=2.0,
        ge=0,
        description="training left over at the end may take this long, in seconds",
    )

    @property
    def weights_every_s(self) -> float | None:
        """As often as an SAE is evaluated."""
        if self.evaluate is None:
            return None
        return self.evaluate.every * self.sae.checkpoint_interval_s

    @model_validator(mode="after")
    def _all_fit(self) -> Self:
        """Every combination that can be asked for is valid before anything runs."""
        if self.sae.architecture in OF_SEVERAL_HOOKS:
            raise ValueError(
                f"sae.architecture {self.sae.architecture} needs several hooks: list it under "
                f"`{_LISTS[self.sae.architecture]}` and choose another architecture for `sae` (or "
                "plain_saes: false)"
            )
        for glob in self.overrides:
            self._check_plain(f"overrides[{glob!r}]", self.for_hook(glob))
            for variant in self.variants:
                self._check_plain(f"variants[{variant!r}]", self.for_hook(glob, variant))
        for variant in self.variants:
            self._check_plain(f"variants[{variant!r}]", self.for_hook("", variant))
        for coder in self._coders:
            self.for_several_hooks(coder)
        for crosscoder in self.crosscoders:
            if len(set(crosscoder.hooks)) < len(crosscoder.hooks):
                raise ValueError(f"crosscoder {crosscoder.label!r} names a hook twice")
        if self.group is not None:
            for place, config in self._configs():
                self._check_group(place, config, self.group)
        return self

    @property
    def ranks(self) -> int:
        """Processes of a worker."""
        return 1 if self.group is None else self.group.size

    @property
    def _copies(self) -> int:
        return self.ranks if self.group is not None and self.group.split == "rows" else 1

    def _configs(self) -> Iterator[tuple[str, SAEConfig]]:
        """Where each configuration that is asked for is written, and itself."""
        yield "sae", self.sae
        for glob in self.overrides:
            yield f"overrides[{glob!r}]", self.for_hook(glob)
        for variant in self.variants:
            yield f"variants[{variant!r}]", self.for_hook("", variant)
        for coder in self._coders:
            yield coder.label, self.for_several_hooks(coder)

    @staticmethod
    def _check_group(place: str, config: SAEConfig, group: GroupOptions) -> None:
        if group.split == "rows" and config.batch_rows < group.size:
            raise ValueError(
                f"group.size {group.size} ranks cannot share {place}: batch_rows {config.batch_rows}; "
                f"valid: 2..{config.batch_rows}, or split: latents"
            )
        if group.split == "latents" and (config.d_sae or group.size) < group.size:
            raise ValueError(
                f"group.size {group.size} ranks cannot share {place}: d_sae {config.d_sae}; "
                f"valid: 2..{config.d_sae}, or split: rows"
            )

    @property
    def _coders(self) -> tuple[TranscoderOptions | CrosscoderOptions, ...]:
        return (*self.transcoders, *self.crosscoders)

    @staticmethod
    def _check_plain(place: str, config: SAEConfig) -> None:
        name = config.architecture
        if name in OF_SEVERAL_HOOKS:
            raise ValueError(f"{place}: {name} needs several hooks; list it in `{_LISTS[name]}`")

    def misfits(self, workers: int, hooks: Sequence[str]) -> Iterator[Misfit]:
        """A GPU that cannot be used, SAEs of several hooks that may not meet, and SAEs to start from
        that do not fit."""
        yield from super().misfits(workers, hooks)
        for path, name in self._hooks_by_place():
            if not any(matches(name, glob) for glob in hooks):
                yield Misfit(
                    ("options", *path),
                    f"this sink does not get that hook: its `hooks` are {list(hooks)}",
                    name,
                    "add it to the sink's `hooks`",
                )
        coders = self._coders
        if coders and workers > 1:
            yield Misfit(
                ("workers",),
                f"workers share the hooks among them, so the hooks of {coders[0].label} may be with "
                "different ones, and it needs the rows of all",
                workers,
                "set it to 1, or move the transcoders and crosscoders to a sink of their own with one "
                "worker and `plain_saes: false`",
            )
        configs = {glob: self._configs_at(glob) for glob in self.start_from}
        for glob, start, error in unusable(self.start_from, configs):
            key = () if glob == "*" and len(self.start_from) == 1 else (glob,)
            yield Misfit(
                ("options", "start_from", *key),
                f"cannot be gone on from: {error}",
                start.path,
                getattr(error, "alternative", "name another one"),
            )

    def _hooks_by_place(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Where each hook of an SAE of several is named, and its name."""
        for index, transcoder in enumerate(self.transcoders):
            yield ("transcoders", index, "input"), transcoder.input
            yield ("transcoders", index, "output"), transcoder.output
        for index, crosscoder in enumerate(self.crosscoders):
            for place, name in enumerate(crosscoder.hooks):
                yield ("crosscoders", index, "hooks", place), name

    def _configs_at(self, glob: str) -> dict[str, SAEConfig]:
        """Label -> configuration of the SAEs that an entry of `start_from` is for, as far as that
        can be said without a model."""
        for coder in self._coders:
            if coder.label == glob:
                return {glob: self.for_several_hooks(coder)}
        for variant in self.variants:
            if glob.endswith(f"#{variant}"):
                return {glob: self.for_hook(glob.removesuffix(f"#{variant}"), variant)}
        return self.saes_of(glob)

    def start_of(self, label: str, hook: str) -> StartFrom | None:
        """Where the SAE called `label` begins; None: at random weights.

        hook: whose rows it takes; of an SAE of several hooks, its label. A glob is for SAEs of single
        hooks: what fits these fits none of several.
        """
        if any(label == coder.label for coder in self._coders):
            return self.start_from.get(label)
        return start_for(self.start_from, label, hook)

    def labels(self, hooks: Sequence[str]) -> list[str]:
        """SAEs of these hooks, and transcoders.

        Raises:
            ValueError: two SAEs would have one name.
        """
        labels = [label for hook in hooks for label in self.saes_of(hook)]
        labels += [coder.label for coder in self._coders]
        twice = [label for label, number in Counter(labels).items() if number > 1]
        if twice:
            raise ValueError(
                f"two SAEs would be called {twice[0]!r}: a hook, a variant (`<hook>#<name>`), a "
                "transcoder (`<input>-><output>`) or a crosscoder; rename one, or leave one out"
            )
        return labels

    def planned_saes(self, hooks: Sequence[str]) -> Iterator[PlannedSAE]:
        """SAEs of these hooks, then those of several hooks."""
        for hook in hooks:
            for label, config in self.saes_of(hook).items():
                yield PlannedSAE(label, hook, config, device=self.device, copies=self._copies)
        yield from self.saes_of_several_hooks()

    def saes_of_several_hooks(self) -> Iterator[PlannedSAE]:
        """Transcoders, then crosscoders."""
        for coder in self._coders:
            first, *others = coder.hooks
            config = self.for_several_hooks(coder)
            yield PlannedSAE(coder.label, first, config, tuple(others), self.device, self._copies)

    def for_hook(self, hook: str, variant: str | None = None) -> SAEConfig:
        """The configuration of one hook's SAE.

        Raises:
            ValueError: an override does not fit.
        """
        merged = self.sae.model_dump(exclude_unset=True)
        for glob, fields in self.overrides.items():
            if matches(hook, glob):
                merged.update(fields)
        if variant is not None:
            merged.update(self.variants[variant])
        return SAEConfig.model_validate(merged)

    def saes_of(self, hook: str) -> dict[str, SAEConfig]:
        """Label in metrics and folders -> configuration, of every SAE on this hook alone."""
        if not self.plain_saes:
            return {}
        if not self.variants:
            return {hook: self.for_hook(hook)}
        return {f"{hook}#{name}": self.for_hook(hook, name) for name in self.variants}

    def for_several_hooks(self, coder: TranscoderOptions | CrosscoderOptions) -> SAEConfig:
        """The configuration of one transcoder or crosscoder.

        Raises:
            ValueError: its fields do not fit.
        """
        merged = self.sae.model_dump(exclude_unset=True)
        for only_plain in ("architecture", "target_l0", "matryoshka_widths"):
            merged.pop(only_plain, None)
        name = TRANSCODER if isinstance(coder, TranscoderOptions) else CROSSCODER
        return SAEConfig.model_validate(merged | {"architecture": name} | coder.sae)
