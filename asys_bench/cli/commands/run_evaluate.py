"""`asys-run evaluate`: put SAEs back into their model: CE recovered, KL, return, FVU; a table and JSON.

A language model's text goes through it as it is, and with the hook's rows replaced by the SAE's
reconstruction, by zeros and by their mean:

  CE recovered   (CE_zero - CE_spliced) / (CE_zero - CE); 1: no damage, 0: as bad as zeros
                 (Bricken et al. 2023; SAELens's ce_loss_score)
  KL             of the predictions with the SAE from those without, nats per token
  passed         rows that the SAE leaves alone (attention sinks) keep their own values, also where zeros
                 or the mean replace the others
  replaced       every row is replaced

An agent plays episodes, as it is and with the rows replaced. FVU, L0 and their like are of the rows that
are met on the way. With a RUN the documents also go to <run>/evaluation, and `asys-run report` shows them; a
run's copy (s3://, gs://, file://) stays as it is, and --out takes them.

Exit codes: 0 done · 1 failed · 2 it cannot be evaluated, or the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from asys_bench.contracts.names import printable

if TYPE_CHECKING:
    from asys_bench.contracts.host import Evaluated
    from asys_bench.rundir.evaluation import TargetSAE, Weights

_fail = partial(fail, "asys-run evaluate")


EXAMPLES = (
    ("asys-run evaluate runs/<run>", "model, hooks and text from the run"),
    ("asys-run evaluate runs/<run> --text 'docs/**/*.md'", "other text"),
    ("asys-run evaluate SAE --model gpt2 --hook transformer.h.5 --text notes/", "an SAE by itself"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """SOURCE and what is evaluated on."""
    parser.add_argument(
        "source",
        nargs="?",
        metavar="RUN_OR_SAE_FOLDER",
        help="a run (directory or id), or one SAE (SAELens, sparsify, dictionary_learning); default: the "
        "newest run under runs/",
    )
    parser.add_argument("--sae", metavar="NAME", help="of a run: only this SAE")
    parser.add_argument(
        "--checkpoint", metavar="STEP", help="of a run: step_000001234 instead of the newest"
    )
    parser.add_argument(
        "--model", help="folder, package:<name> or name on the hub; default: the run's"
    )
    parser.add_argument("--gguf-file", metavar="FILE", help="GGUF file of --model")
    parser.add_argument(
        "--hook", metavar="MODULE", help="of an SAE: the module; default: what its metadata says"
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="GLOB",
        help="as host.options.transformers.texts (repeatable); default: the run's, or package:*",
    )
    parser.add_argument("--tokens", type=_count, metavar="N", help="tokens of text; default: 8192")
    parser.add_argument(
        "--episodes", type=_count, metavar="N", help="episodes of an agent; default: 20"
    )
    parser.add_argument("--device", help="torch device; default: the run's, or cpu")
    parser.add_argument("--threads", type=_count, metavar="N", help="torch threads")
    parser.add_argument("--out", metavar="FILE", help="write the documents there, as a JSON list")
    parser.add_argument("--live", action="store_true", help=argparse.SUPPRESS)


def _count(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is no number of 1 or more")
    return int(word)


def main(arguments: argparse.Namespace, console: Console) -> int:
    """A table per SAE, and the documents."""
    from asys_bench.contracts.host import HostError
    from asys_bench.placement.apply import use_torch_threads
    from asys_bench.rundir.attach import RunGoneError
    from asys_bench.rundir.evaluation import (
        EPISODES,
        SEVERAL,
        TOKENS,
        EvaluationError,
        evaluate_targets,
        of_several_hooks,
        run_model,
    )
    from asys_bench.rundir.evaluation_documents import write_evaluation
    from asys_bench.store.uri import is_uri
    from asys_bench.system.files import replace_file

    if arguments.live:
        _end_with_parent()
    use_torch_threads(arguments.threads)
    weights: Weights | None
    try:
        source, run_dir = _source(arguments.source)
        if run_dir is not None:
            targets = _saes_of(run_dir, arguments)
            evaluated, weights = run_model(run_dir, _options(arguments))
        else:
            targets, evaluated, weights = _one_sae(source, arguments)
        documents = evaluate_targets(
            evaluated,
            targets,
            weights,
            tokens=arguments.tokens or TOKENS,
            episodes=arguments.episodes or EPISODES,
        )
    except (EvaluationError, HostError, RunGoneError) as error:
        return _fail(console, str(error), EXIT_USAGE)
    try:
        if run_dir is not None and not is_uri(arguments.source or ""):
            for document in documents:
                console.print(
                    f"{write_evaluation(run_dir, document)}", markup=False, soft_wrap=True
                )
        if arguments.out:
            data = (json.dumps(documents, indent=2) + "\n").encode()
            replace_file(Path(arguments.out), data, sync=False)
    except OSError as error:
        return _fail(console, str(error), EXIT_FAILED)
    if run_dir is not None and arguments.sae is None and not arguments.live:
        for name in of_several_hooks(run_dir):
            console.print(f"{printable(name)} {SEVERAL}", markup=False, soft_wrap=True)
    for document in documents:
        about = f"({document['architecture']}, {document['d_sae']:,} features)"
        console.print(f"{printable(str(document['sae']))} {about}", markup=False, soft_wrap=True)
        console.print(table_of(document))
    return EXIT_OK


def _source(name: str | None) -> tuple[Path, Path | None]:
    """(what was named, the run that it is; None: no run)."""
    from asys_bench.contracts.run_files import is_run
    from asys_bench.rundir.attach import RUNS, find_run
    from asys_bench.store.uri import is_uri

    if name is not None and is_uri(name):
        run_dir = find_run(name, copies=True)
        return run_dir, run_dir
    if name is not None and not is_run(Path(name)) and not is_run(RUNS / name):
        return Path(name), None
    run_dir = find_run(name)
    return run_dir, run_dir


def _saes_of(run_dir: Path, arguments: argparse.Namespace) -> list[TargetSAE]:
    """Those that are asked for; of a run that goes on, a checkpoint may be deleted while it is read."""
    from asys_bench.rundir.evaluation import EvaluationError, read_targets, run_targets

    for _ in range(3 if arguments.live else 1):
        try:
            return read_targets(run_targets(run_dir, arguments.sae, arguments.checkpoint))
        except EvaluationError as error:
            problem = error
    raise problem


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of the host."""
    given = {
        "model": arguments.model,
        "gguf_file": arguments.gguf_file,
        "texts": tuple(arguments.text) or None,
        "device": arguments.device,
    }
    if arguments.model is not None and arguments.gguf_file is None:
        return {k: v for k, v in given.items() if v is not None} | {"gguf_file": None}
    return {name: value for name, value in given.items() if value is not None}


