"""One case of a suite -> its contenders: matrix members, their references and their baseline."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from asys_bench.config import ConfigError, load_config
from asys_bench.config.problems import did_you_mean
from asys_bench.config.schema import config_sha256
from asys_bench.contracts.scenario import MetricKind, MetricSpec, ScenarioPlugin
from asys_bench.harness.judging.stats import rounds_to_decide, samples_to_decide
from asys_bench.harness.planning.contender import Contender, PlacedTarget
from asys_bench.harness.planning.plan import Look, planned_looks
from asys_bench.harness.planning.suite import CaseConfig, Matrix, Reference, Suite
from asys_bench.harness.planning.suite_document import SuiteDocument
from asys_bench.harness.planning.targets import BASELINE, Target, TargetError, parse_target
from asys_bench.harness.plugins import backend_plugin, metrics_of, scenario_plugin
from asys_bench.harness.results.result_run import Role, TargetKind
from asys_bench.registry import PluginError, UnknownPluginError


def expand_case(suite: Suite, index: int, document: SuiteDocument) -> Iterator[Contender]:
    """The contenders of `suite.cases[index]`; problems are noted in `document`."""
    return _CaseExpansion(suite, index, document).run()


class _CaseExpansion:
    def __init__(self, suite: Suite, index: int, document: SuiteDocument) -> None:
        self._suite, self._document = suite, document
        self._case: CaseConfig = suite.cases[index]
        self._path = ("cases", index)

    def run(self) -> Iterator[Contender]:
        case, document = self._case, self._document
        try:
            plugin = scenario_plugin(case.scenario)
        except PluginError as error:
            document.problem((*self._path, "scenario"), str(error), value=case.scenario)
            return
        given = {"backend": case.backend, "pipeline": case.pipeline}
        for kind, value in given.items():
            if value is not None and plugin.takes != kind:
                message = f"scenario `{case.scenario}` takes {plugin.takes}, not a {kind}"
                document.problem((*self._path, kind), message, "remove it")
                return
        if plugin.takes != "nothing" and given[plugin.takes] is None:
            message = f"scenario `{case.scenario}` needs a {plugin.takes}"
            document.problem(self._path, message, f"add `{plugin.takes}: ...`")
            return
        looks = self._looks()
        targets = self._targets(plugin, looks)
        members = list(self._members())
        self._check_gate(members)
        for label, subject, params in members:
            identity = f"{case.id}[{label}]" if label else case.id
            yield from self._with_references(plugin, identity, subject, params, targets, looks)

    def _looks(self) -> tuple[Look, ...]:
        case, defaults = self._case, self._suite.defaults
        if case.looks or (defaults.looks and case.rounds is None):
            rounds = case.looks or defaults.looks or ()
        else:
            rounds = (case.rounds or defaults.rounds,)
        try:
            return planned_looks(rounds, defaults.confidence)
        except ValueError as error:
            self._document.problem((*self._path, "looks"), str(error))
            return planned_looks((1,), defaults.confidence)

    def _targets(self, plugin: ScenarioPlugin, looks: tuple[Look, ...]) -> list[PlacedTarget]:
        found = []
        metrics = metrics_of(plugin)
        references = {*self._suite.references, *([BASELINE] if self._suite.baseline else [])}
        for index, text in enumerate(self._case.targets):
            place = (*self._path, "targets", index)
            try:
                target = parse_target(text, metrics, references)
                self._check_decidable(target, metrics[target.metric], looks[-1])
            except TargetError as error:
                self._document.problem(place, error.message, error.fix, error.valid, value=text)
                continue
            found.append(PlacedTarget(target, self._document.where(place)))
        return found

    def _check_decidable(self, target: Target, spec: MetricSpec, last: Look) -> None:
        """Raise TargetError when even a perfect run could not pass it."""
        if target.kind is TargetKind.INVARIANT:
            return
        if target.kind is TargetKind.QUANTILE and spec.kind is MetricKind.SAMPLES:
            assert target.quantile is not None
            tail = max(target.quantile, 1 - target.quantile)
            need = samples_to_decide(tail, 1 - last.alpha)
            samples = self._case.samples_per_round or self._suite.defaults.samples_per_round
            if samples * last.rounds < need:
                raise TargetError(
                    f"{samples} samples x {last.rounds} rounds can never decide {target.stat}: "
                    f"it takes {need}", "raise samples_per_round, rounds or looks",
                )  # fmt: skip
            return
        need = 2 if target.stat in ("mean", "rate") else rounds_to_decide(last.alpha)
        if last.rounds < need:
            raise TargetError(
                f"{last.rounds} rounds can never decide it: it takes {need} at this confidence",
                "raise rounds or looks",
            )

    def _members(self) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
        """(label, backend or pipeline, params) of each member of the matrix."""
        case = self._case
        subject = case.backend if case.backend is not None else case.pipeline
        subjects = list(subject.matrix) if isinstance(subject, Matrix) else [subject]
        axes = {k: v["matrix"] for k, v in case.params.items() if _is_matrix(v)}
        for chosen, *values in itertools.product(subjects, *axes.values()):
            labels = [str(chosen)] if len(subjects) > 1 else []
            labels += [f"{key}={value}" for key, value in zip(axes, values, strict=True)]
            params = {**case.params, **dict(zip(axes, values, strict=True))}
            yield ",".join(labels), chosen, params

    def _check_gate(self, members: list[tuple[str, str | None, dict[str, Any]]]) -> None:
        subjects = [str(subject) for _, subject, _ in members]
        for index, name in enumerate(self._case.gate or ()):
            if name not in subjects:
                fix = did_you_mean(name, subjects) or "name a member of the matrix"
                place = (*self._path, "gate", index)
                self._document.problem(place, "is no member", fix, subjects, value=name)

    def _with_references(
        self,
        plugin: ScenarioPlugin,
        identity: str,
        subject: str | None,
        params: dict[str, Any],
        targets: list[PlacedTarget],
        looks: tuple[Look, ...],
    ) -> Iterator[Contender]:
        case, suite = self._case, self._suite
        gated = bool(targets) and (case.gate is None or str(subject) in case.gate)
        own: list[PlacedTarget] = []
        others: dict[str, Contender] = {}
        for placed in targets:
            name = placed.target.reference
            if name is None:
                own.append(placed)
                continue
            if name == BASELINE:
                assert suite.baseline is not None
                other = self._contender(
                    plugin, f"baseline@{identity}", Role.BASELINE, subject, params, looks,
                    python=suite.baseline.python,
                )  # fmt: skip
            else:
                other = self._reference(plugin, name, subject, params, looks)
            others[other.id] = other
            own.append(PlacedTarget(placed.target, placed.where, other.id))
        yield self._contender(plugin, identity, Role.CASE, subject, params, looks, own, gated)
        yield from others.values()

    def _reference(
        self,
        plugin: ScenarioPlugin,
        name: str,
        subject: str | None,
        params: dict[str, Any],
        looks: tuple[Look, ...],
    ) -> Contender:
        reference: Reference = self._suite.references[name]
        given = reference.backend if plugin.takes == "backend" else reference.pipeline
        merged = {**params, **reference.params}
        inherited = given is None
        # One that takes nothing from a member of the matrix is shared by all of them.
        shared = {k: v for k, v in merged.items() if not _is_matrix(v)}
        key = [given or subject, shared, inherited and name, sorted(reference.set.items())]
        label = _digest(key) if case_has_matrix(self._case) else ""
        identity = f"{name}@{self._case.id}" + (f"[{label}]" if label else "")
        return self._contender(
            plugin, identity, Role.REFERENCE, given or subject, merged, looks,
            sets={**(self._case.set if inherited else {}), **reference.set}, family=name,
        )  # fmt: skip

    def _contender(
        self,
        plugin: ScenarioPlugin,
        identity: str,
        role: Role,
        subject: str | None,
        params: dict[str, Any],
        looks: tuple[Look, ...],
        targets: list[PlacedTarget] | None = None,
        gated: bool = False,
        *,
        sets: Mapping[str, Any] | None = None,
        family: str | None = None,
        python: str | None = None,
    ) -> Contender:
        case, defaults, document = self._case, self._suite.defaults, self._document
        unavailable = plugin.unavailable()
        try:
            options = plugin.options.model_validate(params)
            unavailable = unavailable or plugin.unavailable_for(options)
            params = options.model_dump(mode="json")
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                place = (*self._path, "params", *detail["loc"])
                valid = sorted(plugin.options.model_fields)
                document.problem(place, f"{identity}: {detail['msg']}", valid=valid)
        overrides = tuple(f"{k}={json.dumps(v)}" for k, v in (sets or case.set).items())
        digest = pipeline_file = None
        if plugin.takes == "backend" and subject is not None:
            unavailable = unavailable or self._backend_problem(subject)
        if plugin.takes == "pipeline" and subject is not None:
            beside = self._document.folder / subject
            pipeline_file = str(beside) if beside.is_file() else subject
            digest = self._pipeline_sha256(pipeline_file, overrides)
        bounds: dict[str, list[tuple[str, float]]] = {}
        for placed in targets or ():
            target = placed.target
            if target.quantile is not None and target.reference is None:
                bounds.setdefault(target.metric, []).append((target.op.value, target.bound))
        return Contender(
            id=identity,
            family=family or case.id,
            where=document.where((*self._path, "id")),
            role=role,
            gated=gated,
            scenario=plugin.name,
            backend=subject if plugin.takes == "backend" else None,
            pipeline=subject if plugin.takes == "pipeline" else None,
            pipeline_file=pipeline_file,
            sets=overrides,
            params=params,
            rounds=case.rounds or defaults.rounds,
            looks=looks if targets or role is not Role.CASE else (),
            samples=case.samples_per_round or defaults.samples_per_round,
            warmup=case.warmup or defaults.warmup,
            timeout_s=case.timeout_s or defaults.timeout_s,
            confidence=defaults.confidence,
            min_events=case.min_events or defaults.min_events,
            noise=defaults.noise,
            python=python,
            targets=tuple(targets or ()),
            unavailable=unavailable,
            pipeline_sha256=digest,
            bounds=bounds,
        )

    def _backend_problem(self, name: str) -> str | None:
        try:
            return backend_plugin(name).unavailable()
        except PluginError as error:
            if isinstance(error, UnknownPluginError):
                self._document.problem((*self._path, "backend"), str(error), value=name)
            return str(error)

    def _pipeline_sha256(self, name: str, overrides: tuple[str, ...]) -> str | None:
        try:
            return config_sha256(load_config(name, overrides, env={}).config)
        except ConfigError as error:
            if not self._document.problems:
                self._document.problem((*self._path, "pipeline"), str(error), value=name)
            return None


def case_has_matrix(case: CaseConfig) -> bool:
    """The case expands to several contenders."""
    return (
        isinstance(case.backend, Matrix)
        or isinstance(case.pipeline, Matrix)
        or any(_is_matrix(value) for value in case.params.values())
    )


def _is_matrix(value: object) -> bool:
    return (
        isinstance(value, dict) and set(value) == {"matrix"} and isinstance(value["matrix"], list)
    )


def _digest(key: object) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:6]
