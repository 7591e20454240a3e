"""typed_ppo: what the callback costs stable-baselines3's PPO, as a user types it.

    PPO("MlpPolicy", "CartPole-v1").learn(n, callback=ObserveCallback(hooks=[...]))

with one torch thread and all else at its default, so that an SAE learns from the policy and an archive is
written. Rollouts, each with its gradient steps, are observed and unobserved in turn (`alternation`): in a
block that is not, hooks, labels and step marks are gone and the workers are stopped.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioError,
    ScenarioOptions,
    ScenarioPlugin,
)
from asys_bench.harness.scenarios.alternation import Alternation
from asys_bench.harness.scenarios.beside_run import count_packets
from asys_bench.run.session import ObservationSession

if TYPE_CHECKING:
    from asys_bench.callbacks.stable_baselines3 import ObserveCallback

_NO_END = 1 << 40


class TypedOptions(ScenarioOptions):
    """`params` of a typed_ppo case."""

    env_id: str = Field(default="CartPole-v1", description="gymnasium environment id")
    hooks: tuple[str, ...] = Field(
        default=("mlp_extractor.policy_net", "mlp_extractor.value_net"),
        min_length=1,
        description="modules of the policy",
    )
    backend: str = Field(default="cpp_spmc", description="bus backend")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="further settings of the callback, by dotted path"
    )
    n_steps: int = Field(default=512, ge=64, description="environment steps of a rollout")
    block_rollouts: int = Field(default=2, ge=1, le=64, description="rollouts of a block")
    warmup_rollouts: int = Field(default=4, ge=1, description="rollouts before anything counts")
    max_s: float = Field(default=15, gt=0, le=600, description="timed part, in seconds")


def _callback(options: TypedOptions, folder: Path) -> Any:
    """The product's callback, which ends what it does and takes it up again; `blocks` are the times.

    In a block that is observed its `_on_step` is the product's own, with nothing of ours around it.
    """
    from asys_bench.callbacks.stable_baselines3 import ObserveCallback

    class Alternating(ObserveCallback):
        blocks: Alternation | None = None
        rollouts = 0
        began_ns = until_ns = 0

        @property
        def is_on(self) -> bool:
            return self.blocks is None or self.blocks.is_on

        def _on_rollout_start(self) -> None:
            now = time.perf_counter_ns()
            if self.blocks is not None:
                self.blocks.add(now - self.began_ns)
            elif self.rollouts == options.warmup_rollouts:
                self.blocks = Alternation(
                    _session_of(self), options.block_rollouts, workers_run=True
                )
                self.blocks.begin()
                self.until_ns = now + int(1e9 * options.max_s)
            self.rollouts += 1
            self._choose_step(now)
            self.began_ns = time.perf_counter_ns()

        def _choose_step(self, now: int) -> None:
            if self.blocks is not None and now >= self.until_ns:
                vars(self)["_on_step"] = lambda: False  # which ends the learning
            elif self.is_on:
                vars(self).pop("_on_step", None)
            else:
                vars(self)["_on_step"] = lambda: True

        def _on_rollout_end(self) -> None:
            if self.is_on:
                super()._on_rollout_end()

        def _on_training_end(self) -> None:
            if self.blocks is not None:
                self.blocks.end()
            super()._on_training_end()

    settings = {"run.dir": str(folder), "bus.backend": options.backend, **options.settings}
    return Alternating(hooks=list(options.hooks), quiet=True, **settings)


def _session_of(callback: ObserveCallback) -> ObservationSession:
    observation = callback.observation
    session = observation.session if observation is not None else None
    if not isinstance(session, ObservationSession):
        reason = observation.error if observation is not None else "no training has begun"
        raise ScenarioError(f"the policy is not observed: {reason}")
    return session


def run(context: RoundContext) -> None:
    """Learn until `max_s` have passed; the account must be exact."""
    from stable_baselines3 import PPO

    options = context.options
    assert isinstance(options, TypedOptions)
    torch.set_num_threads(1)
    model = PPO(
        "MlpPolicy", options.env_id, n_steps=options.n_steps, device="cpu", seed=context.seed
    )
    callback = _callback(options, context.scratch)
    try:
        with context.timed():
            model.learn(_NO_END, callback=callback)
        blocks, observation = callback.blocks, callback.observation
        account = observation.account if observation is not None else None
    finally:
        callback.close()
    if account is None:
        raise ScenarioError("the run has no account")
    if count_packets(context.integrity, account):
        raise ScenarioError(f"the account is not exact: {account}")
    context.value("paired_rate_ratio", blocks.rate())


plugin = ScenarioPlugin(
    name="typed_ppo",
    summary="stable-baselines3's PPO with the callback, over without, in one process",
    options=TypedOptions,
    takes="nothing",
    metrics={
        "paired_rate_ratio": MetricSpec(
            "higher", MetricKind.ROUND, "environment steps/s observed over unobserved"
        )
    },
    run=run,
    unavailable=lambda: (
        None
        if find_spec("stable_baselines3")
        else "stable-baselines3 is not installed: pip install 'asys-i[rl]'"
    ),
)
