"""recovery: from the SIGKILL of a worker to its successor consuming, while the host goes on.

"Consuming" means that the successor is ready and its group's delivered count has risen. The account
is polled every millisecond, which is what the figure resolves.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from pydantic import Field

from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioError,
    ScenarioOptions,
    ScenarioPlugin,
)
from asys_bench.contracts.stats import SlotField, WorkerState
from asys_bench.harness.scenarios.beside_run import add_account, master_config
from asys_bench.run.experiment import ExperimentPipeline

POLL_S = 0.001


class RecoveryOptions(ScenarioOptions):
    """`params` of a recovery case."""

    worker: str = Field(default="archive-0", description="the worker that is killed")
    group: str = Field(default="archive", description="its consumer group")
    kills: int = Field(default=1, ge=1, le=5, description="per round (the watchdog's budget is 5)")
    patience_s: float = Field(default=20, gt=0, le=300, description="longest wait for each step")


class _Killer(threading.Thread):
    """Kills and waits beside the host's own loop; `failure` says what went wrong."""

    def __init__(self, pipeline: ExperimentPipeline, context: RoundContext) -> None:
        super().__init__(name="killer", daemon=True)
        options = context.options
        assert isinstance(options, RecoveryOptions)
        self._pipeline, self._options = pipeline, options
        self._recorder = context.recorder("recovery_ms")
        self.failure: str | None = None

    def run(self) -> None:
        try:
            self._wait_delivered(0)
            for _ in range(self._options.kills):
                self._one_kill()
        except Exception as error:  # noqa: BLE001 - raised again by the round's own thread
            self.failure = f"{type(error).__name__}: {error}"
        finally:
            self._pipeline.request_stop()

    def _one_kill(self) -> None:
        slot = self._pipeline.session.page.slot(self._options.worker)
        victim, life = slot.get(SlotField.PID), slot.get(SlotField.INCARNATION)
        os.kill(victim, signal.SIGKILL)
        killed_ns = time.monotonic_ns()
        self._wait(
            lambda: (
                slot.get(SlotField.INCARNATION) > life
                and slot.get(SlotField.PID) != victim
                and slot.state is WorkerState.READY
            ),
            "a successor",
        )
        self._wait_delivered(self._delivered())
        self._recorder.record(time.monotonic_ns() - killed_ns)

    def _wait_delivered(self, before: int) -> None:
        self._wait(lambda: self._delivered() > before, f"packets for {self._options.group}")

    def _delivered(self) -> int:
        bus = self._pipeline.session.bus
        if bus is None:
            raise TimeoutError("the pipeline has no hooks, so there is no bus")
        return bus.account().group(self._options.group).delivered

    def _wait(self, condition: object, what: str) -> None:
        assert callable(condition)
        deadline = time.monotonic() + self._options.patience_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not come in {self._options.patience_s:g} s")
            time.sleep(POLL_S)


def run(context: RoundContext) -> None:
    """Set up, let it consume, kill, wait for the successor, drain."""
    pipeline = ExperimentPipeline(master_config(context))
    try:
        pipeline.setup()
        killer = _Killer(pipeline, context)
        with context.timed():
            killer.start()
            pipeline.run()
            killer.join()
        outcome = pipeline.shutdown()
        add_account(context, outcome, kills=True)
        if killer.failure is not None:
            raise ScenarioError(killer.failure)
        if not outcome.orderly:
            raise ScenarioError("not every worker drained in time; see its log")
    except BaseException:
        pipeline.abort()
        raise
    finally:
        pipeline.close()


plugin = ScenarioPlugin(
    name="recovery",
    summary="SIGKILL of a worker to its successor consuming, in the production pipeline",
    options=RecoveryOptions,
    takes="pipeline",
    metrics={"recovery_ms": MetricSpec("lower", MetricKind.SAMPLES, "kill to consuming")},
    run=run,
)
