"""`storage`: a copy of the run in an object store, which outlives its disk."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from asys_bench.config.sections.run import Number, Section
from asys_bench.store.uri import place_of


def _checked(uri: str) -> str:
    place_of(uri, "run")
    return uri


class StorageConfig(Section):
    """Where closed shards, complete checkpoints and a run's documents are copied to by a worker."""

    uri: Annotated[str, AfterValidator(_checked)] | None = Field(
        default=None,
        description="`s3://bucket/prefix`, `gs://bucket/prefix` or `file:///folder`; `{run_id}` stands "
        "for the run's id, and one place holds one run. Credentials come from the environment (AWS_..., "
        "GOOGLE_...), as does a server of one's own (AWS_ENDPOINT_URL). Shards are closed after five minutes "
        "then. null: no copy",
    )
    delete_local_after_s: Number | None = Field(
        default=None,
        ge=0,
        description="closed shards of the archive are deleted here that many seconds after they were "
        "read back from the store; null: never. `max_gib` deletes on its own, sent or not",
    )
