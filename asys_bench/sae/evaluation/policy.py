"""What an SAE's error does to an agent: its action distribution and its return.

    KL(pi_clean(. | s) || pi_spliced(. | s))   nats, mean over observed states; joint over actions
    return                                     undiscounted sum of rewards of an episode

For a stable-baselines3 policy: `distribution=lambda obs: policy.get_distribution(obs).distribution`
and `act=lambda obs: policy.predict(obs, deterministic=True)[0]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.distributions import Distribution, kl_divergence

from asys_bench.sae.evaluation.splice import Reconstruct, splice

Actions = Distribution | Sequence[Distribution]
"""A distribution over a batch of states; several for a MultiDiscrete action space."""


class Environment(Protocol):
    """The part of a gymnasium environment that is used."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]: ...
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class PolicyDamage:
    """Over `states` observed states."""

    states: int
    kl_mean: float
    kl_max: float
    """The state in which the reconstruction changes the agent most."""


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
def policy_damage(
    distribution: Callable[[torch.Tensor], Actions],
    observations: Iterable[torch.Tensor],
    module: torch.nn.Module,
    reconstruct: Reconstruct,
    *,
    select: int | str | None = None,
) -> PolicyDamage:
    """KL of the action distribution on batches of observations [B, ...].

    Raises:
        ValueError: no observations.
    """
    states, total, most = 0, 0.0, 0.0
    for obs_B in observations:
        if not len(obs_B):
            continue
        clean = distribution(obs_B)
        with splice(module, reconstruct, select=select):
            spliced = distribution(obs_B)
        kl_B = action_kl(clean, spliced)
        states += len(kl_B)
        total += float(kl_B.sum())
        most = max(most, float(kl_B.max()))
    if not states:
        raise ValueError("no observations were given")
    return PolicyDamage(states, total / states, most)


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
