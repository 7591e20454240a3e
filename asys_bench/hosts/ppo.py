"""`PPOHostProcess`: a stable-baselines3 PPO agent on a gymnasium environment.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms". The blocking `learn` loop runs in
the run's main process. Hook `mlp_extractor.policy_net` and `mlp_extractor.value_net`: the parent
`mlp_extractor` is bypassed by SB3 in some calls, so hooks on it miss them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from asys_bench.contracts.host import (
    BaseHost,
    EvaluatedAgent,
    HostClock,
    HostError,
    HostOptions,
    HostPlugin,
    HostResult,
)
from asys_bench.contracts.run_files import OBSERVATION_FILE
from asys_bench.contracts.sink import Misfit
from asys_bench.hosts.dotted_name import device_misfits
from asys_bench.hosts.host_state import (
    as_json,
    environment_state,
    from_json,
    load_state,
    put_back_environment,
    save_state,
)
from asys_bench.hosts.observation import observation_document
from asys_bench.hosts.rollout_labels import RolloutLabels
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError

if TYPE_CHECKING:
    from stable_baselines3 import PPO
    from stable_baselines3.common.base_class import BaseAlgorithm


log = logging.getLogger(__name__)
POLICY_FILE = "policy.safetensors"
_ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}
_OBSERVED = (
    "mlp_extractor.policy_net:input",
    "mlp_extractor.value_net:input",
    "features_extractor",
    "features_extractor:input",
)
"""Streams that carry the observation as it is, where the policy is an MLP."""


class PPOOptions(HostOptions):
    """Options of the `ppo` host. Defaults solve CartPole-v1 in about half a minute on two cores."""

    env_id: str = Field(default="CartPole-v1", description="gymnasium environment id")
    policy: str = Field(default="MlpPolicy", description="stable-baselines3 policy class name")
    activation: Literal["tanh", "relu"] = Field(
        default="tanh", description="between the layers of policy and value network"
    )
    total_timesteps: int = Field(
        default=60_000, ge=1, description="environment steps to train for, summed over environments"
    )
    n_envs: int = Field(default=8, ge=1, description="environments stepped together")
    n_steps: int = Field(default=32, ge=2, description="steps per environment and rollout")
    batch_size: int = Field(default=256, ge=2, description="rows per gradient step")
    n_epochs: int = Field(default=20, ge=1, description="passes over each rollout")
    learning_rate: float = Field(default=1e-3, gt=0, description="Adam learning rate")
    gamma: float = Field(default=0.98, gt=0, le=1, description="discount factor per step")
    gae_lambda: float = Field(default=0.8, ge=0, le=1, description="GAE lambda")
    clip_range: float = Field(default=0.2, gt=0, description="PPO clip range")
    anneal: bool = Field(
        default=True,
        description="learning rate and clip range fall linearly to 0 over `total_timesteps`",
    )
    ent_coef: float = Field(default=0.0, ge=0, description="entropy bonus coefficient")
    device: str = Field(default="cpu", description='torch device of the policy, e.g. "cpu", "cuda"')

    @property
    def trains(self) -> bool:
        return True

    def misfits(self) -> Iterator[Misfit]:
        """An environment that nobody registered, batches that do not divide a rollout."""
        import gymnasium

        rollout = self.n_envs * self.n_steps
        if rollout % self.batch_size:
            yield Misfit(
                ("batch_size",),
                f"does not divide the rollout of n_envs x n_steps = {rollout} rows",
                self.batch_size,
                "choose a divisor",
            )
        if ":" not in self.env_id:  # `module:id` registers when the module is imported
            try:
                gymnasium.spec(self.env_id)
            except gymnasium.error.Error as error:
                yield Misfit(
                    ("env_id",),
                    f"gymnasium has no such environment: {error}",
                    self.env_id,
                    "choose a registered one, or `module:id` of the package that registers it",
                )
        yield from device_misfits(self.device)


class PPOHostProcess(BaseHost):
    """See the module docstring. Steps are environment steps."""

    step_unit = "env step"
    one_call_per_step = True
    can_be_saved = True

    def __init__(self, options: PPOOptions, seed: int) -> None:
        self._options = options
        self._seed = seed
        self._model: PPO | None = None
        self._labels = RolloutLabels(lambda **labels: None, 0)

    def build(self) -> torch.nn.Module:
        """The policy network (`ActorCriticPolicy`); its submodules are what hooks match."""
        import gymnasium
        from stable_baselines3 import PPO
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.logger import Logger

        options = self._options
        rollout = options.n_envs * options.n_steps
        if rollout % options.batch_size:
            raise HostError(
                f"host.options.ppo: batch_size {options.batch_size} does not divide the rollout of "
                f"n_envs x n_steps = {rollout} rows; choose a divisor"
            )
        try:
            environments = make_vec_env(options.env_id, n_envs=options.n_envs, seed=self._seed)
        except gymnasium.error.Error as error:
            raise HostError(f"host.options.ppo.env_id: {options.env_id!r}: {error}") from error
        self._model = PPO(
            options.policy,
            environments,
            n_steps=options.n_steps,
            batch_size=options.batch_size,
            n_epochs=options.n_epochs,
            learning_rate=_schedule(options.learning_rate, options.anneal),
            gamma=options.gamma,
            gae_lambda=options.gae_lambda,
            clip_range=_schedule(options.clip_range, options.anneal),
            ent_coef=options.ent_coef,
            device=options.device,
            seed=self._seed,
            verbose=0,
            policy_kwargs={"activation_fn": _ACTIVATIONS[options.activation]},
        )
        self._model.set_logger(Logger(folder=None, output_formats=[]))  # its default litters /tmp
        return self._model.policy

    def run(self, clock: HostClock) -> HostResult:
        """Train for `total_timesteps`; reports `reward_mean` (last 100 episodes) on the clock."""
        model = self._model
        if model is None:
            raise HostError("run() before build()")

        def updated(*_: Any) -> None:
            clock.weights_updated()

        self._labels.label, self._labels.horizon = clock.label, clock.label_horizon
        handle = model.policy.optimizer.register_step_post_hook(updated)
        started, first = time.monotonic(), model.num_timesteps
        left = self._options.total_timesteps - first
        try:
            if left > 0:
                model.learn(
                    left, _clock_callback(clock, self, self._labels), reset_num_timesteps=not first
                )
                self.whole_at(model.num_timesteps)
        except _LeavesWholeError:
            pass
        finally:
            handle.remove()
            self._labels.flush()
        figures = {"reward_mean": _mean_reward(model)}
        return HostResult(
            steps=model.num_timesteps - first,
            seconds=time.monotonic() - started,
            stopped_early=model.num_timesteps < self._options.total_timesteps,
            figures=figures,
        )

    def save(self, folder: Path) -> None:
        """See `BaseHost`; between two rollouts."""
        model = self._model
        assert model is not None
        environments: Any = model.get_env()
        numbers = {
            "num_timesteps": model.num_timesteps,
            "n_updates": model._n_updates,
            "episode_num": model._episode_num,
            "last_obs": as_json(model._last_obs),
            "last_episode_starts": as_json(model._last_episode_starts),
            "episodes": [
                {name: float(value) for name, value in one.items()}
                for one in model.ep_info_buffer or ()
            ],
            "environments": [environment_state(one) for one in environments.envs]
            if _whole_in_attributes(environments)
            else None,
            "labels": self._labels.state(),
        }
        save_state(folder, numbers, model.policy, model.policy.optimizer)

    def load(self, folder: Path) -> int:
        """See `BaseHost`. Environments whose state is not all in plain attributes begin new episodes."""
        model = self._model
        assert model is not None
        environments: Any = model.get_env()
        numbers = load_state(folder, model.policy, model.policy.optimizer)
        try:
            model._setup_learn(
                0, None, reset_num_timesteps=True
            )  # buffers, and a first observation
            model.num_timesteps = int(numbers["num_timesteps"])
            model._n_updates = int(numbers["n_updates"])
            model._episode_num = int(numbers["episode_num"])
            model.ep_info_buffer.extend(numbers["episodes"])  # type: ignore[union-attr]
            goes_on = numbers["environments"] is not None
            self._labels.go_on(numbers.get("labels"), same_episodes=goes_on)
            if goes_on:
                pairs = zip(environments.envs, numbers["environments"], strict=True)
                for one, saved in pairs:
                    put_back_environment(one, saved)
                model._last_obs = from_json(numbers["last_obs"])
                model._last_episode_starts = from_json(numbers["last_episode_starts"])
            else:
                log.warning(
                    "%s begins new episodes: its state cannot be saved", self._options.env_id
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(folder, f"does not fit this environment: {error}") from error
        load_state(folder)  # the reset has drawn from the generators
        return model.num_timesteps

    def documents(self) -> Mapping[str, Mapping[str, Any]]:
        environments = self._model.get_env() if self._model is not None else None
        if environments is None:
            return {}
        one = environments.get_attr("unwrapped", 0)[0]
        document = observation_document(one, _OBSERVED)
        return {OBSERVATION_FILE: {**document, "environment": self._options.env_id}}

    def save_weights(self, folder: Path) -> None:
        assert self._model is not None
        tensors = {
            name: tensor.detach().to("cpu").contiguous().clone()
            for name, tensor in self._model.policy.state_dict().items()
        }
        save_file(tensors, folder / POLICY_FILE)

    def close(self) -> None:
        if self._model is not None:
            environments = self._model.get_env()
            if environments is not None:
                environments.close()


def _schedule(value: float, anneal: bool) -> float | Callable[[float], float]:
    """SB3 calls a schedule with the share of the run that is left, 1 -> 0."""
    return (lambda left: left * value) if anneal else value


def _mean_reward(model: BaseAlgorithm) -> float:
    episodes = model.ep_info_buffer or ()
    rewards = [float(episode["r"]) for episode in episodes]
    return sum(rewards) / len(rewards) if rewards else float("nan")


class _LeavesWholeError(Exception):
    """Out of `learn` between two rollouts."""


def _whole_in_attributes(environments: Any) -> bool:
    """All that an environment is at is in numbers and arrays of its own: not so in a physics engine."""
    inner = {type(one.unwrapped).__module__ for one in environments.envs}
    return all(name.startswith("gymnasium.envs.classic_control") for name in inner)


def _clock_callback(clock: HostClock, host: PPOHostProcess, labels: RolloutLabels) -> Any:
    from stable_baselines3.common.callbacks import BaseCallback

    class ClockCallback(BaseCallback):  # type: ignore[misc,unused-ignore]
        """Labels and marks each vectorised environment step, and passes the stop request on."""

        def _on_training_start(self) -> None:
            self._step = self.model.num_timesteps

        def _on_rollout_start(self) -> None:
            host.whole_at(self.model.num_timesteps)
            if clock.should_stop:
                raise _LeavesWholeError

        def _on_step(self) -> bool:
            labels.stepped(self._step, self.locals)
            clock.step(self.training_env.num_envs)
            self._step += self.training_env.num_envs
            return host.is_saved or not clock.should_stop

        def _on_rollout_end(self) -> None:
            labels.ended(self.model)
            clock.report("reward_mean", _mean_reward(self.model))

    return ClockCallback()


def _unavailable() -> str | None:
    missing = [name for name in ("stable_baselines3", "gymnasium") if find_spec(name) is None]
    return f"{' and '.join(missing)} not installed; pip install 'asys-i[rl]'" if missing else None


def _build(options: HostOptions, seed: int) -> BaseHost:
    assert isinstance(options, PPOOptions)
    return PPOHostProcess(options, seed)


class SB3Agent:
    """A stable-baselines3 actor-critic policy, which acts deterministically."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def distribution(self, observations: Any) -> Any:
        return self._policy.get_distribution(observations).distribution

    def value(self, observations: Any) -> torch.Tensor | None:
        value_B: torch.Tensor = self._policy.predict_values(observations).flatten()
        return value_B

    def act(self, observation: Any) -> Any:
        return self._policy.predict(observation, deterministic=True)[0]

    def states(self, observations: Sequence[Any]) -> Any:
        first = observations[0]
        if isinstance(first, Mapping):
            stacked: Any = {key: np.stack([one[key] for one in observations]) for key in first}
        else:
            stacked = np.stack(observations)
        return self._policy.obs_to_tensor(stacked)[0]


def _evaluated(options: HostOptions, seed: int, weights: Path | None) -> EvaluatedAgent:
    import gymnasium

    assert isinstance(options, PPOOptions)
    host = PPOHostProcess(
        options.model_copy(update={"n_envs": 1, "batch_size": options.n_steps}), seed
    )
    policy = host.build()
    host.close()
    if weights is not None:
        try:
            policy.load_state_dict(load_file(weights / POLICY_FILE))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise HostError(f"{weights}: no weights of this policy: {error}") from error
    policy.eval()
    environment = gymnasium.make(options.env_id)
    return EvaluatedAgent(policy, SB3Agent(policy), environment, {"environment": options.env_id})


plugin = HostPlugin(
    name="ppo",
    summary="stable-baselines3 PPO on a gymnasium environment",
    options=PPOOptions,
    build=_build,
    evaluated=_evaluated,
    unavailable=_unavailable,
)
