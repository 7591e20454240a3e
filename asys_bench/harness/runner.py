"""The runner: carries out a suite's plan, one round after another, and keeps the result up to date.

After each round the whole result is on disk, so that nothing is lost to Ctrl-C or a power cut. A
contender that crashes, hangs or breaks integrity is reported and left out; the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import asys_bench
from asys_bench.harness.judging.judge import CaseRecord, judge
from asys_bench.harness.judging.outcome import conclude, power_notes
from asys_bench.harness.measuring.environment import run_checks
from asys_bench.harness.measuring.launch import Launcher, RoundEnd, launcher_for
from asys_bench.harness.measuring.machine import build_hashes, capture_machine, commit
from asys_bench.harness.measuring.noise import judge_noise
from asys_bench.harness.planning.contender import Contender
from asys_bench.harness.planning.pilot import Candidate, affordable
from asys_bench.harness.planning.plan import block_order, replacement_budget, seed_of
from asys_bench.harness.planning.suite_file import LoadedSuite
from asys_bench.harness.plugins import backend_plugin, metrics_of, scenario_plugin
from asys_bench.harness.progress import Progress, Silent
from asys_bench.harness.results.result import (
    Case,
    Instrument,
    Noise,
    Result,
    Round,
    RunInfo,
    Subject,
    SuiteInfo,
)
from asys_bench.harness.results.result_run import CaseStatus, Level, Role, RoundStatus, Verdict
from asys_bench.harness.results.store import RESULT_FILE, write_result
from asys_bench.registry import PluginError


@dataclass
class SuiteRunner:
    """One run of one suite.

    out: folder in which the run makes its own.
    launcher: for tests; None takes what the suite asks for.
    """

    loaded: LoadedSuite
    out: Path
    command: list[str]
    progress: Progress = field(default_factory=Silent)
    launcher: Launcher | None = None
    instrument: Callable[[], Instrument] | None = None

    def run(self) -> Result:
        """Measure and judge; the result is in `<out>/<id>/result.json` at every moment.

        Raises:
            OSError: the output folder cannot be written.
        """
        self._prepare()
        if self._refused:
            return self._finish(refused=True)
        try:
            self._blocks()
        except KeyboardInterrupt:
            return self._finish(interrupted=True)
        finally:
            self._close_launchers()
        return self._finish()

    def _prepare(self) -> None:
        suite = self.loaded.suite
        self._started = time.monotonic()
        now = datetime.now(UTC)
        self._info = RunInfo(
            id=f"{now:%Y%m%d-%H%M%S}-{suite.name}",
            started=now.isoformat(timespec="seconds"),
            elapsed_s=0.0,
            command=self.command,
            version=asys_bench.__version__,
            commit=(head := commit())[0],
            dirty=head[1],
            seed=suite.seed,
            suite=SuiteInfo(
                name=suite.name,
                path=self.loaded.shown,
                sha256=self.loaded.sha256,
                resolved=suite.to_plain(),
            ),
        )
        folder, attempt = self.out / self._info.id, 1
        while folder.exists():
            attempt += 1
            folder = self.out / f"{self._info.id}-{attempt}"
        self._info.id = folder.name
        self.path = folder / RESULT_FILE
        self._machine = capture_machine(suite.machine_class)
        self.progress.message("checking the environment and the instrument")
        self._checks = run_checks(suite.environment)
        if self.instrument is None:
            from asys_bench.harness.measuring.instrument import measure_instrument

            self.instrument = measure_instrument
        self._instrument = self.instrument()
        self._floors = {floor.metric: floor.value for floor in self._instrument.floors}
        self._refused = any(not c.ok and c.level is Level.ERROR for c in self._checks)
        self.records = {c.id: self._record(c) for c in self.loaded.contenders}
        self._order = 0
        self._cases: list[Case] = []
        self._notes = power_notes(self.loaded)
        if self.loaded.only:
            self._notes.append(f"a part of the suite: --only {' '.join(self.loaded.only)}")
        self._late: dict[str, str] = {}
        """Cases that are open and wait for time: why."""
        self._replacements: dict[str, int] = {}
        self._launchers: dict[str | None, Launcher] = {}
        self._limit = {name: self._first_limit(r.contender) for name, r in self.records.items()}

    def _record(self, contender: Contender) -> CaseRecord:
        plugin = scenario_plugin(contender.scenario)
        hashes = build_hashes(plugin)
        if contender.backend is not None:
            try:
                hashes = build_hashes(backend_plugin(contender.backend))
            except PluginError:
                hashes = {}
        name = contender.backend or contender.pipeline or contender.scenario
        subject = Subject(
            kind="scenario" if plugin.takes == "nothing" else plugin.takes,
            name=name,
            backend=contender.backend,
            params=contender.params,
            pipeline_sha256=contender.pipeline_sha256,
            build_hashes=hashes,
        )
        return CaseRecord(contender, metrics_of(plugin), subject)

    def _first_limit(self, contender: Contender) -> int:
        judged = contender.gated or contender.role is not Role.CASE
        return contender.looks[0].rounds if judged and contender.looks else contender.rounds

    def _blocks(self) -> None:
        """Block after block, until nothing asks for another round."""
        self.progress.plan(self._planned(), len(self.records))
        block = 0
        while True:
            self._raise_limits()
            due = [name for name in self._able() if self._counted(name) < self._limit[name]]
            if not due:
                return
            for name in block_order(due, block, self.loaded.suite.seed):
                self._one_round(name, block)
                if self.records[name].rounds[-1].replaced:
                    self._one_round(name, block)  # in the same block, so that ratios stay paired
            self._close_launchers()  # so that each block has a memory layout of its own
            block += 1

    def _able(self) -> list[str]:
        return [n for n, r in self.records.items()
                if r.status in (CaseStatus.MEASURED, CaseStatus.NOT_RUN)]  # fmt: skip

    def _counted(self, name: str) -> int:
        return sum(not r.replaced for r in self.records[name].rounds)

    def _raise_limits(self) -> None:
        """Whoever reached a look undecided goes on to the next, with the references it needs, if those
        rounds may decide it and there is time for them."""
        able = self._able()
        undecided = [one for name in able if (one := self._candidate(name)) is not None]
        hopeful = [one for one in undecided if one.hopeless is None]
        going_on = affordable(hopeful, self._free_s(able))
        self._note(*(one.hopeless for one in undecided if one.hopeless is not None))
        self._late = {one.name: one.late for one in hopeful if one not in going_on}
        for one in going_on:
            for name in self._with_references(one.name):
                self._limit[name] = max(self._limit[name], self._counted(one.name) + one.rounds)
            self.progress.plan(self._planned(), len(self.records))

    def _candidate(self, name: str) -> Candidate | None:
        """A case that has reached a look which leaves a target of it open, a miss that does not stand
        after Holm among them."""
        contender, counted = self.records[name].contender, self._counted(name)
        later = [look.rounds for look in contender.looks if look.rounds > self._limit[name]]
        if contender.role is not Role.CASE or not contender.gated or not later:
            return None
        if counted < self._limit[name]:
            return None
        found = next((case for case in self._cases if case.id == name), None)
        needs = [
            target.needs.rounds if target.needs else None
            for target in (found.targets if found is not None else ())
            if target.verdict is Verdict.INCONCLUSIVE
        ]
        if not needs:
            return None
        known = [one for one in needs if one is not None]
        return Candidate(
            name,
            rounds=later[0] - counted,
            most=later[-1] - counted,
            needs=min(known) if len(known) == len(needs) else None,
            round_s=sum(self._round_s(one) for one in self._with_references(name)),
        )

    def _with_references(self, name: str) -> list[str]:
        targets = self.records[name].contender.targets
        return list(dict.fromkeys([name, *(p.reference_id for p in targets if p.reference_id)]))

    def _round_s(self, name: str) -> float:
        rounds = self.records[name].rounds
        return sum(one.wall_s for one in rounds) / max(1, len(rounds))

    def _free_s(self, able: list[str]) -> float | None:
        """What the suite's budget leaves beside the rounds that are still to come; None: no budget."""
        budget_s = self.loaded.suite.defaults.budget_s
        if budget_s is None:
            return None
        to_come = sum(
            self._round_s(name) * max(0, self._limit[name] - self._counted(name)) for name in able
        )
        return float(budget_s) - (time.monotonic() - self._started) - to_come

    def _note(self, *notes: str) -> None:
        self._notes += [note for note in dict.fromkeys(notes) if note not in self._notes]

    def _planned(self) -> int:
        return sum(self._limit[name] for name in self._able())

    def _one_round(self, name: str, block: int) -> None:
        record = self.records[name]
        contender = record.contender
        seed = seed_of(self.loaded.suite.seed, "round", contender.family, str(block))
        done = sum(len(r.rounds) for r in self.records.values())
        self.progress.round(name, done, self._planned(), self._left_s(done))
        started_s = time.monotonic() - self._started
        spec = contender.round_spec(seed, plugins=self.loaded.plugins)
        end = self._launcher(contender).run(spec, contender.timeout_s)
        found = self._round_of(record, end, block, seed, started_s)
        record.rounds.append(found)
        if end.samples is not None:
            record.samples[found.order] = end.samples
        if found.status is not RoundStatus.OK:
            record.reason = f"round {found.index}: {end.error}"
            record.log = end.log
            self.progress.message(f"{name}: {found.status.value} in {record.reason}")
        self._order += 1
        self._write(complete=False)

    def _close_launchers(self) -> None:
        for launcher in self._launchers.values():
            launcher.close()

    def _launcher(self, contender: Contender) -> Launcher:
        python = contender.python
        if python not in self._launchers:
            process = self.loaded.suite.defaults.process
            self._launchers[python] = self.launcher or launcher_for(process, python)
        return self._launchers[python]

    def _round_of(
        self, record: CaseRecord, end: RoundEnd, block: int, seed: int, started_s: float
    ) -> Round:
        contender = record.contender
        document = dict(end.document or {})
        timed_s = document.pop("timed_s", end.wall_s)
        for unused in ("faults", "pid"):
            document.pop(unused, None)
        noise = Noise.model_validate(document.pop("noise", {}))
        noise = judge_noise(noise, timed_s, contender.noise)
        replaced = self._replace(contender, noise, end.status)
        return Round.model_validate(
            {
                **document,
                "index": block,
                "order": self._order,
                "pid": end.pid,
                "seed": seed,
                "started_s": started_s,
                "wall_s": end.wall_s,
                "status": end.status,
                "error": end.error,
                "noise": noise,
                "replaced": replaced,
            }
        )

    def _replace(self, contender: Contender, noise: Noise, status: RoundStatus) -> bool:
        """Leave the round out: only on noise evidence, never on its latency, at most 10 %."""
        if not noise.noisy or status is not RoundStatus.OK:
            return False
        used = self._replacements.get(contender.id, 0)
        if used >= replacement_budget(self._limit[contender.id]):
            return False
        self._replacements[contender.id] = used + 1
        self._notes.append(f"{contender.id}: a round was replaced: {', '.join(noise.evidence)}")
        return True

    def _left_s(self, done: int) -> float | None:
        if not done:
            return None
        spent = sum(r.wall_s for record in self.records.values() for r in record.rounds)
        return spent / done * max(0, self._planned() - done)

    def _write(self, complete: bool) -> Result:
        """Judge what there is and put it on disk."""
        suite = self.loaded.suite
        self._cases = judge(self.records, self._floors, suite.defaults.confidence)
        result = self._result(self._cases, complete)
        write_result(result, self.path)
        return result

    def _result(self, cases: list[Case], complete: bool, *, interrupted: bool = False) -> Result:
        end = conclude(
            cases,
            self._checks,
            self.loaded.suite.defaults,
            interrupted=interrupted or (not complete and not self._refused),
            refused=self._refused,
        )
        info = self._info.model_copy(
            update={"elapsed_s": time.monotonic() - self._started, "complete": complete}
        )
        return Result(
            run=info,
            machine=self._machine,
            instrument=self._instrument,
            checks=self._checks,
            validity=end.validity,
            cases=cases,
            verdict=end.verdict,
            exit_code=end.exit_code,
            counts=end.counts,
            notes=[*self._notes, *self._late.values()],
        )

    def _finish(self, *, interrupted: bool = False, refused: bool = False) -> Result:
        cases = judge(self.records, self._floors, self.loaded.suite.defaults.confidence)
        complete = not interrupted and not refused
        result = self._result(cases, complete, interrupted=interrupted)
        write_result(result, self.path)
        return result
