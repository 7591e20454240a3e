"""`render_run`: the report as one file. No script, and nothing is loaded from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asys_bench.reports.page.layout import LAYOUT
from asys_bench.reports.page.marks import MARKS
from asys_bench.reports.page.markup import POLICY, Markup, flat, tag
from asys_bench.reports.page.palette import PALETTE
from asys_bench.reports.run_report.analysis import HookAnalysis
from asys_bench.reports.run_report.cards import sae_section
from asys_bench.reports.run_report.header import header, warnings
from asys_bench.reports.run_report.lanes import lanes
from asys_bench.reports.run_report.latency import latency_spectrum
from asys_bench.reports.run_report.record import RunRecord
from asys_bench.reports.run_report.sae_curves import sae_curves
from asys_bench.reports.run_report.style import STYLE
from asys_bench.reports.run_report.timeline import event_list, timeline


def render_run(
    record: RunRecord, analyses: Sequence[HookAnalysis], vocabulary: Mapping[int, str]
) -> str:
    """A complete HTML document that opens offline, on a phone, in the dark and on paper.

    vocabulary: token id -> text; empty shows ids.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{record.run_id}, A-Sys-I run report"),
        tag("style", Markup(PALETTE + LAYOUT + MARKS + STYLE)),
    )
    main = tag("main", *_sections(record, analyses, vocabulary))
    body = tag("body", header(record), main, _footer(record))
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _sections(
    record: RunRecord, analyses: Sequence[HookAnalysis], vocabulary: Mapping[int, str]
) -> list[Markup | None]:
    curves = sae_curves(record)
    over_time = timeline(record)
    spectrum = latency_spectrum(record.latencies)
    looked = [sae_section(found, record.environment_id, vocabulary) for found in analyses]
    return [
        warnings(record),
        _section(
            "What the SAEs found",
            "The newest checkpoints, applied to the newest archived rows.",
            looked,
        ),
        _section(
            "How they learnt",
            "Measured by the trainers on rows that they were not trained on.",
            [tag("div", *curves, class_="figures")] if curves else [],
        ),
        _section(
            "The run over time",
            "Red marks are deaths, restarts and drops.",
            [
                part
                for part in (
                    lanes(record.metrics, record.metrics.end_s),
                    event_list(record),
                    tag("div", *over_time, class_="figures spaced") if over_time else None,
                )
                if part is not None
            ],
        ),
        _section(
            "What observing cost",
            "The time that a captured call held the host up, over the whole run.",
            [tag("div", spectrum, class_="figures")] if spectrum is not None else [],
        ),
    ]


def _section(title: str, how: str, parts: Sequence[Markup]) -> Markup | None:
    if not parts:
        return None
    return tag("section", tag("h2", title), tag("p", how, class_="how"), flat(parts))


def _footer(record: RunRecord) -> Markup:
    environment = record.run.get("environment")
    versions = environment if isinstance(environment, dict) else {}
    shown = ", ".join(f"{key} {value}" for key, value in sorted(versions.items()))
    return tag("footer", f"{record.run_id}, {shown}")
