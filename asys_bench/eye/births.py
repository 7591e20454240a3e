"""The view *Timeline*: births and deaths of features, alarms, and the host's own curves, over host steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asys_bench.eye.features import Document
from asys_bench.eye.watch import plain
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.timeline_document import FeatureLife, Timeline, read_timeline
from asys_bench.sae.checkpoint.lives import Lives

MOST_LIVES = 500
BINS = 40
CAUSES = {
    "learnt": "learnt: the constant batch shows it too",
    "data": "new in the data: it fired on the constant batch before",
    "open": "learnt or new data: the constant batch does not say",
}


def births_document(
    run_dir: Path, label: str, lives: Lives | None, words: Sequence[str]
) -> Document:
    """Of one SAE. Where nobody has made the timeline yet, `problem` says how; what the checkpoint knows of
    lives (`resampled`) is there all the same."""
    found: Document = {"sae": label, "problem": "", "lives": [], "resampled": _resampled(lives)}
    try:
        timeline = read_timeline(run_dir, label)
    except ReadingError as error:
        return found | {"problem": str(error).removeprefix(f"{run_dir}: ")}
    return found | {
        "problem": timeline.problem,
        "about": _about(timeline),
        "counts": dict(timeline.counts),
        "first_step": timeline.first_step,
        "last_step": timeline.last_step,
        "curve_steps": [plain(step, 7) for step in timeline.curve_steps],
        "lives": [
            _life(one, words, len(timeline.curve_steps))
            for one in timeline.lives
            if one.duplicate_of is None and (one.born_step is not None or one.died_step is not None)
        ][:MOST_LIVES],
    }


def _about(timeline: Timeline) -> str:
    constant = (
        f"{timeline.constant_moments:,} moments of the constant batch"
        if timeline.constant_moments
        else "no constant evaluation batch: no birth is called learnt"
    )
    return (
        f"{timeline.rows:,} rows of host steps {timeline.first_step:,} to {timeline.last_step:,}, "
        f"checkpoint {timeline.checkpoint}; {constant}"
    )


def _why(one: FeatureLife) -> str:
    """Of a birth; "": the verdict says it."""
    if one.withdrawn_step is not None:
        return f"{one.verdict}: an earlier look called step {one.withdrawn_step:,.0f} its birth"
    if one.verdict != "born":
        return ""
    unread = "in no feature of the SAE" if one.unread else ""
    seen = "" if one.look_step is None else f"as a look at step {one.look_step:,} saw it"
    return "; ".join(part for part in (unread, CAUSES.get(one.cause, ""), seen) if part)


def _life(one: FeatureLife, words: Sequence[str], points: int) -> Document:
    return {
        "feature": one.feature,
        "name": one.name,
        "unread": one.unread,
        "verdict": one.verdict,
        "cause": _why(one),
        "born": plain(one.born_step, 7),
        "low": plain(one.born_low, 7),
        "high": plain(one.born_high, 7),
        "died": plain(one.died_step, 7),
        "rate": plain(one.rate_after),
        "useful": plain(one.usefulness),
        "late": plain(one.late_by_steps),
        "rates": [*(plain(rate) for rate in one.rates), *[None] * (points - len(one.rates))],
        "words": words[one.feature] if one.look_step is None and one.feature < len(words) else "",
    }


def _resampled(lives: Lives | None) -> Document | None:
    """How many features began anew when, as the trainer did it to dead ones."""
    if lives is None:
        return None
    steps = sorted(
        int(step)
        for step, generation in zip(lives.born_host_step, lives.generation, strict=True)
        if int(generation) > 0
    )
    if not steps:
        return {"features": 0, "edges": [], "counts": []}
    low, high = steps[0], max(steps[-1], steps[0] + 1)
    counts = [0] * BINS
    for step in steps:
        counts[min(BINS - 1, (step - low) * BINS // (high - low))] += 1
    edges = [low + (high - low) * at / BINS for at in range(BINS + 1)]
    return {"features": len(steps), "edges": [plain(e, 7) for e in edges], "counts": counts}
