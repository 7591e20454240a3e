"""What SAEs do to the model when they are put back into it: figures of an evaluation, and over the run.

The documents are those of `rundir.evaluation_documents`; `asys-run evaluate` prints the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from asys_bench.monitors.readable import count_text
from asys_bench.reports.page.markup import Markup, name, table, tag
from asys_bench.reports.run_report.curves import Line, chart
from asys_bench.reports.run_report.record import RunRecord
from asys_bench.reports.run_report.series import Points

MODES = ("passed", "replaced")
_KINDS = {"spliced": "with the SAE", "zero": "with zeros", "mean": "with the mean"}
_RECOVERED = {
    "language": ("CE recovered", "ce_recovered"),
    "policy": ("return recovered", "return_recovered"),
}
_ROWS = (
    ("FVU", "fvu", ".4f"),
    ("FVU of all rows", "fvu_all", ".4f"),
    ("cosine", "cosine", ".4f"),
    ("L2 ratio", "l2_ratio", ".4f"),
    ("L0", "l0", ".1f"),
    ("dead features", "dead_share", ".1%"),
    ("dense features", "dense_share", ".1%"),
    ("outliers", "outlier_share", ".2%"),
)


def modes_of(document: Mapping[str, Any]) -> list[str]:
    """`passed` only where rows are passed through; none where the model predicts nothing."""
    of = _of(document)
    return [mode for mode in MODES if isinstance(of.get(mode), Mapping)]


def figure_rows(document: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(what it is, a value per mode); a figure of the rows alone is in the first column."""
    of, modes = _of(document), modes_of(document)
    found: list[tuple[str, list[str]]] = []

    def once(what: str, value: Any, form: str) -> None:
        found.append((what, [_text(value, form), *[""] * (len(modes) - 1)]))

    def each(what: str, path: Sequence[str], form: str) -> None:
        found.append((what, [_text(_at(of[mode], path), form) for mode in modes]))

    if document.get("language"):
        once(f"CE, {_text(of.get('predicted'), ',')} tokens", of.get("ce"), ".4f")
        for kind, words in _KINDS.items():
            each(f"CE {words}", (kind, "ce"), ".4f")
        each("CE recovered", ("ce_recovered",), ".4f")
        each("CE recovered, from the mean", ("ce_recovered_from_mean",), ".4f")
        each("KL recovered", ("kl_recovered",), ".4f")
    elif of:
        once(f"return, {_text(of.get('episodes'), ',')} episodes", of.get("return_mean"), ".2f")
        for kind, words in _KINDS.items():
            each(f"return {words}", (kind, "return_mean"), ".2f")
        each("return recovered", ("return_recovered",), ".4f")
        each("value error, RMSE", ("spliced", "value_rmse"), ".4g")
        each("value error over variance", ("spliced", "value_fvu"), ".4g")
    if of:
        each("KL, mean", ("spliced", "kl_mean"), ".4g")
        each("KL, p95", ("spliced", "kl_p95"), ".4g")
    rows = document["rows"]
    for what, key, form in _ROWS:
        once(what, rows.get(key), form)
    positions = rows.get("fvu_by_position")
    for where, value in by_position(positions if isinstance(positions, list) else ()):
        once(f"FVU at position {where}", value, ".4f")
    return found


def by_position(fvu_T: Sequence[Any]) -> list[tuple[str, float]]:
    """Positions 0, 1, 2-3, 4-7, ...: the mean of those that had rows."""
    found, first = [], 0
    while first < len(fvu_T):
        end = max(1, 2 * first)
        held = [value for value in fvu_T[first:end] if isinstance(value, int | float)]
        if held:
            last = min(end, len(fvu_T)) - 1
            found.append(
                (f"{first}" if first == last else f"{first}-{last}", sum(held) / len(held))
            )
        first = end
    return found


def evaluation_parts(record: RunRecord) -> list[Markup]:
    """The newest figures of each SAE, and how they changed over the run."""
    newest = {str(document["sae"]): document for document in record.evaluations}
    curves = [chart for chart in _curves(record) if chart is not None]
    parts = [tag("div", *curves, class_="figures")] if curves else []
    return parts + [_newest(sae, document) for sae, document in newest.items()]


def _newest(sae: str, document: Mapping[str, Any]) -> Markup:
    modes = modes_of(document)
    about = f"{document.get('architecture')}, step {_text(document.get('steps'), ',')}"
    step = _at(document, ("weights", "host_step"))
    if isinstance(step, int):
        about += f", weights of host step {count_text(step)}"
    head = tag("h3", name(sae), tag("span", about, class_="unit"))
    heads = ["", *(modes if len(modes) > 1 else [""])]
    return tag(
        "section",
        head,
        table(heads, [[what, *values] for what, values in figure_rows(document)]),
        class_="family",
    )


def _curves(record: RunRecord) -> list[Markup | None]:
    """Over the run's time, where an SAE was evaluated more than once."""
    started_ns = record.run.get("started_unix_ns")
    if not isinstance(started_ns, int):
        return []
    recovered: dict[str, list[tuple[float, float]]] = {}
    kl: dict[str, list[tuple[float, float]]] = {}
    title = ""
    for document in record.evaluations:
        own = _of(document).get(next(iter(modes_of(document)), ""), {})
        at_s = (document["checkpoint_unix_ns"] - started_ns) / 1e9
        which = "language" if document.get("language") else "policy"
        title, key = _RECOVERED[which]
        for found, value in ((recovered, own.get(key)), (kl, _at(own, ("spliced", "kl_mean")))):
            if isinstance(value, int | float) and math.isfinite(value) and at_s >= 0:
                found.setdefault(str(document["sae"]), []).append((at_s, float(value)))
    end_s = max(
        [record.metrics.end_s, *(at for line in recovered.values() for at, _ in line)], default=0.0
    )
    words = title[:1].upper() + title[1:]
    return [
        chart(words, "", _lines(recovered), end_s),
        chart("KL with the SAE in the model", "nats", _lines(kl), end_s),
    ]


def _lines(points: Mapping[str, Points]) -> list[Line]:
    return [Line(sae, line) for sae, line in points.items() if len(line) > 1]


def _of(document: Mapping[str, Any]) -> Mapping[str, Any]:
    found = document.get("language") or document.get("policy")
    return found if isinstance(found, Mapping) else {}


def _at(of: Any, path: Sequence[str]) -> Any:
    for key in path:
        of = of.get(key) if isinstance(of, Mapping) else None
    return of


def _text(value: Any, form: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-"
    return format(value, form)
