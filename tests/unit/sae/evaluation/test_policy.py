"""What SAEs do to an agent: divergences, value errors and returns that can be said beforehand."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, Normal

from asys_bench.sae import SAEConfig, build_sae
from asys_bench.sae.evaluation import (
    Place,
    Subject,
    action_kl,
    agent_damage,
    episode_returns,
    splice,
)

WIDTH = 4


class Wraps(torch.nn.Module):
    """A module whose output is `wrap(x)`."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x)


def test_divergences_of_independent_actions_add_up():
    mean_BA = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    clean, spliced = Normal(mean_BA, 1.0), Normal(mean_BA + torch.tensor([1.0, 2.0]), 1.0)
    # KL of unit Gaussians is half the squared distance of their means.
    torch.testing.assert_close(action_kl(clean, spliced), torch.tensor([2.5, 2.5]))
    one = Categorical(probs=torch.tensor([[0.5, 0.5]]))
    other = Categorical(probs=torch.tensor([[0.25, 0.75]]))
    single = action_kl(one, other)
    torch.testing.assert_close(action_kl([one, one], [other, other]), 2 * single)
    with pytest.raises(ValueError, match="2 distributions against 1"):
        action_kl([one, one], other)


class Countdown:
    """Pays what is played, for as many steps as the seed says."""

    def reset(self, *, seed=None):
        self.left = seed
        return torch.zeros(3), {}

    def step(self, action):
        self.left -= 1
        return torch.zeros(3), action, self.left == 0, False, {}


def test_returns_are_per_episode_and_change_under_the_splice():
    bias = Wraps(lambda x: x + 1)

    def act(observation):
        return float(bias(observation)[0])

    assert episode_returns(act, Countdown(), episodes=3, seed=1) == [1.0, 2.0, 3.0]
    with splice(bias, lambda rows_BD: 2 * rows_BD):
        assert episode_returns(act, Countdown(), episodes=3, seed=1) == [2.0, 4.0, 6.0]
    assert episode_returns(act, Countdown(), episodes=1, seed=9, max_steps=4) == [4.0]


class Agent:
    """Plays what its torso says; a critic sums the same rows."""

    def __init__(self, critic=True):
        self.torso, self.critic = torch.nn.Identity(), critic

    def distribution(self, observations):
        return Categorical(logits=self.torso(observations))

    def value(self, observations):
        return self.torso(observations).sum(-1) if self.critic else None

    def act(self, observation):
        return int(self.torso(observation[None]).argmax())

    def states(self, observations):
        return torch.stack(list(observations))


class Echo:
    """Asks for one of four actions, and pays 1 where it is played; the memory is always the same."""

    def __init__(self, scale=1.0):
        self._shown, self._scale = torch.zeros(WIDTH), scale

    def _next(self):
        self._wanted = int(torch.randint(0, WIDTH, (1,), generator=self._draw))
        self._shown.copy_(torch.randn(WIDTH, generator=self._draw).abs() * 0.1)
        self._shown[self._wanted] += 1.0 + self._left
        self._shown.mul_(self._scale)
        return self._shown

    def reset(self, *, seed=None):
        self._draw, self._left = torch.Generator().manual_seed(seed), 10
        return self._next(), {}

    def step(self, action):
        paid, self._left = float(action == self._wanted), self._left - 1
        return self._next(), paid, False, self._left == 0, {}


def exact_sae(shrink):
    sae = build_sae(SAEConfig(architecture="topk", d_sae=2 * WIDTH, k=WIDTH), WIDTH)
    both = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    with torch.no_grad():
        sae.W_enc.copy_(both.t())
        sae.W_dec.copy_(shrink * both)
    return sae


def observations(episodes, seed):
    seen = []

    def act(observation):
        seen.append(observation.clone())
        return int(observation.argmax())

    returns = episode_returns(act, Echo(), episodes, seed)
    return torch.stack(seen), returns


def test_divergence_value_error_and_return_are_those_of_the_states_that_were_met():
    agent = Agent()
    subjects = {"a": Subject(Place(agent.torso), exact_sae(0.5))}
    found = agent_damage(agent, Echo(), subjects, episodes=3, seed=5)["a"]
    states, returns = observations(3, 5)
    assert (found.states, found.episodes, found.return_clean) == (30, 3, 10.0)
    assert returns == [10.0] * 3
    assert found.passed is None
    one = found.replaced.spliced
    kl = action_kl(Categorical(logits=states), Categorical(logits=0.5 * states))
    assert (one.kl_mean, one.kl_max) == pytest.approx((float(kl.mean()), float(kl.max())), rel=1e-4)
    assert one.kl_p95 == pytest.approx(float(kl.quantile(0.95)), rel=1e-4)
    error = 0.5 * states.sum(-1)
    assert one.value_rmse == pytest.approx(float(error.square().mean().sqrt()), rel=1e-4)
    share = error.square().mean() / states.sum(-1).var(unbiased=False)
    assert one.value_fvu == pytest.approx(float(share), rel=1e-3)
    assert one.return_mean == 10.0, "the largest stays the largest"
    assert found.replaced.return_recovered == pytest.approx(1.0)
    assert found.replaced.zero.return_mean < 10.0, "zeros play the first action"
    assert found.rows.report.l2_ratio == pytest.approx(0.5)


def test_an_agent_without_a_critic_has_no_value_error():
    agent = Agent(critic=False)
    subjects = {"a": Subject(Place(agent.torso), exact_sae(0.5))}
    one = agent_damage(agent, Echo(), subjects, episodes=1, seed=0)["a"].replaced.spliced
    assert (one.value_rmse, one.value_fvu) == (None, None)


def test_rows_that_the_sae_leaves_alone_keep_the_agent_as_it_is():
    agent, sae = Agent(), exact_sae(0.0)
    sae.outlier_norm = 0.001
    subjects = {"a": Subject(Place(agent.torso), sae)}
    found = agent_damage(agent, Echo(), subjects, episodes=2, seed=0)["a"]
    assert found.passed.spliced.kl_max == 0.0
    assert found.passed.zero.return_mean == found.return_clean
    assert found.replaced.spliced.kl_mean > 0.1
