"""`observe(model)`: an observation around a training loop that is somebody else's."""

from __future__ import annotations

import atexit
import logging
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from asys_bench.capture.points.hookpoints import HookError
from asys_bench.capture.points.untrained_networks import unwrap
from asys_bench.capture.tags.clock import StepClock
from asys_bench.config import ConfigError, LoadedConfig
from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.run_files import LOGS_DIR, SUMMARY_FILE, VOCABULARY_FILE
from asys_bench.contracts.stats import StatsPage
from asys_bench.hosts.text_corpus import vocabulary_document
from asys_bench.monitors.alarm_page import Alarms
from asys_bench.monitors.readable import plural
from asys_bench.reports.run_summary.document import write_json
from asys_bench.run.lifecycle import RunLifecycle
from asys_bench.run.settings import ConfigLike, HooksLike, resolve_settings
from asys_bench.run.stderr_lines import StderrLines, closing_lines, opening_lines
from asys_bench.run.storage import send_rest, storage_problems
from asys_bench.system.launcher import LocalRanks

if TYPE_CHECKING:
    from asys_bench.run.rank_session import RankSession
    from asys_bench.run.session import ObservationSession
    from asys_bench.rundir.open_run import Run

log = logging.getLogger(__name__)
ASK_S = 10.0
"""Longest wait for an answer of `storage.uri`, before anything starts; about a second where it answers."""


def observe(
    model: torch.nn.Module,
    config: ConfigLike = None,
    *,
    hooks: HooksLike = None,
    sae: Mapping[str, Any] | bool | None = None,
    archive: Mapping[str, Any] | bool | None = None,
    eye: bool | None = None,
    tokenizer: Any = None,
    step_unit: str = "step",
    start_step: int = 0,
    optimizers: Iterable[torch.optim.Optimizer] = (),
    one_call_per_step: bool = False,
    terminal: bool = False,
    distributed: bool | None = None,
    required: bool = True,
    quiet: bool = False,
    **overrides: Any,
) -> Observation:
    """Observe `model` from here on: start the workers, wait until they consume, attach the hooks.

    Use it as a context manager, or keep the result and `close()` it; at the latest it closes when the
    interpreter exits. The model computes and trains bit-identically with and without it.

    config: a YAML file, the name of a shipped configuration, a mapping laid over the consumer
        defaults, a `MasterConfig`, or None for the consumer defaults.
    hooks: a glob over module names or a list of globs, or of `hooks` rules as a file has them. None: a
        few modules are chosen, of what is trained (`default_hooks`).
    sae: options of the SAEs, such as `{"k": 24, "architecture": "batchtopk"}`: the section
        `sinks.<name>.options.sae` of docs/config.md, in every SAE trainer. False: no SAEs.
    archive: False: nothing is archived. A mapping: options of the archiver.
    eye: True: the run in a browser while it goes on (`run.eye`); its address is the line `eye: ...`, and
        `Observation.eye`. Without the extra `eye` the run goes on, and says so. None: as `config` says.
    tokenizer: of a text model; kept as `vocabulary.json`, so that reports can show tokens.
    step_unit: what one step is, shown beside rates.
    start_step: number of the step that the training is in (resumed from a checkpoint): what is
        captured is archived from there on.
    optimizers: of the training; they tell which of two equal networks is trained, where `hooks` says
        nothing.
    one_call_per_step: the loop marks its steps (`step`, `step_to`) and calls the model once in each at
        most: calls need not be counted then, which costs a small model microseconds each. Packets are of
        microbatch 0, and a loop that marks no step stays in its first. A model of text is not affected.
    terminal: a monitor may draw a live table on standard output.
    distributed: all ranks of a node share one run, which local rank 0 owns; every rank must call this.
        False: a run of this process alone. None: as the variables of torchrun, verl, Open MPI or Slurm say
        (`system.launcher`).
    required: False: if the observation cannot start, log why and train unobserved.
    quiet: True: write nothing to standard error but warnings through `logging`.
    overrides: configuration fields, nested (`bus={"backend": "cpp_spmc"}`) or with two underscores
        per level (`bus__backend="cpp_spmc"`).

    Raises:
        ConfigError, HookError, ValueError: what was passed is wrong; says where and the fix. Of
            `storage.uri` that is found out by asking the store, which is given 10 s to answer.
        AssemblyError, BusError, ResourceError, SupervisorError, RendezvousError, LiveRunError,
            ResumeError, NotBroughtError, OSError: it cannot start here (only with `required`).
    """
    settings = {"hooks": hooks, "sae": sae, "archive": archive, "eye": eye, **overrides}
    resolved = resolve_settings(config, settings, unwrap(model), optimizers)
    ranks = LocalRanks.from_environment() if distributed is not False else None
    observation = Observation(model, resolved, ranks, step_unit, start_step, terminal=terminal)
    observation.quiet = quiet
    try:
        observation.start(tokenizer, one_call_per_step=one_call_per_step)
    except (RuntimeError, ValueError, LookupError, OSError) as error:
        if required or isinstance(error, HookError):
            raise
        log.warning("the model is not observed: %s", error)
    return observation


