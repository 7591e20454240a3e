"""What every section of the configuration is built from."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=True
    )


def _refuse_bool(value: object) -> object:
    """YAML 1.1 reads `yes`, `no`, `on` and `off` as booleans, which pydantic would take as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not a yes/no value")
    return value


def as_list(value: object) -> object:
    """One element may be written without the brackets of a list."""
    return [value] if isinstance(value, str | dict) else value


NotBool = BeforeValidator(_refuse_bool)
Integer = Annotated[int, NotBool]
Number = Annotated[float, NotBool]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
PluginName = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
]
EntryName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]{1,48}$")]
"""The name of a sink or monitor; it becomes part of process, file and metric names."""
