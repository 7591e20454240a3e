"""False alarms on streams without a change, counted against the configured budget.

`python alarm_streams.py`: KINDS (comma-separated, all without), STREAMS (256) of each kind, in parts of
LENGTH (4,000) values, until EXPECTED (20) false alarms are the budget at one per RUN_LENGTH (1e5) values of a
watcher. A JSON line a kind: how many came, and the upper 95 % limit of their rate as a multiple of the budget
(Poisson). CLEAN (0): so many clean runs of each of POLICIES (2) policies, of UPDATES (150) updates, are made
by `alarm_exploit.py` and replayed by a local block bootstrap instead; LENGTH is then theirs.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np

from asys_bench.change.alarm.bank import DAY_S, SPANS, DetectorBank

GIVEN = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "change" / "alarm" / "streams.py"))


def upper_limit(count: int) -> float:
    """Of the mean of a Poisson count, one-sided 95 %."""
    from scipy.stats import chi2

    return float(chi2.ppf(0.95, 2 * (count + 1)) / 2)


def lower_limit(count: int) -> float:
    from scipy.stats import chi2

    return float(chi2.ppf(0.05, 2 * count) / 2) if count else 0.0


def count(make, streams: int, length: int, run_length: float, expected: float, seed: int) -> dict:
    """False alarms of one kind. make: (generator, shape) -> values."""
    parts = max(1, -(-int(expected * run_length) // (streams * length)))
    random = np.random.default_rng(seed)
    by_span = dict.fromkeys(SPANS, 0)
    for part in range(parts):
        bank = DetectorBank(
            false_alarms_per_day=streams * DAY_S / run_length, interval_s=1.0, seed=seed + part
        )
        for _ in range(streams):
            bank.add("both")
        for row in make(random, (length, streams)):
            for finding in bank.update(row):
                by_span[finding.span] += 1
    alarms, values = sum(by_span.values()), parts * streams * length
    budget = values / run_length
    return {
        "values": values, "run_length": run_length, "budget": budget, "alarms": alarms,
        "by_span": by_span, "of_budget": alarms / budget,
        "low_95": lower_limit(alarms) / budget, "high_95": upper_limit(alarms) / budget,
    }  # fmt: skip


def replayed(clean: list[np.ndarray]):
    """Replays of clean runs by a local block bootstrap. clean: [ticks, runs, watchers] of each policy. Each
    stream is of any of the watchers, whether or not its values ever change."""
    watched = [clean_TR for clean_TRW in clean for clean_TR in clean_TRW.transpose(2, 0, 1)]

    def make(random, shape):
        of_stream = random.integers(len(watched), size=shape[1])
        made_TN = np.empty(shape)
        for number in np.unique(of_stream):
            own = np.flatnonzero(of_stream == number)
            made_TN[:, own] = GIVEN["local_block_bootstrap"](
                random, watched[number], (shape[0], len(own))
            )
        return made_TN

    return make


def clean_runs(policies: int, runs: int, updates: int) -> list[np.ndarray]:
    """What the SAE's watchers see while so many policies are fine-tuned so many times, without an exploit."""
    exploit = runpy.run_path(str(Path(__file__).parent / "alarm_exploit.py"))
    return [
        exploit["clean_values"](number, range(5000, 5000 + runs), updates)
        for number in range(policies)
    ]


def in_use(clean_TRW: np.ndarray) -> np.ndarray:
    """FVU, and features that fire in at least one of a hundred of a policy's own rows: what was silent and
    begins to fire is a change, whoever caused it."""
    density_W = clean_TRW[:40].mean((0, 1))
    return clean_TRW[:, :, np.r_[True, density_W[1:] >= 0.01]]


def main() -> None:
    take = lambda name, default: type(default)(os.environ.get(name, default))  # noqa: E731
    kinds, length = dict(GIVEN["KINDS"]), take("LENGTH", 4000)
    runs = take("CLEAN", 0)
    if runs:
        clean = clean_runs(take("POLICIES", 2), runs, take("UPDATES", 150))
        length = len(clean[0])
        kinds = {
            "clean runs, replayed, in use": replayed([in_use(one) for one in clean]),
            "clean runs, replayed, all": replayed(clean),
        }
        print(json.dumps({"clean runs": [one.shape for one in clean]}), flush=True)
    wanted = os.environ.get("KINDS")
    for kind, make in kinds.items():
        if wanted and kind not in wanted.split(","):
            continue
        found = count(
            make, take("STREAMS", 256), length, take("RUN_LENGTH", 1e5),
            take("EXPECTED", 20.0), take("SEED", 1),
        )  # fmt: skip
        print(json.dumps({"kind": kind, **found}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
