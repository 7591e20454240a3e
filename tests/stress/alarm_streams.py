"""False alarms on streams without a change, counted against the configured budget, and delays with one.

`python alarm_streams.py`: KINDS (separated by semicolons, all without), STREAMS (256) of each kind, in
parts of LENGTH (4,000) values, until EXPECTED (20) false alarms are the budget at one per RUN_LENGTH (1e5)
values of a watcher. A JSON line a kind: how many came, and the upper 95 % limit of their rate as a multiple
of the budget (Poisson). CLEAN (0): so many clean runs of each of POLICIES (2) policies, of UPDATES (150)
updates, are made by `alarm_exploit.py` and replayed by a local block bootstrap instead; LENGTH is then
theirs, and VALUES (a .npz) keeps their values for another time.

PLANTED=1: lasting shifts instead, of SHIFTS (4,8) times the noise, after BEFORE (500) values: how many values
later the alarm comes (quartiles), and in which share of the streams within 50 values.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asys_bench.change.alarm.bank import DAY_S, SPANS, DetectorBank
from asys_bench.change.alarm.watchers import LEAST_DENSITY

GIVEN = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "change" / "alarm" / "streams.py"))
WITHIN = 50


class Replays(NamedTuple):
    """A kind of stream: values by (generator, shape), and of stream n the least change that counts."""

    make: Callable
    least: Callable[[int], float] = lambda number: 0.0


def upper_limit(count: int) -> float:
    """Of the mean of a Poisson count, one-sided 95 %."""
    from scipy.stats import chi2

    return float(chi2.ppf(0.95, 2 * (count + 1)) / 2)


def lower_limit(count: int) -> float:
    from scipy.stats import chi2

    return float(chi2.ppf(0.05, 2 * count) / 2) if count else 0.0


def bank_of(streams: int, run_length: float, seed: int, least=lambda number: 0.0) -> DetectorBank:
    bank = DetectorBank(
        false_alarms_per_day=streams * DAY_S / run_length, interval_s=1.0, seed=seed
    )
    for number in range(streams):
        bank.add("both", least(number))
    return bank


def count(
    kind: Callable | Replays,
    streams: int,
    length: int,
    run_length: float,
    expected: float,
    seed: int,
) -> dict:
    """False alarms of one kind."""
    make, least = kind if isinstance(kind, Replays) else Replays(kind)
    parts = max(1, -(-int(expected * run_length) // (streams * length)))
    random = np.random.default_rng(seed)
    by_span, of_stream = dict.fromkeys(SPANS, 0), np.zeros(streams, int)
    for part in range(parts):
        bank = bank_of(streams, run_length, seed + part, least)
        for row in make(random, (length, streams)):
            for finding in bank.update(row):
                by_span[finding.span] += 1
                of_stream[finding.watcher] += 1
    alarms, values = sum(by_span.values()), parts * streams * length
    budget = values / run_length
    return {
        "values": values, "run_length": run_length, "budget": budget, "alarms": alarms,
        "by_span": by_span, "streams_with_one": int((of_stream > 0).sum()), "of_budget": alarms / budget,
        "low_95": lower_limit(alarms) / budget, "high_95": upper_limit(alarms) / budget,
    }  # fmt: skip


def delays(make: Callable, shift: float, streams: int, before: int, run_length: float) -> dict:
    """A lasting shift after so many values, in a bank of so many watchers. Alarms before it do not count."""
    values = make(np.random.default_rng(3), (before + 2 * WITHIN, streams))
    values[before:] += shift
    bank, first_N = bank_of(streams, run_length, 1), np.full(streams, np.inf)
    for at, row in enumerate(values):
        for finding in bank.update(row):
            if at >= before:
                first_N[finding.watcher] = min(first_N[finding.watcher], at - before + 1)
    found = first_N[first_N <= WITHIN]
    return {
        "shift": shift, "streams": streams, "before": before, "run_length": run_length,
        "found": len(found) / streams,
        "values_quartiles": np.percentile(found, [25, 50, 75, 99]).tolist() if len(found) else None,
    }  # fmt: skip


def replayed(clean: list[np.ndarray]) -> Replays:
    """Replays of clean runs by a local block bootstrap. clean: [ticks, runs, watchers] of each policy, of
    which the first is FVU and the others densities. Streams are of all watchers in turn, whether or not
    their values ever change."""
    watched = [clean_TR for clean_TRW in clean for clean_TR in clean_TRW.transpose(2, 0, 1)]
    least = [LEAST_DENSITY * (at > 0) for clean_TRW in clean for at in range(clean_TRW.shape[2])]

    def make(random, shape):
        of_stream = np.arange(shape[1]) % len(watched)
        made_TN = np.empty(shape)
        for number in np.unique(of_stream):
            own = np.flatnonzero(of_stream == number)
            made_TN[:, own] = GIVEN["local_block_bootstrap"](
                random, watched[number], (shape[0], len(own))
            )
        return made_TN

    return Replays(make, lambda number: least[number % len(least)])


def clean_runs(policies: int, runs: int, updates: int) -> list[np.ndarray]:
    """What the SAE's watchers see while so many policies are fine-tuned so many times, without an exploit."""
    exploit = runpy.run_path(str(Path(__file__).parent / "alarm_exploit.py"))
    return [
        exploit["clean_values"](number, range(5000, 5000 + runs), updates)
        for number in range(policies)
    ]


