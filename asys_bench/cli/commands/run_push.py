"""`asys-run push`: send a run's SAEs to the Hugging Face hub, with a model card.

Sent are weights (SAELens's layout) and the card: hooks, metrics and what they mean, what observing cost the
host, code that opens them; no activations, no configuration, no paths. `start_from` and `sae_watch` read
hf://org/name. The token comes from HF_TOKEN or `hf auth login`.

Exit codes: 0 all were sent (or written) · 1 some were not (it says why) · 2 there is no SAE, or the command
line is wrong.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE

if TYPE_CHECKING:
    from asys_bench.hub.facts import HubSAE, RunFacts

_fail = partial(fail, "asys-run push")

EXAMPLES = (
    (
        "asys-run push runs/<run> --repo org/name --dry-run",
        "the folder as it would be sent, in ./name",
    ),
    ("asys-run push runs/<run> --repo org/name", "all SAEs of the run, in a private repository"),
    ("asys-run push runs/<run>/sae/<hook> --repo org/name --license mit", "one of them"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """SOURCE, `--repo`, `--dry-run`, `--public`, `--license`, `--message`."""
    parser.add_argument(
        "source",
        metavar="RUN_OR_SAE_FOLDER",
        help="a run or its copy's URI (all its SAEs), a folder of checkpoints, or one",
    )
    parser.add_argument(
        "--repo", required=True, metavar="ORG/NAME", help="made where it is missing"
    )
    parser.add_argument(
        "--dry-run",
        nargs="?",
        const="",
        metavar="DIR",
        help="write the folder (by default ./NAME, which must not exist) and send nothing",
    )
    parser.add_argument(
        "--public", action="store_true", help="a repository that is made is public; else private"
    )
    parser.add_argument("--license", metavar="ID", help="for the card, such as mit or apache-2.0")
    parser.add_argument("--message", default="SAEs of a run", help="of the commit")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """One line per SAE, and where they are."""
    from asys_bench.hub.facts import read_facts, read_saes
    from asys_bench.hub.push import HubError
    from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError
    from asys_bench.sae.exchange import ExchangeError
    from asys_bench.sae.exchange.hub import is_repo
    from asys_bench.store.mirror import CopyError, local_folder

    repo = arguments.repo
    if not is_repo(repo):
        return _fail(console, f"--repo {repo!r} is no ORG/NAME", EXIT_USAGE)
    if arguments.license is not None and not re.fullmatch(r"[\w.-]{1,64}", arguments.license):
        return _fail(console, f"--license {arguments.license!r} is no identifier", EXIT_USAGE)
    try:
        source = local_folder(arguments.source)
        run_dir = run_of(source)
        saes, refused = read_saes(source, run_dir)
    except (ExchangeError, CheckpointError, CopyError) as error:
        return _fail(console, str(error), EXIT_USAGE)
    for one in refused:
        console.print(f"not sent: {one}", style="red", markup=False, soft_wrap=True)
    if not saes:
        return EXIT_FAILED
    try:
        said = _put(arguments, repo, saes, read_facts(run_dir))
    except (CheckpointError, HubError, OSError) as error:
        return _fail(console, str(error), EXIT_FAILED)
    for sae in saes:
        console.print(f"{sae.hook} ({sae.weights.trained_as}) -> {sae.folder}", markup=False)
    console.print(said, markup=False, soft_wrap=True)
    return EXIT_FAILED if refused else EXIT_OK


def run_of(source: Path) -> Path:
    """The run that an SAE's folder lies in; the folder itself where it lies in none."""
    from asys_bench.contracts.run_files import is_run

    source = source.resolve()
    return next((folder for folder in (source, *source.parents[:4]) if is_run(folder)), source)


def _put(arguments: argparse.Namespace, repo: str, saes: Sequence[HubSAE], facts: RunFacts) -> str:
    from asys_bench.hub.folder import write_folder
    from asys_bench.hub.push import push_folder

    if arguments.dry_run is not None:
        target = Path(arguments.dry_run or repo.rpartition("/")[2])
        target.mkdir(parents=True)
        files = write_folder(target, repo, saes, facts, arguments.license)
        return f"{target}: {len(files)} files; nothing was sent"
    with tempfile.TemporaryDirectory(prefix="asys-push-") as folder:
        files = write_folder(Path(folder), repo, saes, facts, arguments.license)
        where = push_folder(
            Path(folder), files, repo, public=arguments.public, message=arguments.message
        )
    return f"sent: {where}"
