"""False alarms on streams without a change, counted against the configured budget.

`python alarm_streams.py`: KINDS (comma-separated, all without), STREAMS (256) of each kind, in parts of
LENGTH (4,000) values, until EXPECTED (20) false alarms are the budget at one per RUN_LENGTH (1e5) values of a
watcher. A JSON line a kind: how many came, and the upper 95 % limit of their rate as a multiple of the budget
(Poisson). CLEAN names a .npy file with values [T, runs, watchers] of clean runs (`alarm_exploit.py` writes
one where KEEP says): each watcher whose values change is replayed by a local block bootstrap of its runs.
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


def replayed(path: Path):
    clean_TRW = np.load(path)
    alive = [
        clean_TR for clean_TR in clean_TRW.transpose(2, 0, 1) if (np.ptp(clean_TR, 0) > 0).all()
    ]
    print(json.dumps({"runs": clean_TRW.shape, "watchers whose values change": len(alive)}))

    def make(random, shape):
        of_stream = np.arange(shape[1]) % len(alive)
        made_TN = np.empty(shape)
        for number, clean_TR in enumerate(alive):
            own = np.flatnonzero(of_stream == number)
            made_TN[:, own] = GIVEN["local_block_bootstrap"](random, clean_TR, (shape[0], len(own)))
        return made_TN

    return make


def main() -> None:
    take = lambda name, default: type(default)(os.environ.get(name, default))  # noqa: E731
    kinds = dict(GIVEN["KINDS"])
    clean = os.environ.get("CLEAN")
    if clean:
        kinds = {"clean runs, replayed": replayed(Path(clean))}
    wanted = os.environ.get("KINDS")
    for kind, make in kinds.items():
        if wanted and kind not in wanted.split(","):
            continue
        found = count(
            make, take("STREAMS", 256), take("LENGTH", 4000), take("RUN_LENGTH", 1e5),
            take("EXPECTED", 20.0), take("SEED", 1),
        )  # fmt: skip
        print(json.dumps({"kind": kind, **found}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