def _one_sae(
    source: Path, arguments: argparse.Namespace
) -> tuple[list[TargetSAE], Evaluated, Weights | None]:
    from asys_bench.contracts.host import HostPlugin
    from asys_bench.registry import registry
    from asys_bench.rundir.evaluation import EvaluationError, Target, read_targets
    from asys_bench.sae.checkpoint.checkpoint_store import CheckpointStore
    from asys_bench.sae.exchange import format_of

    folder = source if format_of(source) else CheckpointStore(source).latest()
    if folder is None:
        raise EvaluationError(f"{source}: neither a run nor an SAE; name one of their folders")
    if arguments.model is None:
        raise EvaluationError(f"{source} is an SAE: name the model that it is of with --model")
    hook = arguments.hook or _hook_of(folder)
    if not hook:
        raise EvaluationError(f"{folder} does not say which module it is of; name it with --hook")
    plugin = registry("host").get("transformers", HostPlugin)
    reason = plugin.unavailable()
    if reason is not None:
        raise EvaluationError(f"no language model can be loaded here: {reason}")
    options = plugin.options.model_validate(
        {"texts": ("package:*",), "auto_class": "AutoModelForCausalLM"} | _options(arguments)
    )
    assert plugin.evaluated is not None
    targets = read_targets([Target(hook, hook, folder, hook)])
    return targets, plugin.evaluated(options, 0, None), None


def _hook_of(folder: Path) -> str:
    from asys_bench.sae.exchange import import_sae

    return str(import_sae(folder)[1].get("hook_name") or "")


def _end_with_parent() -> None:
    """Started by a worker: nothing outlives it."""
    import signal

    from asys_bench.system.liveness import signal_on_parent_death

    signal_on_parent_death(signal.SIGKILL)


def table_of(document: Mapping[str, Any]) -> Table:
    """The figures of one SAE."""
    from asys_bench.reports.run_report.evaluations import figure_rows, modes_of

    modes = modes_of(document)
    table = Table(box=None)
    for head in ("", *(modes if len(modes) > 1 else [""])):
        table.add_column(head, justify="right" if table.columns else "left", no_wrap=True)
    for what, values in figure_rows(document):
        table.add_row(what, *values)
    return table