def kept_clean_runs(path: str | None, policies: int, runs: int, updates: int) -> list[np.ndarray]:
    """`clean_runs`, from a file if it is there."""
    if path is not None and Path(path).exists():
        with np.load(path) as kept:
            return [kept[name] for name in sorted(kept)]
    clean = clean_runs(policies, runs, updates)
    if path is not None:
        np.savez(path, **{f"policy_{at:03d}": one for at, one in enumerate(clean)})
    return clean


def in_use(clean_TRW: np.ndarray) -> np.ndarray:
    """FVU, and features that fire in at least one of a hundred of a policy's own rows."""
    density_W = clean_TRW[:40].mean((0, 1))
    return clean_TRW[:, :, np.r_[True, density_W[1:] >= 0.01]]


def report_of_runs(clean: list[np.ndarray], run_length: float) -> None:
    """Alarms of the clean runs themselves."""
    for name, pick in (("in use", in_use), ("all", lambda one: one)):
        alarms, values = 0, 0
        for clean_TRW in map(pick, clean):
            ticks, runs, watchers = clean_TRW.shape
            bank = bank_of(
                runs * watchers, run_length, 1, lambda n, w=watchers: LEAST_DENSITY * (n % w > 0)
            )
            alarms += sum(len(bank.update(row)) for row in clean_TRW.reshape(ticks, -1))
            values += clean_TRW.size
        print(json.dumps({
            "kind": f"clean runs themselves, {name}", "run_length": run_length, "alarms": alarms,
            "budget": values / run_length,
        }), flush=True)  # fmt: skip


def main() -> None:
    take = lambda name, default: type(default)(os.environ.get(name, default))  # noqa: E731
    kinds, length = dict(GIVEN["KINDS"]), take("LENGTH", 4000)
    wanted = os.environ.get("KINDS")
    run_length = take("RUN_LENGTH", 1e5)
    if take("CLEAN", 0):
        clean = kept_clean_runs(
            os.environ.get("VALUES"), take("POLICIES", 2), take("CLEAN", 0), take("UPDATES", 150)
        )
        length = len(clean[0])
        kinds = {
            "clean runs, replayed, in use": replayed([in_use(one) for one in clean]),
            "clean runs, replayed, all": replayed(clean),
        }
        print(json.dumps({"clean runs": [one.shape for one in clean]}), flush=True)
        report_of_runs(clean, run_length)
    for kind, make in kinds.items():
        if wanted and kind not in wanted.split(";"):
            continue
        if take("PLANTED", 0):
            for shift in map(float, take("SHIFTS", "4,8").split(",")):
                told = delays(make, shift, take("STREAMS", 256), take("BEFORE", 500), run_length)
                print(json.dumps({"kind": kind, **told}), flush=True)
            continue
        found = count(
            make, take("STREAMS", 256), length, run_length, take("EXPECTED", 20.0), take("SEED", 1)
        )
        print(json.dumps({"kind": kind, **found}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
