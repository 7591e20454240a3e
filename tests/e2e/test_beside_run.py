"""What is measured beside a whole run: a neighbour's work, and the exporter's cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from asys_bench.harness.measuring.launch import FreshProcess, RoundEnd
from asys_bench.harness.results.result_run import RoundStatus
from asys_bench.harness.round import RoundSpec

PIPELINE = Path(__file__).parents[2] / "suites/pipelines/beside.yaml"


def one_round(scenario: str, samples: int, *sets: str, **params: object) -> RoundEnd:
    spec = RoundSpec(
        folder="",
        scenario=scenario,
        backend=None,
        pipeline=str(PIPELINE),
        sets=list(sets),
        params=params,
        samples=samples,
        seed=0,
        warmup_max_s=0,
    )
    return FreshProcess().run(spec, 400)


@pytest.mark.rest
@pytest.mark.timeout(600)
def test_a_neighbour_is_timed_and_every_process_is_where_the_plan_says():
    here = 'resources.pinning={host: "0", services: "0", workers: {"*": "0"}}'
    end = one_round("run_neighbour", 20, here, working_set_kib=64, task_cpu=0)
    assert end.status is RoundStatus.OK, f"{end.error}\n{end.log}"
    assert len(end.samples["task_ms"]) == 20
    assert end.document["values"]["misplaced"]["count"] == 0
    assert end.document["n"]["misplaced"] == 4, "host, trainer, archiver, watchdog"


@pytest.mark.rest
def test_a_cpu_that_is_not_there_is_named():
    end = one_round("run_neighbour", 20, load=False, task_cpu=4095)
    assert end.status is RoundStatus.CRASHED
    assert "task_cpu 4095 is not one of" in str(end.error)


@pytest.mark.rest
@pytest.mark.timeout(600)
def test_the_exporter_is_scraped_while_the_host_steps():
    exporter = "monitors.prometheus={kind: prometheus, options: {port: 0}}"
    end = one_round("scraped_run", 4, exporter, interval_s=0.2, settle_s=0.0)
    assert end.status is RoundStatus.OK, f"{end.error}\n{end.log}"
    assert len(end.samples["scrape_ms"]) == 4
    assert len(end.samples["step_ms"]) > 10
    assert 0 < end.document["values"]["exporter_cpu_ratio"]["median"] < 1
