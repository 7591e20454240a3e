"""`resources`: how the machine is shared between the host and the workers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from asys_bench.config.section import Integer, NotBool, Section


class ResourcesConfig(Section):
    """Threads and priorities."""

    host_threads: Annotated[int, Field(ge=1, le=4096), NotBool] | None = Field(
        default=None,
        description="torch threads of the host process; null leaves them as they are, "
        "because their number can change the host's results",
    )
    worker_threads: Integer = Field(
        default=1, ge=1, le=4096, description="torch threads of each worker process"
    )
    worker_nice: Integer = Field(
        default=5,
        ge=0,
        le=19,
        description="niceness of worker processes (0 = as the host, 19 = weakest), "
        "so that the host wins when cores are short",
    )
