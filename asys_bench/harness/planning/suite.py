"""`asys.suite/1`: what a suite file says. `suite_file.load_suite` reads, checks and expands it."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from asys_bench.config.sections.run import Integer, Number, PluginName, Section, Text, as_list
from asys_bench.contracts.text_form import TextForm
from asys_bench.harness.results.result_run import Level

SCHEMA_ID: Final = "asys.suite/1"
CaseId = Annotated[
    str,
    TextForm(
        r"^[a-z0-9][a-z0-9_.-]{0,99}$",
        "a case's name in small letters",
        "use a to z, digits, `_`, `.` and `-`, a letter or digit first, at most 100",
    ),
]
ReferenceName = Annotated[
    str,
    TextForm(
        r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$",
        "a reference's name",
        "use letters, digits, `_`, `.` and `-`, a letter or `_` first, at most 64",
    ),
]


class Matrix(Section):
    """Several values: the case is expanded into one contender per value."""

    matrix: tuple[Any, ...] = Field(min_length=1, description="values, one contender each")


class EnvironmentCheck(Section):
    """One demand on the machine; `asys-bench check` lists the known names."""

    want: Text | Integer | None = Field(default=None, description="the value it must have")
    min: Number | None = Field(default=None, description="least value")
    p99_max: Number | None = Field(default=None, description="limit of a measured p99")
    max: Number | None = Field(default=None, description="greatest value")
    level: Level = Field(default=Level.WARN, description="note | warn | error (refuses the run)")


class Warmup(Section):
    """What happens in a round before anything counts."""

    until: Literal["steady", "none"] = Field(
        default="steady", description="steady: until five chunks agree within 15 %, or `max_s`"
    )
    max_s: Number = Field(default=2.0, ge=0, le=60, description="longest warm-up, in seconds")


class NoiseLimits(Section):
    """Evidence on which a round counts as disturbed; null shows the figure and never acts on it."""

    steal_ratio: Number | None = Field(default=0.02, gt=0, description="stolen time over wall time")
    spin_gap_us: Number | None = Field(
        default=2000, gt=0, description="longest gap of a spinning thread around the round"
    )
    pressure_ratio: Number | None = Field(
        default=None, gt=0, description="PSI cpu stall time over wall time"
    )
    max_share: Number = Field(
        default=0.5,
        gt=0,
        le=1,
        description="with more of its rounds noisy, a judged case is invalid",
    )
    involuntary_per_s: Number | None = Field(
        default=None, gt=0, description="involuntary context switches per second"
    )


class Defaults(Section):
    """How every case is measured, unless it says otherwise."""

    rounds: Integer = Field(default=24, ge=1, le=10_000, description="rounds of an unjudged case")
    looks: tuple[Integer, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=8,
        description="rounds after which verdicts are looked at, rising; null: once, after `rounds`",
    )
    budget_s: Number | None = Field(
        default=None,
        gt=0,
        description="seconds that the whole run is to take: cases that the first look leaves open go on "
        "only as far as the time allows, those that seem to take the fewest seconds first; null: all go on",
    )
    samples_per_round: Integer = Field(
        default=2000, ge=1, le=10_000_000, description="samples a round records per metric"
    )
    process: Literal["fresh", "forked"] = Field(
        default="fresh",
        description="fresh: a new interpreter per round; forked: a child of one that has imported "
        "everything and is a new one in each block, cheaper; the rounds of a block share a memory layout",
    )
    warmup: Warmup = Field(default_factory=Warmup)
    timeout_s: Number = Field(default=60, gt=0, le=3600, description="longest round, in seconds")
    confidence: Number = Field(default=0.95, ge=0.5, lt=1, description="two-sided, per target")
    min_events: Integer = Field(
        default=1000, ge=1, description="opportunities without which a count of 0 proves nothing"
    )
    on_inconclusive: Literal["fail", "warn"] = Field(
        default="fail", description="fail: exit code 3; warn: 0, with the verdict left as it is"
    )
    noise: NoiseLimits = Field(default_factory=NoiseLimits)


class Reference(Section):
    """Something to compare with; what is left out is taken from the case that names it."""

    backend: PluginName | None = Field(default=None, description="bus plugin")
    pipeline: Text | None = Field(default=None, description="configuration, as `asys-run` takes it")
    params: dict[str, Any] = Field(default_factory=dict, description="laid over the case's params")
    set: dict[str, Any] = Field(default_factory=dict, description="laid over the pipeline's fields")


class Baseline(Section):
    """Another installation that runs the same cases, interleaved with this one."""

    python: Text = Field(description="its Python interpreter, e.g. `/path/to/old/venv/bin/python`")


class CaseConfig(Section):
    """One case of the suite."""

    id: CaseId = Field(description="spells topology and quantity: `bus.one_to_three.throughput`")
    scenario: PluginName = Field(description="scenario plugin (entry point group `asys.scenario`)")
    backend: PluginName | Matrix | None = Field(default=None, description="bus plugin, or a matrix")
    pipeline: Text | Matrix | None = Field(
        default=None, description="configuration, the same file that `asys-run` loads, or a matrix"
    )
    set: dict[str, Any] = Field(
        default_factory=dict, description="pipeline fields to override: `bus.backend: cpp_spmc`"
    )
    params: dict[str, Any] = Field(
        default_factory=dict, description="the scenario's options; a value may be a matrix"
    )
    gate: Annotated[tuple[Text, ...], BeforeValidator(as_list)] | None = Field(
        default=None,
        description="which members of the matrix are judged; null: all; []: none",
    )
    targets: Annotated[tuple[Text, ...], BeforeValidator(as_list)] = Field(
        default=(), description="`metric.stat op bound`"
    )
    rounds: Integer | None = Field(default=None, ge=1, le=10_000)
    looks: tuple[Integer, ...] | None = Field(default=None, min_length=1, max_length=8)
    samples_per_round: Integer | None = Field(default=None, ge=1, le=10_000_000)
    warmup: Warmup | None = None
    timeout_s: Number | None = Field(default=None, gt=0, le=3600)
    min_events: Integer | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        if self.backend is not None and self.pipeline is not None:
            raise ValueError(
                "give `backend` or `pipeline`, not both (a pipeline names its backend)"
            )
        if self.set and self.pipeline is None:
            raise ValueError("`set` overrides fields of a pipeline; there is none here")
        return self


class Suite(Section):
    """The whole file."""

    schema_id: Literal["asys.suite/1"] = Field(alias="schema", description="format and version")
    name: CaseId = Field(description="name of the suite; part of the result's file name")
    description: str = Field(default="", max_length=1000)
    machine_class: Text = Field(default="any", description="results compare within one class")
    seed: Integer = Field(default=0, ge=0, lt=1 << 32)
    environment: dict[str, EnvironmentCheck] = Field(default_factory=dict)
    defaults: Defaults = Field(default_factory=Defaults)
    references: dict[ReferenceName, Reference] = Field(default_factory=dict)
    baseline: Baseline | None = None
    plugins: dict[Literal["backend", "scenario", "host", "kernel", "sink"], tuple[Text, ...]] = (
        Field(
            default_factory=dict,
            description="plugins that are no entry points, by kind: `package.module:object`, or "
            "`folder/file.py:object` relative to the suite and below its folder",
        )
    )
    allow_dotted_plugins: bool = Field(
        default=False,
        description="import what `plugins` names: code is run by its dotted path, so say so",
    )
    cases: tuple[CaseConfig, ...] = Field(min_length=1)

    def to_plain(self) -> dict[str, Any]:
        """As plain JSON-able data, under the names that a file uses."""
        return self.model_dump(mode="json", by_alias=True)
