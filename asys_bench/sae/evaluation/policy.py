"""What an SAE's error does to an agent: its action distribution, its value estimate and its return.

    KL(pi(. | s) || pi_spliced(. | s))   nats, over observed states; joint over actions: mean, p95, max
    value error                          root of the mean of (V_spliced - V)^2; its square over var V
    return                               undiscounted sum of an episode's rewards, actions as `act` says
    return recovered                     (R_spliced - R_zero) / (R - R_zero), means over paired episodes

Rows that the SAE leaves alone are measured both ways, as `subjects` says.

For a stable-baselines3 policy: `distribution=lambda obs: policy.get_distribution(obs).distribution`
and `act=lambda obs: policy.predict(obs, deterministic=True)[0]`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.distributions import Distribution, kl_divergence

from asys_bench.sae.evaluation.reconstruction import PositionMeter, ReconstructionMeter
from asys_bench.sae.evaluation.splice import rows_at, splice
from asys_bench.sae.evaluation.subjects import (
    Plan,
    RowsFound,
    Subject,
    add_rows,
    found_rows,
    interventions,
)

Actions = Distribution | Sequence[Distribution]
"""A distribution over a batch of states; several for a MultiDiscrete action space."""


class Environment(Protocol):
    """The part of a gymnasium environment that is used."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]: ...
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]: ...


class Agent(Protocol):
    """What is asked of a trained agent; observations are a batch [B, ...] of its own form."""

    def distribution(self, observations: Any) -> Actions: ...
    def value(self, observations: Any) -> torch.Tensor | None:
        """float[B]; None for an agent without a critic."""

    def act(self, observation: Any) -> Any:
        """The action for one observation of the environment."""

    def states(self, observations: Sequence[Any]) -> Any:
        """Observations of the environment as a batch."""


@dataclass(frozen=True, slots=True)
class PolicyDamage:
    """What one intervention does, over the states of the clean episodes."""

    kl_mean: float
    kl_p95: float
    kl_max: float
    """The state in which the agent changes most."""
    value_rmse: float | None
    """None: the agent has no critic."""
    value_fvu: float | None
    """Mean of (V_spliced - V)^2 over the variance of V; None without a critic or with a constant one."""
    return_mean: float


@dataclass(frozen=True, slots=True)
class PolicyInterventions:
    """The same rows replaced by the SAE's, by zeros and by their mean."""

    return_clean: float
    spliced: PolicyDamage
    zero: PolicyDamage
    mean: PolicyDamage

    @property
    def return_recovered(self) -> float:
        """Against zeros; NaN where these do no harm."""
        lost = self.return_clean - self.zero.return_mean
        return (self.spliced.return_mean - self.zero.return_mean) / lost if lost > 0 else math.nan


@dataclass(frozen=True, slots=True)
class AgentDamage:
    """One SAE in an agent. Over `states` states of `episodes` episodes."""

    rows: RowsFound
    states: int
    episodes: int
    return_clean: float
    replaced: PolicyInterventions
    passed: PolicyInterventions | None
    """None: the SAE leaves no rows alone."""


def action_kl(clean: Actions, spliced: Actions) -> torch.Tensor:
    """float[B]: KL(clean || spliced) of the joint action, nats.

    Components along trailing dimensions (a diagonal Gaussian's) and of several distributions are
    independent, so their divergences add up.

    Raises:
        ValueError: different numbers of distributions.
    """
    left = [clean] if isinstance(clean, Distribution) else list(clean)
    right = [spliced] if isinstance(spliced, Distribution) else list(spliced)
    if len(left) != len(right) or not left:
        raise ValueError(f"{len(left)} distributions against {len(right)}")
    parts = [kl_divergence(one, other) for one, other in zip(left, right, strict=True)]
    return torch.stack([part.reshape(part.shape[0], -1).sum(1) for part in parts]).sum(0)


@torch.no_grad()
def agent_damage(
    agent: Agent,
    environment: Environment,
    subjects: Mapping[str, Subject],
    *,
    episodes: int,
    seed: int,
    most_states: int = 10_000,
) -> dict[str, AgentDamage]:
    """Play `episodes` as they are, then with each intervention of each subject alone.

    Raises:
        ValueError: a place gave no rows, or rows of another width than its SAE's.
    """
    seen: list[Any] = []

    def act(observation: Any) -> Any:
        seen.append(copy.deepcopy(observation))  # environments may reuse its memory
        return agent.act(observation)

    returns = episode_returns(act, environment, episodes, seed)
    states = agent.states(seen[:: max(1, -(-len(seen) // most_states))])
    places = {name: subject.place for name, subject in subjects.items()}
    with rows_at(places) as calls:
        distribution, value = agent.distribution(states), agent.value(states)
    clean = _Clean(distribution, value, sum(returns) / len(returns))
    found = {}
    for name, subject in subjects.items():
        meter = ReconstructionMeter(subject.sae.d_in, subject.sae.d_sae)
        for rows in calls[name]:
            add_rows(subject.sae, meter, PositionMeter(), rows, None)
        rows_found = found_rows(name, meter, PositionMeter())
        measured: dict[str, list[PolicyDamage]] = {}
        for plan in interventions(subject.sae, rows_found.mean_D):
            one = _intervene(agent, environment, subject, plan, clean, states, episodes, seed)
            measured.setdefault(plan.mode, []).append(one)
        modes = {m: PolicyInterventions(clean.reward, *three) for m, three in measured.items()}
        found[name] = AgentDamage(
            rows_found,
            len(action_kl(distribution, distribution)),
            episodes,
            clean.reward,
            modes["replaced"],
            modes.get("passed"),
        )
    return found


@dataclass(frozen=True)
class _Clean:
    """The agent as it is."""

    distribution: Actions
    value: torch.Tensor | None
    reward: float


def _intervene(
    agent: Agent,
    environment: Environment,
    subject: Subject,
    plan: Plan,
    clean: _Clean,
    states: Any,
    episodes: int,
    seed: int,
) -> PolicyDamage:
    with splice(subject.place, plan.reconstruct, keep=plan.keep):
        kl_B = action_kl(clean.distribution, agent.distribution(states))
        value = agent.value(states)
        returns = episode_returns(agent.act, environment, episodes, seed)
    rmse, share = None, None
    if value is not None and clean.value is not None:
        square = float((value - clean.value).double().square().mean())
        variance = float(clean.value.double().var(unbiased=False))
        rmse, share = math.sqrt(square), square / variance if variance > 0 else None
    return PolicyDamage(
        float(kl_B.mean()),
        float(torch.quantile(kl_B.float(), 0.95)),
        float(kl_B.max()),
        rmse,
        share,
        sum(returns) / len(returns),
    )


def episode_returns(
    act: Callable[[Any], Any],
    environment: Environment,
    episodes: int,
    seed: int,
    *,
    max_steps: int = 100_000,
) -> list[float]:
    """The return of each episode; episode i starts from `seed + i`, so two policies can be paired.

    act: one observation -> one action. Call it inside `splice` for the return with an SAE.
    """
    returns = []
    for episode in range(episodes):
        observation, _ = environment.reset(seed=seed + episode)
        total = 0.0
        for _ in range(max_steps):
            observation, reward, terminated, truncated, _ = environment.step(act(observation))
            total += float(reward)
            if terminated or truncated:
                break
        returns.append(total)
    return returns
