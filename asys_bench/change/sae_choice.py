"""Which SAE a sink reads the features of, by hook: option `saes` of `probe` and `feature_index`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from asys_bench.contracts.names import matches
from asys_bench.contracts.sink import Misfit
from asys_bench.sinks.sae.start import missing

OF_RUN = "run"
"""In the place of a folder: the SAE that this run trains."""


def missing_folders(saes: Mapping[str, str]) -> Iterator[Misfit]:
    """Folders that are not there."""
    named = {glob: folder for glob, folder in saes.items() if folder != OF_RUN}
    return missing(named, f"name the folder of an SAE or of a run, or write {OF_RUN}")


def sae_of(saes: Mapping[str, str], hook: str) -> str | None:
    """The folder, or `OF_RUN`; None: no glob is of this hook. The last glob that matches wins."""
    found = [folder for glob, folder in saes.items() if matches(hook, glob)]
    return found[-1] if found else None
