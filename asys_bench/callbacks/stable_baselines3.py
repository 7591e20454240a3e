"""stable-baselines3: `model.learn(total_timesteps, callback=ObserveCallback())`.

Hook names are those of the policy's modules, such as `mlp_extractor.policy_net`; the parents
`mlp_extractor` and `policy` are bypassed by SB3 in some calls, so hook what is inside them.
"""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from asys_bench.callbacks.observed_training import ObservedTraining
from asys_bench.observing import Observation
from asys_bench.observing.settings import ConfigLike


class ObserveCallback(BaseCallback):
    """Observes the policy during each `learn`; arguments as `asys_bench.observe`'s, without the model.

    One step is one environment step, summed over the vectorised environments.
    """

    def __init__(self, config: ConfigLike = None, **overrides: Any) -> None:
        super().__init__()
        self._training = ObservedTraining(config, "env step", overrides)

    @property
    def observation(self) -> Observation | None:
        """Of the `learn` that goes on, or of the last one."""
        return self._training.observation

    def close(self) -> None:
        """End the observation now. Idempotent; `learn` does it when it ends by itself."""
        self._training.end()

    def _on_training_start(self) -> None:
        self._training.start(self.model.policy)

    def _on_step(self) -> bool:
        self._training.step(self.training_env.num_envs)
        return True

    def _on_rollout_end(self) -> None:
        episodes = self.model.ep_info_buffer or ()
        rewards = [float(episode["r"]) for episode in episodes]
        if rewards:
            self._training.report({"reward_mean": sum(rewards) / len(rewards)})

    def _on_training_end(self) -> None:
        self._training.end()
