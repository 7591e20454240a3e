"""Options of the sink `probe`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field

from asys_bench.change.probe.blocks import BLOCK_LABELS
from asys_bench.change.probe.targets import Kind
from asys_bench.change.sae_choice import OF_RUN, missing_folders
from asys_bench.config.sections.run import as_list
from asys_bench.contracts.names import matches
from asys_bench.contracts.sink import Misfit, SinkOptions


class ProbeOptions(SinkOptions):
    """Options of the `probe` sink."""

    learn: Annotated[tuple[str, ...], BeforeValidator(as_list)] = Field(
        default=("*",),
        min_length=1,
        description="fnmatch globs over names of labels that probes learn; what is a block is never one",
    )
    kinds: dict[str, Kind] = Field(
        default_factory=dict,
        description="name of a label -> `class` (logistic regression, AUC) or `number` (ridge regression, "
        "R2); others are classes where their values are few whole numbers or texts",
    )
    block: str | None = Field(
        default=None,
        description="label whose equal values make a block, which is trained on or held out as a whole. "
        f"null: the first of {', '.join(BLOCK_LABELS)} that comes, else sequences of a text or places of "
        "an image, else 64 calls in a row",
    )
    saes: dict[str, str] = Field(
        default_factory=dict,
        description="fnmatch glob over hook names -> SAE whose features a probe reads, as of `sae_watch`; "
        f"`{OF_RUN}`: the newest checkpoint of this run's own. The last glob that matches wins, hooks "
        "without one are read as they are",
    )
    window_rows: int = Field(
        default=16384,
        ge=64,
        le=1 << 24,
        description="most rows of a hook that probes are fitted to",
    )
    window_mib: float = Field(default=64, gt=0, description="most MiB of them")
    evaluate_interval_s: float = Field(
        default=10.0, ge=0, le=86400, description="seconds between two fits of a hook, at the least"
    )
    l2: float = Field(
        default=1.0, gt=0, description="penalty of squared weights, for features of unit variance"
    )

    def misfits(self, workers: int, hooks: Sequence[str]) -> Iterator[Misfit]:
        """Folders that are not there."""
        return missing_folders(self.saes)

    def learns(self, name: str) -> bool:
        """Whether a probe is fitted to the label `name`."""
        if name == self.block or (self.block is None and name in BLOCK_LABELS):
            return False
        return any(matches(name, glob) for glob in self.learn)
