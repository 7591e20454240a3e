"""What can be set of a feature index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from asys_bench.change.feature_index.index import WORKING_BYTES
from asys_bench.change.sae_choice import OF_RUN, missing_folders
from asys_bench.contracts.sink import Misfit, SinkOptions


class FeatureIndexOptions(SinkOptions):
    """Options of the `feature_index` sink."""

    saes: dict[str, str] = Field(
        default_factory=lambda: {"*": OF_RUN},
        min_length=1,
        description="fnmatch glob over hook names -> folder of the SAE whose features are indexed, as of "
        f"`sae_watch`; `{OF_RUN}`: the newest checkpoint of this run's own. The last glob that matches wins, "
        "hooks without one are passed over",
    )
    cpu_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="most of a core that reading rows takes, (0, 1], by the clock: a busy machine gives it "
        "less. Calls beyond it are left out by chance. 1: all rows, and it may lag behind",
    )
    max_mib: float = Field(
        default=256,
        gt=WORKING_BYTES / (1 << 20),
        le=1 << 20,
        description="most MiB of a hook's index in memory, beside its SAE: 40 examples of each of 24,576 "
        "features fit into 256, of more features fewer",
    )

    def misfits(self, workers: int, hooks: Sequence[str]) -> Iterator[Misfit]:
        """Folders that are not there."""
        return missing_folders(self.saes)
