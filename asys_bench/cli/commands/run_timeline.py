"""`asys-run timeline`: when each feature of a run's SAEs appeared, and whether the host learnt it then.

The newest checkpoint of each SAE is run over the rows that a sink of kind `reservoir` kept of the whole
run. A birth is a firing rate that rose from nearly nothing, declared with a false discovery rate of 1 %
over all features. `learnt`: the constant evaluation batch (`observation.constant`) shows it too, so that
the model changed and not its data; `data`: the feature fired on that batch before; `open`: neither.

"In no feature": no feature of the SAE reads it. Its rows have a direction in common in what the SAE leaves
of them, and the number counts on from the SAE's features.

A run that goes on may be looked at again. Births that only an earlier look saw stay ("as of step N"); one
that a later look, of more rows, calls gradual or turned is withdrawn, and a line says so.

The result is kept as timeline/<SAE>.json in the run's folder (`open_run(RUN).timeline(HOOK)` reads it).

Exit codes: 0 done · 1 it could not be written · 2 there is no such run, SAE or feature.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from asys_bench.contracts.names import matches, printable
from asys_bench.rundir.attach import RunGoneError, add_run_argument, find_run
from asys_bench.store.uri import is_uri

if TYPE_CHECKING:
    from asys_bench.rundir.timeline_document import FeatureLife, Timeline

_fail = partial(fail, "asys-run timeline", None)
_BARS = " ▁▂▃▄▅▆▇█"
_STEPS = re.compile(r"(\d*):(\d*)")


EXAMPLES = (
    ("asys-run timeline runs/<run>", "every birth"),
    ("asys-run timeline runs/<run> --hook 'layers.3*' --feature 17", "all about one feature"),
    ("asys-run timeline runs/<run> --born 12000:13000", "births of a moment"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """RUN, `--hook`, `--feature`, `--born`."""
    add_run_argument(parser, copies=True)
    parser.add_argument("--hook", default="*", metavar="GLOB", help="SAEs of these names only")
    parser.add_argument("--feature", type=int, metavar="N", help="all about one feature")
    parser.add_argument(
        "--born",
        type=steps_of,
        metavar="FROM:TO",
        help="births between two host steps, e.g. 12000:13000",
    )


def steps_of(text: str) -> tuple[float, float]:
    found = _STEPS.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not FROM:TO, such as 12000:13000")
    return float(found[1] or 0), float(found[2] or "inf")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """A table of births per SAE."""
    try:
        run_dir = find_run(arguments.run, copies=True)
    except RunGoneError as error:
        return _fail(str(error), EXIT_USAGE)
    from asys_bench.change.timeline.timeline import timelines_of
    from asys_bench.contracts.reporter import ReportError
    from asys_bench.reports.run_report.record import read_run
    from asys_bench.rundir.timeline_document import write_timeline

    try:
        labels = [one for one in read_run(run_dir).saes if matches(one, arguments.hook)]
    except ReportError as error:
        return _fail(str(error), EXIT_USAGE)
    found = timelines_of(run_dir, labels)
    if not found:
        return _fail(f"{run_dir}: no SAE named {arguments.hook!r} has a checkpoint", EXIT_USAGE)
    code = EXIT_OK
    for timeline in found:
        _show(timeline, arguments.feature, arguments.born, console)
        if timeline.problem:
            code = EXIT_USAGE if len(found) == 1 else code
        elif not is_uri(arguments.run or ""):
            try:
                write_timeline(run_dir, timeline)
            except OSError as error:
                code = _fail(str(error), EXIT_FAILED)
    return code


def _show(
    timeline: Timeline, feature: int | None, born: tuple[float, float] | None, console: Console
) -> None:
    head = f"{printable(timeline.label)}: "
    if timeline.problem:
        console.print(head + timeline.problem, markup=False, soft_wrap=True)
        return
    counts = ", ".join(f"{number:,} {verdict}" for verdict, number in timeline.counts.items())
    console.print(
        f"{head}{timeline.features:,} features over {timeline.rows:,} rows of steps "
        f"{timeline.first_step:,} to {timeline.last_step:,} ({timeline.units:,} units): {counts}",
        markup=False,
    )
    if not timeline.constant_moments:
        console.print("no constant evaluation batch: no birth is called learnt", markup=False)
    for one in timeline.withdrawn:
        console.print(
            f"{one.name}: an earlier look called step {_step(one.withdrawn_step)} its birth; "
            f"over the rows of now it is {one.verdict}",
            markup=False,
        )
    lives: Sequence[FeatureLife] = timeline.births
    if feature is not None:
        lives = [one for one in timeline.lives if one.feature == feature]
        if not lives:
            console.print(f"feature {feature}: nothing changed", markup=False)
    if born is not None:
        lives = [
            one
            for one in lives
            if one.born_step is not None and born[0] <= one.born_step <= born[1]
        ]
    if lives:
        console.print(_table(lives))
    if feature is not None:
        for one in lives:
            _show_rows(one, console)


def _table(lives: Sequence[FeatureLife]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in (
        "feature",
        "born",
        "(95 %)",
        "cause",
        "rate",
        "found",
        "useful",
        "died",
        "",
        "rate over the run",
    ):
        table.add_column(
            column, justify="left" if column in ("cause", "rate over the run", "") else "right"
        )
    for one in lives:
        table.add_row(
            str(one.feature),
            _step(one.born_step),
            f"{_step(one.born_low)}-{_step(one.born_high)}" if one.born_step is not None else "",
            one.cause if one.verdict == "born" else one.verdict,
            f"{one.rate_after:.2%}" if one.born_step is not None else "",
            f"{one.found_step:,}" + (" late" if one.late_by_steps is not None else ""),
            f"{one.usefulness:.1%}",
            _step(one.died_step),
            _seen(one),
            escape(_sparkline(one.rates)),
        )
    return table


def _seen(one: FeatureLife) -> str:
    """By which SAEs, and by which look."""
    parts = [
        "in no feature" if one.unread else "",
        {True: "robust", False: "one SAE", None: ""}[one.robust],
        "" if one.look_step is None else f"as of step {one.look_step:,}",
    ]
    return " ".join(part for part in parts if part)


def _step(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _sparkline(rates: Sequence[float], width: int = 32) -> str:
    if not rates:
        return ""
    group = max(1, len(rates) // width)
    means = [
        sum(rates[at : at + group]) / len(rates[at : at + group])
        for at in range(0, len(rates), group)
    ]
    most = max(means) or 1.0
    return "".join(_BARS[round((len(_BARS) - 1) * mean / most)] for mean in means)


def _show_rows(one: FeatureLife, console: Console) -> None:
    for row in one.rows:
        console.print(
            f"  step {row.host_step:,}, source {row.source}, microbatch {row.microbatch}, call {row.call}, "
            f"row {row.row}: activation {row.activation:.3g}",
            markup=False,
        )
