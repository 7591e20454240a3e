"""`render_run`: the report as one file. No script, and nothing is loaded from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asys_bench.monitors.readable import count_text
from asys_bench.reports.page.markup import POLICY, Markup, flat, name, table, tag
from asys_bench.reports.page.quantity import brief, with_interval
from asys_bench.reports.page.style import LAYOUT, MARKS, PALETTE
from asys_bench.reports.run_report.analysis import HookAnalysis
from asys_bench.reports.run_report.births import Births, birth_parts
from asys_bench.reports.run_report.cards import sae_section
from asys_bench.reports.run_report.evaluations import evaluation_parts
from asys_bench.reports.run_report.header import header, warnings
from asys_bench.reports.run_report.latency import latency_spectrum
from asys_bench.reports.run_report.other_machines import other_machines
from asys_bench.reports.run_report.record import RunRecord
from asys_bench.reports.run_report.sae_curves import sae_curves
from asys_bench.reports.run_report.timeline import event_list, timeline
from asys_bench.reports.run_report.worker_timeline import worker_timeline
from asys_bench.reports.run_summary.terminal import ATTEMPT_COLUMNS, attempt_rows
from asys_bench.rundir.probes import FoundProbe

# What the run report adds to the look that all pages share (`reports/page`).

STYLE = """
:root{--heat1:#7d93ad;--heat2:#4f86c6;--heat3:#1f9d94;--heat4:#d88a1d;--heat5:#d1462f;
 --track:#c9d0d9;--cart:#1464c0;--pole:#b85600;--motion:#007a66}
@media (prefers-color-scheme:dark){:root{--heat1:#5d7390;--heat2:#6ca8f0;--heat3:#4fd0c0;
 --heat4:#f3b24d;--heat5:#ff7a5c;--track:#3a4450;--cart:#6cb2ff;--pole:#f5a04b;--motion:#5fd0b0}}
@media print{:root{--heat1:#7d93ad;--heat2:#4f86c6;--heat3:#1f9d94;--heat4:#d88a1d;--heat5:#d1462f;
 --track:#c9d0d9;--cart:#1464c0;--pole:#b85600;--motion:#007a66}}
.hero.run{--v:var(--neutral)}.hero.run.good{--v:var(--pass)}.hero.run.bad{--v:var(--fail)}
.hero.run.live{--v:var(--inconclusive)}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:10px;margin-top:16px}
.tile{background:var(--ground);border:1px solid var(--line);border-radius:10px;padding:10px 14px}
.tile b{display:block;font-size:1.5rem;letter-spacing:-.02em;line-height:1.25}
.tile span{color:var(--soft);font-size:.8rem}
.hero .tiles{padding-bottom:22px}
h3 .unit{font-weight:400;margin-left:.8em;white-space:normal}
h4{margin:0;font-size:.95rem}
.moment{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3;fill:none}
.moment.bad{stroke:var(--limit)}
.lane{overflow:visible}
.state.ready{fill:var(--pass)}.state.done{fill:var(--line)}
.state.starting{fill:var(--inconclusive)}.state.failed{fill:var(--fail)}
.state.quarantined{fill:none;stroke:var(--fail);stroke-width:2}
.clock{position:relative;height:1.3em;margin-left:272px;color:var(--soft);font-size:.8rem}
.clock span{position:absolute;transform:translateX(-50%)}
.clock span:first-child{transform:none}
.events{margin-top:12px;max-height:15em;overflow-y:auto}
.events li{display:grid;grid-template-columns:5em 1fr;gap:10px;font-size:.87rem;overflow-wrap:anywhere}
.events li.bad code{color:var(--fail)}
.events code{color:var(--soft)}
.column{stroke:var(--card);stroke-width:.5}
.column.firing{fill:var(--s0)}.column.dense{fill:var(--heat5)}.column.silent{fill:var(--track)}
.point{stroke:var(--card);stroke-width:.6;fill-opacity:.88}
.p0{fill:none;stroke:var(--track);stroke-width:1}
.p1{fill:var(--heat1)}.p2{fill:var(--heat2)}.p3{fill:var(--heat3)}.p4{fill:var(--heat4)}
.p5{fill:var(--heat5)}
.family>.how{margin-top:14px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,350px),1fr));gap:12px;
 margin-top:12px}
.cards .card{margin:0}
.feature h4{display:inline-block;margin-right:.8em}
.facts-line{display:inline-flex;flex-wrap:wrap;gap:0 .9em;color:var(--soft);font-size:.8rem}
.looks{display:grid;grid-template-columns:repeat(3,1fr);gap:8px;margin-top:8px}
.looks li{min-width:0;text-align:right;color:var(--soft);font-size:.75rem;line-height:1.4}
.eyepiece{display:grid;grid-template-columns:minmax(0,11fr) minmax(0,14fr);gap:12px;align-items:start;
 margin-top:8px}
.eyepiece .looks{grid-template-columns:repeat(2,1fr);margin-top:0;gap:5px 8px}
.field{display:block;width:100%;height:auto}
.field text{font-size:8px}
.cell{fill:var(--heat5)}
.c0{fill:var(--grid)}.c1{fill-opacity:.16}.c2{fill-opacity:.28}.c3{fill-opacity:.4}.c4{fill-opacity:.54}
.c5{fill-opacity:.68}.c6{fill-opacity:.84}
.look{display:block;width:100%;height:auto;background:var(--ground);border-radius:6px}
.gauge{display:block;height:3px;background:var(--grid);border-radius:2px;margin-top:3px}
.strength{display:block;height:3px;background:var(--heat4);border-radius:2px}
.ground-line{fill:none;stroke:var(--track);stroke-width:1.2}
.plus{fill:var(--s0)}.minus{fill:var(--s1)}
.cart{fill:var(--cart)}.axle{fill:var(--card)}
.pole{fill:none;stroke:var(--pole);stroke-width:4;stroke-linecap:round}
.arrow{fill:none;stroke:var(--motion);stroke-width:1.6;stroke-linecap:round}
.sentence{margin-top:8px;font-size:.9rem;line-height:1.5;white-space:pre-wrap;overflow-wrap:anywhere;
 border-top:1px solid var(--grid);padding-top:6px}
.fires{color:var(--ink);background:none;border-radius:3px;padding:1px 0}
.hit{font-weight:600;box-shadow:inset 0 -2px 0 var(--heat5)}
.rare{margin-top:22px}
.h1{background:color-mix(in srgb,var(--heat4) 18%,transparent)}
.h2{background:color-mix(in srgb,var(--heat4) 32%,transparent)}
.h3{background:color-mix(in srgb,var(--heat4) 48%,transparent)}
.h4{background:color-mix(in srgb,var(--heat4) 86%,transparent);color:#1a1206}
.told h4{display:block;font-size:1.02rem;line-height:1.35;margin:0}
.strips{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:8px 14px;margin-top:10px}
.strips li{min-width:0;opacity:.6;display:flex;flex-direction:column;justify-content:flex-end}
.strips li.sure{opacity:1}
.strip{display:block;width:100%;height:30px;border-bottom:1px solid var(--track)}
.every{fill:var(--track)}.best{fill:var(--heat4);fill-opacity:.72}
.zero{fill:none;stroke:var(--soft);stroke-width:.7;stroke-dasharray:2 2}
.strips b{display:block;font-size:.72rem;font-weight:500;line-height:1.3}
.strip-axis{display:flex;justify-content:space-between;color:var(--soft);font-size:.68rem;line-height:1.4}
.strip-axis i{font-style:normal}
.cards+.figures.level{margin-top:18px}
.figures.level{align-items:stretch}
.spaced{margin-top:12px}
@media (max-width:620px){.clock{margin-left:0}.tile b{font-size:1.25rem}
 .tiles{grid-template-columns:repeat(2,1fr)}}
@media print{.cards .card{break-inside:avoid}.events{max-height:none}}
"""


PROBE_COLUMNS = ("label", "held out", "of", "rows", "blocks", "over the run (host step)")
MOST_MOMENTS = 4
MOST_CLASSES = 6


def render_run(
    record: RunRecord,
    analyses: Sequence[HookAnalysis],
    vocabulary: Mapping[int, str],
    births: Births | None = None,
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
    main = tag("main", *_sections(record, analyses, vocabulary, births or Births()))
    body = tag("body", header(record), main, _footer(record))
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _sections(
    record: RunRecord,
    analyses: Sequence[HookAnalysis],
    vocabulary: Mapping[int, str],
    births: Births,
) -> list[Markup | None]:
    curves = sae_curves(record)
    over_time = timeline(record)
    spectrum = latency_spectrum(record.latencies)
    attempts = attempt_rows(record.summary) if record.summary is not None else []
    looked = [sae_section(found, record.environment_id, vocabulary) for found in analyses]
    return [
        warnings(record),
        _section(
            "What the SAEs found",
            "The newest checkpoints, applied to the newest archived rows.",
            looked,
        ),
        _section(
            "Which features appeared when",
            "The newest SAEs over rows of the whole run. A birth is a firing rate that rose from nearly "
            "nothing, declared with a false discovery rate of 1 % over all features.",
            birth_parts(births, vocabulary),
        ),
        _section(
            "What they do to the model",
            "SAEs put back into the model in place of what they were trained on. Recovered: 1 is no "
            "damage, 0 as bad as zeros. passed: rows that the SAE leaves alone keep their own values, "
            "also where zeros or the mean replace the others; replaced: every row is.",
            evaluation_parts(record),
        ),
        _section(
            "What can be read from the hooks",
            "Linear probes to labels, fitted to rows of some blocks and scored on those of others; "
            "intervals at 95 % over blocks. Rows: fitted to + held out.",
            _probe_parts(record),
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
                    worker_timeline(record.metrics, record.metrics.end_s),
                    event_list(record),
                    tag("div", *over_time, class_="figures spaced") if over_time else None,
                )
                if part is not None
            ],
        ),
        _section(
            "Other machines",
            "What forwarders took is what receivers acknowledged, what was dropped by reason, and what is "
            "in flight. Accounts are equal where what was acknowledged was accepted, and nothing else.",
            other_machines(record),
        ),
        _section(
            "Attempts",
            "The run went on after an end (run.resume). SAEs and archive are the whole run's; the figures "
            "at the top and the packets are the last attempt's.",
            [table(ATTEMPT_COLUMNS, attempts, left=3)] if attempts else [],
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


def _probe_parts(record: RunRecord) -> list[Markup]:
    """Linear probes from each hook to labels: what they are worth on held-out rows, and how that came."""
    return [_probes_of(hook, probes) for hook, probes in record.probes.items() if probes]


def _probes_of(hook: str, probes: Sequence[FoundProbe]) -> Markup:
    first = probes[0]
    about = f"from {first.features}; a block is {first.block}"
    rows = [
        [
            one.label,
            f"{one.metric.upper()} {with_interval(one.value, one.low, one.high)}",
            _classes(one),
            f"{one.rows:,} + {one.held_out_rows:,}",
            f"{one.held_out_blocks:,}",
            _moments(one),
        ]
        for one in probes
    ]
    head = tag("h3", name(hook), tag("span", about, class_="unit"))
    return tag("section", head, table(PROBE_COLUMNS, rows, left=1), class_="family")


def _classes(probe: FoundProbe) -> str:
    if probe.classes is None:
        return "a number"
    shown = [one if isinstance(one, str) else brief(one) for one in probe.classes[:MOST_CLASSES]]
    more = len(probe.classes) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _moments(probe: FoundProbe) -> str:
    """Some of its scores, the first and the last among them."""
    count = len(probe.history)
    places = sorted({round(n * (count - 1) / (MOST_MOMENTS - 1)) for n in range(MOST_MOMENTS)})
    chosen = [probe.history[place] for place in places] if count else []
    return ", ".join(f"{count_text(step)}: {value:.3g}" for step, value, *_ in chosen)


def _footer(record: RunRecord) -> Markup:
    environment = record.run.get("environment")
    versions = environment if isinstance(environment, dict) else {}
    shown = ", ".join(f"{key} {value}" for key, value in sorted(versions.items()))
    return tag("footer", f"{record.run_id}, {shown}")
