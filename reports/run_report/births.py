"""Which features appeared when: a card per birth, with its rate over the run and the rows at birth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from asys_bench.reports.page.markup import Markup, name, tag
from asys_bench.reports.page.quantity import number, share
from asys_bench.reports.run_report.archive_rows import RowKey
from asys_bench.reports.run_report.input_pictures import sentence
from asys_bench.reports.run_report.inputs import Tokens, tokens
from asys_bench.rundir.timeline_document import FeatureLife, RowAt, Timeline
from asys_bench.sinks.archive.reader import Archive

CARDS = 24
"""Births of an SAE that are shown, the most useful first; all of them: `asys-run timeline`."""
WIDTH, HEIGHT = 320.0, 44.0
MOST_ROWS = 60_000
_CAUSES = {
    "learnt": "learnt: the constant batch shows it too",
    "data": "new in the data: it fired on the constant batch before",
    "open": "learnt or new data: the constant batch does not say",
}


@dataclass(frozen=True)
class Births:
    """Timelines of a run, and the texts around the rows at birth, where they are archived."""

    timelines: Sequence[Timeline] = ()
    texts: Mapping[RowKey, Tokens] = field(default_factory=dict)


def births_of(timelines: Sequence[Timeline], archive: Archive | None) -> Births:
    """With what the model was given at each birth."""
    rows = [row for timeline in timelines for life in shown_of(timeline) for row in life.rows]
    wanted = {key_of(row): row.text for row in rows if row.text}
    return Births(timelines, tokens(archive, wanted, MOST_ROWS) if archive is not None else {})


def key_of(row: RowAt) -> RowKey:
    return row.source, row.host_step, row.weights_version, row.microbatch, row.call, row.row


def shown_of(timeline: Timeline) -> list[FeatureLife]:
    """Births with a card, the earliest first."""
    best = sorted(timeline.births, key=lambda one: -one.usefulness)[:CARDS]
    return sorted(best, key=lambda one: one.born_step or 0.0)


def birth_parts(births: Births, vocabulary: Mapping[int, str]) -> list[Markup]:
    """A block per SAE of which there is a timeline."""
    return [
        _of_sae(one, births, vocabulary)
        for one in births.timelines
        if not one.problem or "no reservoir" not in one.problem
    ]


def _of_sae(timeline: Timeline, births: Births, vocabulary: Mapping[int, str]) -> Markup:
    head = tag("h3", name(timeline.label), tag("span", _about(timeline), class_="unit"))
    if timeline.problem:
        return tag("section", head, tag("p", timeline.problem, class_="callout"), class_="family")
    shown = shown_of(timeline)
    cards = [_card(life, timeline, births, vocabulary) for life in shown]
    more = len(timeline.births) - len(shown)
    after = tag("p", f"{more:,} more: asys-run timeline", class_="how") if more else None
    body = (
        tag("div", *cards, class_="cards")
        if cards
        else tag("p", "No feature was born.", class_="how")
    )
    return tag("section", head, body, after, class_="family")


def _about(timeline: Timeline) -> str:
    counts = timeline.counts
    return (
        f"{len(timeline.births):,} born, {counts.get('always', 0):,} always there, "
        f"{counts.get('turned', 0):,} turned, {counts.get('silent', 0):,} silent, "
        f"{len(timeline.withdrawn):,} withdrawn; {timeline.rows:,} rows of "
        f"host steps {timeline.first_step:,} to {timeline.last_step:,}"
    )


def _card(
    life: FeatureLife, timeline: Timeline, births: Births, vocabulary: Mapping[int, str]
) -> Markup:
    late = "" if life.late_by_steps is None else f"found {life.late_by_steps:,.0f} steps late"
    robust = {True: "seen by another SAE too", False: "seen by this SAE alone", None: ""}[
        life.robust
    ]
    facts = [
        f"95 %: {life.born_low or 0:,.0f} to {life.born_high or 0:,.0f}",
        f"{share(life.rate_after)} of rows since",
        f"useful {share(life.usefulness)}",
        "in no feature of the SAE" if life.unread else "",
        f"gone at {life.died_step:,.0f}" if life.died_step is not None else "",
        late,
        robust,
        "" if life.look_step is None else f"as a look at step {life.look_step:,} saw it",
    ]
    rows = [
        sentence(found, vocabulary, row.activation, max(one.activation for one in life.rows))
        for row in life.rows
        if (found := births.texts.get(key_of(row))) is not None
    ]
    if not rows and life.rows:
        told = ", ".join(
            f"step {row.host_step:,} row {row.row} ({number(row.activation)})"
            for row in life.rows[:4]
        )
        rows = [tag("p", f"at birth: {told}", class_="how")]
    return tag(
        "article",
        tag("h4", f"{life.name}, born at step {life.born_step or 0:,.0f}"),
        tag("p", *(tag("span", fact) for fact in facts if fact), class_="facts-line"),
        _curve(life, timeline),
        tag("p", _CAUSES.get(life.cause, ""), class_="how"),
        *rows,
        class_="card feature",
    )


def _curve(life: FeatureLife, timeline: Timeline) -> Markup | None:
    """Its rate over the run, and a mark at the birth."""
    if len(life.rates) < 2:
        return None
    most = max(life.rates) or 1.0
    span = max(1, timeline.last_step - timeline.first_step)

    def x(step: float) -> float:
        return WIDTH * (step - timeline.first_step) / span

    points = [
        f"{x(step):.1f} {HEIGHT - 2 - (HEIGHT - 6) * rate / most:.1f}"
        for step, rate in zip(timeline.curve_steps, life.rates, strict=False)
    ]
    at = x(life.born_step or 0.0)
    return tag(
        "svg",
        tag("title", f"rate over the run, at most {share(most)}"),
        tag("path", d=f"M{at:.1f} 0V{HEIGHT:g}", class_="moment"),
        tag("path", d="M" + "L".join(points), class_="line s0"),
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        class_="strip",
        role="img",
    )
