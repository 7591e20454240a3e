"""`pool`: the receivers that `asys-run pool` keeps on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from asys_bench.config.sections.run import EntryName, Number, Section, Text, as_list


class PoolGroup(Section):
    """Hooks that one receiver takes, and what of a node it gets."""

    hooks: Annotated[tuple[Text, ...], BeforeValidator(as_list)] = Field(
        default=("*",), min_length=1, description="fnmatch globs over the names of hooks"
    )
    cpus: Number = Field(default=1, ge=0, description="CPUs of its node that Ray sets aside")
    gpus: Number = Field(
        default=0,
        ge=0,
        description="GPUs of its node that Ray sets aside; several are taken all at once or not at all",
    )


class PoolConfig(Section):
    """Receivers on a Ray cluster; `asys-run pool` starts them, hosts find them in the address book."""

    name: EntryName = Field(default="trainers", description="a cluster has one pool of a name")
    book: Text | None = Field(
        default=None,
        description="address book that the receivers write themselves into: a folder that all nodes "
        "see, or `s3://`, `gs://`, `file://`",
    )
    keys: Path | None = Field(
        default=None,
        description="folder of keys (`asys-run keys`), on every node; null: receivers listen on "
        "127.0.0.1, for a cluster of one machine",
    )
    groups: dict[EntryName, PoolGroup] = Field(
        default_factory=lambda: {"all": PoolGroup()},
        min_length=1,
        description="a receiver each, by name",
    )
    idle_ttl_s: Number | None = Field(
        default=None,
        gt=0,
        description="a receiver that no host is connected to for so long leaves, and gives back what it "
        "had of its node; null: never",
    )