class Observation:
    """One observation, from `observe` to `close`."""

    def __init__(
        self,
        model: torch.nn.Module,
        settings: LoadedConfig,
        ranks: LocalRanks | None,
        step_unit: str,
        start_step: int = 0,
        *,
        terminal: bool = False,
    ) -> None:
        self.config, self._settings = settings.config, settings
        self.error: Exception | None = None
        """Why it could not start; None when it did."""
        self._life = RunLifecycle(
            self.config,
            settings.provenance,
            ranks=ranks,
            terminal=terminal,
            first_step=checked_step(start_step),
        )
        self.eye: str | None = None
        """Address of the eyepiece (`run.eye`), token included, once it can be opened."""
        self._step_unit = step_unit
        self._called: torch.nn.Module | None = model
        self._model: torch.nn.Module | None = unwrap(model)
        self._name = type(self._model).__name__
        self.quiet = False
        self._lines = StderrLines(quiet=True)
        self._run_dir: Path | None = None
        self._pid = os.getpid()
        self._closed = False
        self._paused = False
        self._alarms: Alarms | None = None

    @property
    def run_dir(self) -> Path:
        """Where everything of this run is written; RuntimeError when it never started."""
        if self._run_dir is None:
            raise RuntimeError(f"the observation never started: {self.error}")
        return self._run_dir

    @property
    def run(self) -> Run:
        """What the run has written so far: archive, SAEs, metrics; also after `close`."""
        from asys_bench.rundir.open_run import open_run

        return open_run(self.run_dir)

    @property
    def hooks(self) -> Sequence[str]:
        """Names of the observed streams."""
        return self._life.hooks

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def steps(self) -> int:
        """Number of the host's step: `start_step`, and the steps that were made since."""
        return self._life.steps

    @property
    def account(self) -> BusAccount | None:
        """Every packet so far, by group; after `close` the final account."""
        return self._life.account

    @property
    def session(self) -> ObservationSession | RankSession | None:
        """What observes; None before it starts and after `close`."""
        return None if self._closed else self._life.session

    @property
    def clock(self) -> StepClock | None:
        """Where the host is in its loop; None while nothing is observed."""
        session = self.session
        return None if session is None else session.clock

    def step(self, n: int = 1) -> None:
        """`n` host steps have passed. From the first call on, forward calls no longer count."""
        clock = self.clock
        if clock is not None:
            clock.step(n)

    def step_to(self, step: int, microbatch: int | None = None) -> None:
        """The host is in step `step` of its own count, and in its `microbatch`th forward pass.

        From the first call on, forward calls no longer count as steps; nor as microbatches, where
        the host tells them."""
        clock = self.clock
        if clock is None:
            return
        clock.step_to(step)
        if microbatch is not None and microbatch != clock.microbatch:
            clock.microbatch = microbatch

    @property
    def paused(self) -> bool:
        """Nothing is captured: calls of hooked modules are counted in `hook_skipped`, and count
        neither as steps nor as microbatches. For what is not part of the training (a validation)."""
        return self._paused

    @paused.setter
    def paused(self, value: bool) -> None:
        if value == self._paused:
            return
        self._paused = value
        if not self._closed:
            self._life.pause(value)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """`with observation.pausing(): validate()` is `paused` for the while; may be nested."""
        before, self.paused = self._paused, True
        try:
            yield
        finally:
            self.paused = before

    @contextmanager
    def constant(self) -> Iterator[None]:
        """`with observation.constant(): model(batch)`, every so many steps: a held-out batch that is the
        same each time. What changes in it, the model has learnt; elsewhere the data may have changed
        (`Run.timeline`). Its calls count neither as steps nor as microbatches, no SAE is trained on them
        and no archive holds them; the sink `reservoir` keeps them. Call the model without gradients, in
        the mode that the hooks capture."""
        if self.session is None:
            yield
            return
        before, self.paused = self._paused, False
        self._life.constant(True)
        try:
            yield
        finally:
            self._life.constant(False)
            self.paused = before

    def weights_updated(self) -> None:
        """The weights changed without a step of a torch optimizer (those are counted by themselves)."""
        clock = self.clock
        if clock is not None:
            clock.weights_updated()

    def report(self, name: str, value: float) -> None:
        """A figure of the training itself (loss, reward) for the monitors."""
        clock = self.clock
        if clock is None:
            return
        try:
            clock.report(name, float(value))
        except Exception as error:  # noqa: BLE001 - a full stats page must not end a training
            log.warning("%s is not shown: %s", name, error)

    def label(
        self,
        *,
        step: int | Sequence[int] | None = None,
        microbatch: int | None = None,
        **labels: Any,
    ) -> None:
        """What is known of the rows of a forward call, such as `reward=`, `done=`, `loss=` or any other
        name: a number, boolean or text for the whole call, or one for each row.

        Values are arrays, lists or tensors of the leading dimensions of what the hooks capture, or of the
        first of them: for captured [B, T, D] one per token [B, T], or one per sequence [B]. NaN: no label.
        They are archived beside the rows (`run.archive`), and probes are trained on them (sink `probe`).

        step, microbatch: of the call, where it is not the model's last one; a label may come up to
            `labels.horizon` steps later. Of two for one row the later one counts. Several steps, such as
            those of a rollout: each value has one entry for each of them, and they cost one packet.

        Never raises and never waits; what could not be sent is counted (`labels_unsent`).
        """
        clock = self.clock
        if clock is not None:
            clock.label(step=step, microbatch=microbatch, **labels)

    @property
    def wants_labels(self) -> bool:
        """Whether some sink takes labels; else `label` does nothing."""
        clock = self.clock
        return clock is not None and clock.labels is not None

    @property
    def alarms(self) -> Alarms:
        """What `alarm` sinks have raised, read from shared memory without waiting:
        `if observation.alarms: ...`. Empty without such a sink; after `close` what there was at the end."""
        if self._alarms is None:
            session = self.session
            if session is None:
                return Alarms()
            self._alarms = Alarms(session.page)
        return self._alarms

    def close(self) -> None:
        """Detach, let the workers write and leave. Idempotent; takes at most about
        `run.drain_timeout_s` (and `END_S` of the supervisor), and raises nothing but what interrupts it
        (Ctrl-C). What it could not do is logged."""
        if self._closed or os.getpid() != self._pid:  # a forked child has no part in it
            return
        self._closed = True
        atexit.unregister(self.close)
        if self._life.session is None:
            return
        if self._alarms is None:
            self._alarms = Alarms(self._life.session.page)
        self._tried(self._life.end_counting)
        try:
            if not self._tried(self._stop):
                self._tried(self._life.abort)
        except BaseException:
            self._tried(self._life.abort)
            raise
        finally:
            if self._alarms is not None:
                self._tried(self._alarms.keep)
            self._tried(self._life.close)
            self._called = self._model = None
            self._tried(self._lines.close)

    def _tried(self, action: Callable[..., None], *arguments: Any) -> bool:
        """False: it raised, and the log says what. The host's process may have become anything by
        now: another user's, under another root, without descriptors."""
        try:
            action(*arguments)
        except Exception:
            log.exception(
                "the observation did not end in order (%s); files up to the last flush are kept",
                getattr(action, "__qualname__", action),
            )
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        name = self._name
        if self._run_dir is None:
            return f"<no observation of {name}: {self.error}>"
        state = "closed" if self._closed else f"{self.steps} {plural(self._step_unit)}"
        return f"<observation of {name} ({', '.join(self.hooks)}): {self._run_dir}, {state}>"

    def start(
        self, tokenizer: Any = None, *, called: bool = False, one_call_per_step: bool = False
    ) -> None:
        """What `observe` does. called: the model's first forward call is under way already."""
        life = self._life
        assert self._called is not None
        if life.is_owner:
            self._lines = StderrLines(self.quiet)
        try:
            life.place(self._called)
            if life.is_owner and (problems := storage_problems(self._settings, ASK_S)):
                raise ConfigError(problems)
            run_dir = life.create(_vocabulary(tokenizer) if life.is_owner else None).path
            life.start(
                self._called,
                self._step_unit,
                one_call_per_step=one_call_per_step,
                on_built=self._lines.expect,
                on_width=self._lines.width_known,
                on_eye=self._eye_opens,
            )
        except Exception as error:
            self.error = error
            life.refuse(error)
            self._called = self._model = None
            self._lines.close()
            raise
        self._run_dir = run_dir
        if life.is_owner:
            self._lines.write(*opening_lines(self._name, run_dir, life.hooks, self.config))
            self._lines.flush()
        if not life.count(called=called):
            log.warning(
                "%s was compiled in place, so its calls are not counted: mark steps with step()",
                type(self._called).__name__,
            )
        atexit.register(self.close)

    def _eye_opens(self, address: str) -> None:
        self.eye = address
        self._lines.write(f"eye: {address}")

    def _stop(self) -> None:
        life = self._life
        result = life.result()
        outcome = life.stop(result)
        if not life.is_owner:
            return
        if not outcome.orderly:
            log.warning("not every worker finished in order; see %s", self.run_dir / LOGS_DIR)
        summary = life.summarise(outcome, result.seconds)
        try:
            write_json(summary, self.run_dir)
        except OSError as error:
            log.warning("%s: no %s: %s", self.run_dir, SUMMARY_FILE, error)
        self._lines.write(*closing_lines(summary, self.run_dir))
        sent = send_rest(self.config, self.run_dir)
        if sent is not None:
            (log.info if sent.complete else log.warning)("%s", sent.said)

    @property
    def page(self) -> StatsPage:
        """The stats page while it is open: heartbeats, counters, histograms."""
        session = self.session
        if session is None:
            raise RuntimeError("the observation is not running; `run.metrics()` has its figures")
        return session.page


def checked_step(value: Any) -> int:
    """`start_step` as an int. Raises ValueError when it is no number of a step."""
    try:
        step = operator.index(value)
    except TypeError:
        step = -1
    if not 0 <= step < 2**63 or isinstance(value, bool):
        raise ValueError(f"start_step: {value!r} is no step; pass a whole number from 0 on")
    return step


def _vocabulary(tokenizer: Any) -> dict[str, Mapping[str, Any]]:
    """The vocabulary as a document of the run. What is no text tokenizer (an image processor, None) is
    left out."""
    if not hasattr(tokenizer, "get_vocab"):
        return {}
    try:
        return {VOCABULARY_FILE: vocabulary_document(tokenizer)}
    except Exception as error:  # noqa: BLE001 - they come in all kinds; reports then show ids
        log.warning("the vocabulary of %s is not kept: %s", type(tokenizer).__name__, error)
        return {}
