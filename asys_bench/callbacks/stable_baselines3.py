"""stable-baselines3: `model.learn(total_timesteps, callback=ObserveCallback())`.

Hook names are those of the policy's modules, such as `mlp_extractor.policy_net`; the parents
`mlp_extractor` and `policy` are bypassed by SB3 in some calls, so hook what is inside them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from asys_bench.callbacks.observed_training import During, ObservedTraining, Part
from asys_bench.capture.tags.clock import StepClock
from asys_bench.hosts.rollout_labels import RolloutLabels
from asys_bench.run.observation import Observation
from asys_bench.run.settings import ConfigLike

log = logging.getLogger(__name__)

_ATTRIBUTE = "_asys_bracket"
_WHILE_LEARNING = ("on_step", "on_rollout_start", "on_rollout_end")


class ObserveCallback(BaseCallback):
    """Observes the policy during each `learn`; arguments as `asys_bench.observe`'s, without the model.

    One step is one environment step, summed over the vectorised environments: `num_timesteps`, which
    goes on with `reset_num_timesteps=False`.

    during: "training" is what the algorithm itself does: rollouts, in which SB3 puts the policy in
        eval mode, and gradient steps, in train mode. "validation" is what its callbacks do with the
        policy (`EvalCallback`, `evaluate_policy`).

    Rollouts are labelled with reward, done, episode, action and, where the algorithm has one, advantage;
    `labels.columns` of the environments' infos are labels too.

    A `learn` that raises does not tell its callbacks: then the observation ends when the callback's
    next one begins, by `close()`, or when the interpreter exits.
    """

    def __init__(
        self, config: ConfigLike = None, *, during: During = "training", **options: Any
    ) -> None:
        super().__init__()
        self._training = ObservedTraining(
            config, "env step", during, options, one_call_per_step=True
        )
        self._leave_bracket: Callable[[], None] | None = None
        self._labels: RolloutLabels | None = None
        self._clock: StepClock | None = None
        self._step = 0

    @property
    def observation(self) -> Observation | None:
        """Of the `learn` that goes on, or of the last one."""
        return self._training.observation

    def close(self) -> None:
        """End the observation now. Idempotent; `learn` does it when it ends by itself."""
        self._flush_labels()
        self._training.close()
        self._unbracket()

    def _on_training_start(self) -> None:
        self._unbracket()  # of a `learn` that has failed
        self._flush_labels()
        self._training.start(self.model, self.model.policy, self.model.num_timesteps)
        self._training.enter(self.model, "training")
        self._step = self.model.num_timesteps
        self._clock = self._training.clock_of(self.model)
        if self._clock is not None and self._training.wants_labels:
            clock = self._clock
            self._labels = RolloutLabels(
                clock.label,
                self._training.label_horizon,
                self._training.label_columns,
                notes_calls=lambda: clock.notes_calls,
            )
        callbacks = self.locals.get("callback")
        if callbacks is self:
            return
        if isinstance(callbacks, BaseCallback):
            bracket, enter = _Bracket.around(callbacks), partial(self._training.enter, self.model)
            bracket.add(enter)
            self._leave_bracket = partial(bracket.remove, enter)
        else:
            log.warning("calls of the policy by other callbacks are captured as the training's")

    def _on_step(self) -> bool:
        if self._labels is not None:
            self._labels.stepped(self._step, self.locals)
        self._step = step = self.num_timesteps
        if self._clock is not None:
            self._clock.step_to(step)
        return True

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """SB3 calls it before each step."""
        self.locals = locals_

    def _on_rollout_end(self) -> None:
        if self._labels is not None:
            self._labels.ended(self.model)
        episodes = self.model.ep_info_buffer or ()
        rewards = [float(episode["r"]) for episode in episodes]
        if rewards:
            self._training.report(self.model, {"reward_mean": sum(rewards) / len(rewards)})

    def _on_training_end(self) -> None:
        self._flush_labels()
        self._training.end(self.model)
        self._unbracket()

    def _flush_labels(self) -> None:
        self._clock = None
        labels, self._labels = self._labels, None
        if labels is not None:
            labels.flush()

    def _unbracket(self) -> None:
        leave, self._leave_bracket = self._leave_bracket, None
        if leave is not None:
            leave()


class _Bracket:
    """Tells observations when SB3 is in its callbacks, by standing in for methods of `callbacks`.

    callbacks: what `learn` calls, which nobody else is told of: an `EvalCallback` may come before an
    `ObserveCallback` or after it.
    """

    def __init__(self, callbacks: BaseCallback) -> None:
        self._callbacks = callbacks
        self._told: list[Callable[[Part], None]] = []
        self._methods = {name: self._around(getattr(callbacks, name)) for name in _WHILE_LEARNING}

    @classmethod
    def around(cls, callbacks: BaseCallback) -> _Bracket:
        """The one of these callbacks."""
        found = vars(callbacks).get(_ATTRIBUTE)
        return found if isinstance(found, cls) else cls(callbacks)

    def add(self, enter: Callable[[Part], None]) -> None:
        self._told.append(enter)
        vars(self._callbacks).update({**self._methods, _ATTRIBUTE: self})

    def remove(self, enter: Callable[[Part], None]) -> None:
        """With the last one, `callbacks` are as they were. Idempotent."""
        if enter in self._told:
            self._told.remove(enter)
        if not self._told:
            for name in (*self._methods, _ATTRIBUTE):
                vars(self._callbacks).pop(name, None)

    def _around(self, method: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> Any:
            self._tell("validation")
            try:
                return method()
            finally:
                self._tell("training")

        return call

    def _tell(self, part: Part) -> None:
        for enter in tuple(self._told):
            enter(part)
