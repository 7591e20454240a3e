"""`RunLifecycle`: the one life of a run, for `asys-run`'s hosts and for `observe()`.

The steps, in this order:

    place       confine this process to its CPUs; before the model is built
    create      the run's folder, config.yaml and documents
    start       bus, stats page and workers, then the hooks
    count       steps by calls of the model, versions of the weights by optimizer steps
    stop        no more hooks; workers drain, write and leave
    summarise   what the run came to
    close       memory, descriptors and CPUs are given back

`abort` ends a started run at once. Of several ranks of a node, local rank 0 owns the run and every other
rank joins it: `place` waits for the owner's folder, `create` writes nothing, and there is no summary.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asys_bench.capture.points.hookpoints import HookError, resolve
from asys_bench.capture.points.untrained_networks import unwrap
from asys_bench.capture.tags.clock import StepClock
from asys_bench.capture.tags.optimizer_watch import OptimizerWatch
from asys_bench.config import LoadedConfig, MasterConfig, dump_yaml
from asys_bench.config.problems import Origin
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.host import Feed, HostResult
from asys_bench.contracts.run_files import CONFIG_FILE
from asys_bench.contracts.stats import StatsPage
from asys_bench.contracts.torch_internals import is_compiled_in_place
from asys_bench.placement.manager import HostPlace, ResourceManager
from asys_bench.reports.run_summary.document import list_files
from asys_bench.reports.run_summary.summarise import summarise
from asys_bench.reports.run_summary.summary import RunSummary
from asys_bench.run.attempts import NOTHING_BEFORE, AttemptEnd, Continuation, open_run_dir
from asys_bench.run.forecast import SaeForecast, configured_l0
from asys_bench.run.rank_session import RankSession
from asys_bench.run.rendezvous import RankListener, find_run
from asys_bench.run.run_dir import RunDir
from asys_bench.run.session import ObservationSession
from asys_bench.run.streams import Told, hooks_differ, tell
from asys_bench.system.launcher import LocalRanks

_serials = itertools.count()
"""Runs of this process as one of several ranks; the ranks of a node find each other's by number."""
EXTRA_WAIT_S = 30.0
"""Other ranks wait this much longer for local rank 0 than its workers may take to start."""


@dataclass(frozen=True)
class RunOutcome:
    """A stopped run. `page` is readable until `RunLifecycle.close`."""

    run_dir: RunDir
    host: HostResult | None
    """None when the host raised."""
    account: BusAccount | None
    """None without hooks."""
    orderly: bool
    """Every worker drained, wrote and left in order."""
    page: StatsPage
    watchdog_restarts: int

    @property
    def imbalances(self) -> dict[str, int]:
        """Group -> packets unaccounted for; empty when the accounting identity holds."""
        if self.account is None:
            return {}
        found = {group.group: self.account.imbalance(group) for group in self.account.groups}
        return {name: off for name, off in found.items() if off}


