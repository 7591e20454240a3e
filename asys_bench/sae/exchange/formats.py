"""The formats that SAEs are exported to and taken over from, by the name on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.checkpoint.native_format import WEIGHTS_FILE as SAELENS_FILE
from asys_bench.sae.exchange.dictionary_learning import (
    FOLDER,
    read_dictionary_learning,
    write_dictionary_learning,
)
from asys_bench.sae.exchange.dictionary_learning import WEIGHTS_FILE as DICTIONARY_FILE
from asys_bench.sae.exchange.saelens import as_sae, read_saelens, write_saelens
from asys_bench.sae.exchange.sparsify import WEIGHTS_FILE as SPARSIFY_FILE
from asys_bench.sae.exchange.sparsify import read_sparsify, write_sparsify
from asys_bench.sae.exchange.weights import ExchangeError, SAEWeights
from asys_bench.system.files.below import is_file


@dataclass(frozen=True)
class Format:
    """A checkpoint format of another tool."""

    name: str
    opens_with: str
    """The call that opens an exported folder, with `{folder}` for it."""
    write: Callable[[SAEWeights, Path], None]
    """Fills an existing empty folder. Raises ExchangeError for what the format cannot express."""
    read: Callable[[Path], SAEWeights]
    """Raises CheckpointError for a damaged folder, ExchangeError for what weights cannot express."""
    marks: tuple[str, ...]
    """Files by which a folder of this format is known."""


FORMATS: Mapping[str, Format] = {
    known.name: known
    for known in (
        Format(
            "saelens",
            'sae_lens.SAE.load_from_disk("{folder}")',
            write_saelens,
            read_saelens,
            (SAELENS_FILE,),
        ),
        Format(
            "sparsify",
            'sparsify.SparseCoder.load_from_disk("{folder}")',
            write_sparsify,
            read_sparsify,
            (SPARSIFY_FILE,),
        ),
        Format(
            "dictionary_learning",
            f'dictionary_learning.utils.load_dictionary("{{folder}}/{FOLDER}", "cpu")',
            write_dictionary_learning,
            read_dictionary_learning,
            (f"{FOLDER}/{DICTIONARY_FILE}", DICTIONARY_FILE),
        ),
    )
}


def format_of(folder: Path) -> str | None:
    """The format of an SAE's folder, by its files; None when it holds no SAE."""
    for known in FORMATS.values():
        if any(is_file(folder / mark) for mark in known.marks):
            return known.name
    return None


def import_sae(folder: Path | str, name: str = "auto") -> tuple[SparseAutoencoder, dict[str, Any]]:
    """The SAE in one folder as one of ours (of raw rows), with its metadata.

    name: of its format; auto tells it by the files.

    Raises:
        CheckpointError: a file is missing, damaged or inconsistent.
        ExchangeError: no SAE is there, or one that cannot be taken over.
    """
    folder = Path(folder)
    found = format_of(folder) if name == "auto" else name
    if found is None:
        marks = ", ".join(mark for known in FORMATS.values() for mark in known.marks)
        raise ExchangeError(
            str(folder),
            f"no SAE is there (none of {marks})",
            "name the folder that holds the files",
        )
    return as_sae(FORMATS[found].read(folder), folder)
