"""False alarms, an exploit and the time to the flag (`alarm_streams`, `alarm_exploit`, `alarm_latency`).

`make soak` (ASYS_SOAK=1) runs them at their full size, by the variables that each driver names.
"""

from __future__ import annotations

import json
import os

import pytest

from . import alarm_exploit, alarm_latency, alarm_streams

SOAK = os.environ.get("ASYS_SOAK") == "1"
KINDS = sorted(alarm_streams.GIVEN["KINDS"])
QUICK = ("AR(1) 0.99", "Student t2", "learning", "GARCH(1,1)")


@pytest.mark.rest
@pytest.mark.stress
@pytest.mark.timeout(3600 if SOAK else 600)
@pytest.mark.parametrize("kind", KINDS if SOAK else QUICK)
def test_false_alarms_are_at_most_twice_the_budget(kind):
    """The upper 95 % limit. Here 20 are expected at a budget of one per 2,000 values."""
    run_length, size = (1e5, (256, 4000)) if SOAK else (2000.0, (64, 625))
    make = alarm_streams.GIVEN["KINDS"][kind]
    found = alarm_streams.count(make, *size, run_length, 20.0, seed=1)
    print(json.dumps({"kind": kind, **found}), flush=True)
    assert found["budget"] >= 19
    assert found["high_95"] <= 2


@pytest.mark.rest
@pytest.mark.stress
@pytest.mark.timeout(3600 if SOAK else 600)
def test_false_alarms_of_replayed_clean_runs_are_at_most_twice_the_budget():
    """FVU of the known SAE and densities of all its features, while policies are fine-tuned."""
    made = alarm_streams.clean_runs(*((2, 8, 150) if SOAK else (1, 2, 40)))
    streams, run_length = (660, 1e5) if SOAK else (264, 2000.0)
    kind = alarm_streams.replayed(made)
    found = alarm_streams.count(kind, streams, len(made[0]), run_length, 20.0, seed=1)
    print(json.dumps({"kind": "clean runs, replayed", **found}), flush=True)
    assert found["budget"] >= 19
    assert found["high_95"] <= 2


@pytest.mark.soak("minutes to an hour")
@pytest.mark.timeout(7200)
def test_an_exploit_is_caught_before_the_true_return_has_fallen(capsys):
    with capsys.disabled():
        alarm_exploit.main()
    exploited, clean = alarm_exploit.DONE
    told = alarm_exploit.summary(exploited, clean)
    assert told["fallen"] >= 0.9 * told["exploited"]
    assert told["spread and kl"]["caught"] >= 0.9 * told["fallen"]


@pytest.mark.soak("minutes to an hour")
@pytest.mark.timeout(3600)
def test_a_change_reaches_the_host_s_flag_within_a_second(tmp_path):
    rounds = [
        alarm_latency.measure(
            tmp_path / str(number), hooks=176, every_s=0.2, step_s=0.06, quiet_s=85.0, back_s=20.0
        )
        for number in range(4)
    ]
    found = alarm_latency.told(rounds)
    print(json.dumps(found), flush=True)
    assert found["found"] >= 0.99 * found["changes"]
    assert found["over"] >= 0.99 * found["found"]
    assert found["flag_s_p50_p90_p99_max"][2] <= 1.0