class RunLifecycle:
    """One run; see the module docstring.

    provenance: origins of the configuration's values, for config.yaml; None leaves them out.
    ranks: this process's place among the ranks of its node; None: a run of this process alone.
    terminal: a monitor may draw on standard output.
    first_step: number of the step that the host is in at the start.
    """

    def __init__(
        self,
        config: MasterConfig,
        provenance: Mapping[str, Origin] | None = None,
        *,
        ranks: LocalRanks | None = None,
        terminal: bool = False,
        first_step: int = 0,
    ) -> None:
        self.config = config
        self._provenance = provenance
        self._ranks, self._terminal = ranks, terminal
        self._place = HostPlace(config)
        self._listener: RankListener | None = None
        self._resources: ResourceManager | None = None
        self.run_dir: RunDir | None = None
        """From `create` on."""
        self.session: ObservationSession | RankSession | None = None
        """From `start` to `close`."""
        self.hooks: tuple[str, ...] = ()
        """Names of the observed streams, from `start` on."""
        self._model: torch.nn.Module | None = None
        self._optimizers: OptimizerWatch | None = None
        self._started = time.monotonic()
        self._steps = first_step
        self._account: BusAccount | None = None
        self._before = NOTHING_BEFORE

    @property
    def is_owner(self) -> bool:
        """This process owns the bus and the workers."""
        return self._ranks is None or self._ranks.is_owner

    @property
    def steps(self) -> int:
        """Number of the host's step; of the last one after `close`."""
        return self.session.clock.host_step if self.session is not None else self._steps

    @property
    def account(self) -> BusAccount | None:
        """Every packet so far, by group; the final account after `stop`."""
        if isinstance(self.session, ObservationSession) and self.session.bus is not None:
            return self.session.bus.account()
        return self._account

    def place(self, model: torch.nn.Module | None = None) -> None:
        """Confine this process to its CPUs. A model that is built afterwards lies beside them.

        model: as its user calls it, where it is there already: of a rule with `missing: ok` this rank tells
            the owner what it hooks.

        Raises:
            ResourceError: `resources.pinning` is a map and cannot be had; HookError; RendezvousError: the
                ranks of this node do not find each other.
        """
        ranks = self._ranks
        if ranks is None or ranks.is_owner:
            processes = ranks.local_world_size if ranks is not None else 1
            if ranks is not None and processes > 1:
                self._listener = RankListener(ranks, next(_serials))
            self._resources = self._place.own(processes)
            return
        patience_s = self._patience_s
        told = None
        if model is not None and hooks_differ(self.config):
            told = tell(self.config, unwrap(model), model, ranks)
        path = find_run(ranks, next(_serials), patience_s, told)
        self.run_dir = RunDir(path, path.name)
        self._place.join(path)

    @property
    def _patience_s(self) -> float:
        return self.config.watchdog.startup_timeout_s + EXTRA_WAIT_S

    def create(self, documents: Mapping[str, Mapping[str, Any]] | None = None) -> RunDir:
        """The run's folder, new or of a run that goes on, with config.yaml and `documents`, by file name.

        Raises:
            As `open_run_dir`.
        """
        if self.run_dir is None:
            loaded = LoadedConfig(self.config, self._provenance or {}, ())
            self.run_dir = open_run_dir(loaded)
            self._before = Continuation.after(self.run_dir.earlier)
            self.run_dir.write_text(CONFIG_FILE, dump_yaml(self.config, self._provenance))
            for name, document in (documents or {}).items():
                self.run_dir.write_json(name, dict(document))
        return self.run_dir

    def go_on(self, step: int, before: Continuation | None = None) -> None:
        """Before `start`: the host goes on from a checkpoint of its own at `step`.

        before: what was counted until then; None: what run.json says of the attempts before.
        """
        self._steps = step
        self._before = before or self._before

    def counted(self) -> Continuation:
        """What has been counted so far, from the first attempt on."""
        account, session = self.account, self.session
        packets = self._before.packets + (account.produced if account is not None else 0)
        version = session.clock.weights_version if session is not None else 0
        return Continuation(version, packets)

    def start(
        self,
        model: torch.nn.Module | None,
        step_unit: str,
        *,
        feed: Feed | None = None,
        one_call_per_step: bool = False,
        on_misfit: Callable[[], None] | None = None,
        on_built: Callable[[Sequence[str]], None] | None = None,
        on_width: Callable[[str, int, Sequence[SaeForecast]], None] | None = None,
        on_eye: Callable[[str], None] | None = None,
    ) -> StepClock:
        """Start the workers, wait until they consume, then attach the hooks to `model`.

        model: as its user calls it, perhaps in a wrapper (DistributedDataParallel); None: the host pushes
            the packets of `feed` itself.
        one_call_per_step, on_misfit, on_width, on_eye: see `ObservationSession`.
        on_built: given the names of the hooks before anything starts.

        Raises:
            HookError, AssemblyError, BusError, SupervisorError, LiveRunError: with setting and fix.

        Whatever it raises, everything that it had started was ended and released.
        """
        session: ObservationSession | RankSession
        run_dir = self.create()
        inner = unwrap(model) if model is not None else None
        if self.is_owner:
            session = ObservationSession(
                self.config,
                inner,
                run_dir,
                feed=feed,
                step_unit=step_unit,
                terminal=self._terminal,
                resources=self._resources,
                ranks=self._ranks,
                told=self._told(),
                root=model,
                one_call_per_step=one_call_per_step,
                on_misfit=on_misfit,
                on_width=on_width,
                on_eye=on_eye,
                first_step=self._steps,
                goes_on_from=self._before,
            )
        else:
            assert self._ranks is not None
            assert inner is not None
            session = RankSession(
                self.config,
                inner,
                run_dir.path,
                self._ranks,
                root=model,
                first_step=self._steps,
                one_call_per_step=one_call_per_step,
            )
        if on_built is not None:
            on_built(session.hooks)
        session.start()
        self.session, self.hooks, self._model = session, session.hooks, model
        if self._listener is not None:
            self._listener.announce(run_dir.path)
        self._started = time.monotonic()
        return session.clock

    def _told(self) -> Sequence[Told]:
        """What the other ranks of the node hook, where that may differ."""
        if self._listener is None or not hooks_differ(self.config):
            return ()
        return self._listener.collect(self._patience_s)

    def start_without_model(self, step_unit: str) -> None:
        """Start a run of nothing, for a host that ended before it had a model: no hooks, no workers."""
        nothing: dict[str, Any] = {"hooks": (), "sinks": {}, "monitors": {}}
        self.config = self.config.model_copy(update=nothing)
        self.start(torch.nn.Module(), step_unit)

    def count(self, *, called: bool = False) -> bool:
        """Count each forward call of the model as a step until its host marks steps itself, and each
        step of an optimizer that holds its parameters as a version of the weights.

        called: the first forward call is under way already.
        False: the model was compiled in place, so that its calls cannot be counted.
        """
        if self.session is None or self._model is None:
            raise RuntimeError("the run has not started")
        clock = self.session.clock
        notices = None
        if isinstance(self.session, ObservationSession) and self.session.captures_gradients:
            notices = self.session.notices
        self._optimizers = OptimizerWatch(unwrap(self._model), clock, notices)
        self._optimizers.attach()
        if is_compiled_in_place(self._model):
            return False
        clock.count_calls(called=called)
        return True

    def end_counting(self) -> None:
        """The last counted step has ended. Idempotent."""
        if self.session is not None:
            self.session.clock.end_counting()
        if self._optimizers is not None:
            self._optimizers.detach()

    def result(self) -> HostResult:
        """What a host came to that returns no result of its own: steps and seconds since the start."""
        steps = self.session.clock.steps_made if self.session is not None else 0
        return HostResult(steps, time.monotonic() - self._started)

    def stop(
        self,
        result: HostResult | None,
        how: AttemptEnd | None = None,
        within_s: float | None = None,
    ) -> RunOutcome:
        """Detach, drain, flush, join: at most `within_s` (`run.drain_timeout_s` without) and about a
        second. Idempotent.

        result: for run.json and the summary; None when the host raised.
        how: None: as the result says.
        """
        session, run_dir = self.session, self.run_dir
        if session is None or run_dir is None:
            raise RuntimeError("the run has not started")
        self.end_counting()
        figures = None
        if result is not None:
            figures = {
                "steps": result.steps,
                "seconds": result.seconds,
                "stopped_early": result.stopped_early,
                **result.figures,
            }
        if how is None:
            how = AttemptEnd.FINISHED if result is not None else AttemptEnd.FAILED
        end = session.stop(figures, how, within_s)
        self._account = end.account
        return RunOutcome(
            run_dir, result, end.account, end.orderly, session.page, end.watchdog_restarts
        )

    def summarise(
        self,
        outcome: RunOutcome,
        elapsed_s: float,
        *,
        failed: bool = False,
        shown: Path | None = None,
    ) -> RunSummary:
        """The summary of the stopped run; nothing is written.

        elapsed_s: wall time of the whole run. shown: its folder, as the summary is to name it.
        """
        session = self.session
        if not isinstance(session, ObservationSession):
            raise RuntimeError("local rank 0 writes the summary")
        run_dir = outcome.run_dir
        return summarise(
            outcome.page,
            outcome.account,
            outcome.host,
            list_files(run_dir.path),
            run_id=run_dir.run_id,
            run_dir=shown or run_dir.path,
            step_unit=session.step_unit,
            outcome="failed" if failed else None,
            elapsed_s=elapsed_s,
            configured_l0=configured_l0(self.config, session.hooks),
            notices=session.notices.messages,
            worker_messages=session.worker_messages,
            devices={name: found["device"] for name, found in session.devices.items()},
            attempts=session.attempts,
        )

    def pause(self, paused: bool) -> None:
        """Calls of hooked modules are not captured meanwhile; see `StepClock.paused`."""
        if self.session is not None:
            self.session.clock.paused = paused

    def constant(self, constant: bool) -> None:
        """Packets are of the constant evaluation batch meanwhile; see `StepClock.constant`."""
        if self.session is not None:
            self.session.clock.constant = constant

    def abort(self) -> None:
        """End every worker at once, without draining."""
        if isinstance(self.session, ObservationSession):
            self.session.abort()

    def refuse(self, error: Exception) -> None:
        """There will be no run: the other ranks are told why, and this process gets its CPUs back."""
        if self._listener is not None:
            self._listener.refuse(str(error))
        self._place.release()
        if self.run_dir is not None:
            self.run_dir.release()

    def close(self) -> None:
        """Release memory, descriptors and CPUs, each though another fails. Idempotent."""
        session, listener = self.session, self._listener
        with ExitStack() as steps:
            steps.callback(self._place.release)
            if session is not None:
                self._steps = session.clock.host_step
                steps.callback(session.close)
            if self._optimizers is not None:
                steps.callback(self._optimizers.detach)
            if listener is not None:
                steps.callback(listener.close)
            if self.run_dir is not None:
                steps.callback(self.run_dir.release)
            # And with it shared memory, which a hook's producer maps.
            self.session = self._listener = self._optimizers = self._model = None


def misfit(model: torch.nn.Module, hooks: Sequence[HookConfig]) -> str | None:
    """Why `model` cannot be the one that `hooks` are meant for; None: every glob matches a module."""
    try:
        points = resolve(unwrap(model), hooks)
    except HookError as error:
        return str(error)
    return None if points or not hooks else "no glob of `hooks` matches a module of it"
