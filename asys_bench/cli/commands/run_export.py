"""`asys-run export`: write a run's SAEs, or one SAE, in another tool's checkpoint format.

What each format can express:

  saelens              everything; BatchTopK and Matryoshka as JumpReLU with their threshold
  sparsify             topk, relu (as TopK with k = d_sae), transcoders of one width
  dictionary_learning  everything but transcoders

An SAE that the format cannot express is left out, with the reason and what to do instead.

Exit codes: 0 all were written · 1 some were not · 2 there is no SAE, or the command line is wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE

FORMAT_NAMES = ("saelens", "sparsify", "dictionary_learning")
"""Of `sae.exchange.FORMATS`, which is not imported here: it would make `--help` wait for torch."""


EXAMPLES = (
    ("asys-run export runs/<run> --format sparsify --out DIR", "every SAE of a run"),
    (
        "asys-run export runs/<run>/sae/<hook>/latest --format dictionary_learning --out DIR",
        "one of them",
    ),
)


def add(parser: argparse.ArgumentParser) -> None:
    """SOURCE, `--format`, `--out`, `--overwrite`."""
    parser.add_argument(
        "source",
        metavar="RUN_OR_SAE_FOLDER",
        help="a run or its copy's URI (all its SAEs), a folder of checkpoints, or one; SAELens folders of "
        "other origin too",
    )
    parser.add_argument("--format", required=True, choices=FORMAT_NAMES)
    parser.add_argument("--out", required=True, metavar="DIR", help="one folder per SAE goes there")
    parser.add_argument("--overwrite", action="store_true", help="replace folders that exist")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """One line per SAE."""
    from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError
    from asys_bench.sae.exchange import FORMATS, ExchangeError, export, find_saes
    from asys_bench.store.mirror import CopyError, local_folder

    format_, out = FORMATS[arguments.format], Path(arguments.out)
    try:
        sources = find_saes(local_folder(arguments.source))
    except (ExchangeError, CopyError) as error:
        return fail("asys-run export", console, str(error), EXIT_USAGE)
    failed = 0
    for source in sources:
        try:
            made = export(source, format_, out, overwrite=arguments.overwrite)
        except (ExchangeError, CheckpointError) as error:
            failed += 1
            console.print(f"not exported: {error}", style="red", markup=False, soft_wrap=True)
            continue
        opens = format_.opens_with.format(folder=made.folder)
        console.print(
            f"{made.hook} ({made.architecture}) -> {made.folder}   open it with {opens}",
            markup=False,
            soft_wrap=True,
        )
        if made.outlier_norm is not None:
            console.print(
                f"  rows with a norm above {made.outlier_norm:.6g} are outliers that this SAE leaves "
                f"as they are; {format_.name} does not do so by itself: its metadata has the number as "
                "outlier_norm",
                markup=False,
                soft_wrap=True,
            )
    return EXIT_FAILED if failed else EXIT_OK
