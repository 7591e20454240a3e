"""The file of `asys-i-bench --config FILE`: which suite, with what, and where results go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from asys_bench.cli.bench_files import ALIASES, WRITTEN, bench_reporters
from asys_bench.config.diagnosis import diagnose
from asys_bench.config.document import read_document
from asys_bench.config.problems import ConfigError, Origin, Problem, did_you_mean
from asys_bench.config.sections.run import Section, Text, as_list
from asys_bench.config.sources import find_config
from asys_bench.harness.planning.suite_file import find_suite


class BenchConfig(Section):
    """`configs/benchmark.yaml`."""

    schema_id: Literal["asys.bench/1"] = Field(alias="schema", description="format and version")
    suite: Text = Field(description="suite file, relative to this file or as `run` takes it")
    out: Path = Field(default=Path("runs/bench"), description="folder for results")
    set: Annotated[tuple[Text, ...], BeforeValidator(as_list)] = Field(
        default=(), description="`path=value` overrides of the suite"
    )
    reports: Annotated[tuple[Text, ...], BeforeValidator(as_list)] = Field(
        default=WRITTEN, description="reporters whose documents are written beside the result"
    )
    folder: Path = Field(default=Path(), description="of this file; filled in when it is read")

    @property
    def suite_path(self) -> str:
        """The suite, found beside this file or by its name."""
        beside = self.folder / self.suite
        return str(beside) if beside.is_file() else self.suite


def read_bench_config(name: str) -> BenchConfig:
    """The file `name`, or a shipped one.

    Raises:
        ConfigError: it is missing, or a field is wrong (by file and line).
    """
    path = find_config(name)
    if path is None:
        raise ConfigError(
            [Problem.at(Origin(name), "no such file, here or among the shipped ones")]
        )
    root = read_document(path, name)
    try:
        config = BenchConfig.model_validate(root.to_data())
    except ValidationError as error:
        raise ConfigError(diagnose(error, BenchConfig, root)) from None
    config = config.model_copy(update={"folder": path.resolve().parent})
    if find_suite(config.suite_path) is None:
        origin = root.content["suite"].origin
        raise ConfigError([Problem.at(origin, "no such suite", path="suite", value=config.suite)])
    valid = {*ALIASES, *bench_reporters()}
    unknown = [name for name in config.reports if name not in valid]
    if unknown:
        origin = root.content["reports"].origin
        raise ConfigError(
            [
                Problem.at(
                    origin, "no such reporter", path="reports", value=name, valid=sorted(valid),
                    fix=did_you_mean(name, valid) or "use one of those",
                )
                for name in unknown
            ]
        )  # fmt: skip
    return config
