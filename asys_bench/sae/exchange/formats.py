"""The formats that SAEs are exported to, by the name on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from asys_bench.sae.exchange.dictionary_learning import FOLDER, write_dictionary_learning
from asys_bench.sae.exchange.saelens import write_saelens
from asys_bench.sae.exchange.sparsify import write_sparsify
from asys_bench.sae.exchange.weights import SAEWeights


@dataclass(frozen=True)
class Format:
    """A checkpoint format of another tool."""

    name: str
    opens_with: str
    """The call that opens an exported folder, with `{folder}` for it."""
    write: Callable[[SAEWeights, Path], None]
    """Fills an existing empty folder. Raises ExchangeError for what the format cannot express."""


FORMATS: Mapping[str, Format] = {
    known.name: known
    for known in (
        Format("saelens", 'sae_lens.SAE.load_from_disk("{folder}")', write_saelens),
        Format("sparsify", 'sparsify.SparseCoder.load_from_disk("{folder}")', write_sparsify),
        Format(
            "dictionary_learning",
            f'dictionary_learning.utils.load_dictionary("{{folder}}/{FOLDER}", "cpu")',
            write_dictionary_learning,
        ),
    )
}
