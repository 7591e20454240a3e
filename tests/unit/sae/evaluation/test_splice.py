"""A host runs with the reconstruction in place of a module's output, and is itself again afterwards."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch.distributions import Categorical, Normal

from asys_bench.sae import SAEConfig, build_sae
from asys_bench.sae.evaluation import (
    action_kl,
    episode_returns,
    language_damage,
    mean_ablation,
    policy_damage,
    splice,
    zero_ablation,
)

Pair = namedtuple("Pair", "hidden extra")


class Wraps(torch.nn.Module):
    """A module whose output is `wrap(x)`."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x)


def double(rows_BD):
    assert rows_BD.ndim == 2
    return rows_BD * 2


@pytest.mark.parametrize(
    ("wrap", "select", "pick"),
    [
        (lambda x: x, None, lambda out: out),
        (lambda x: (x, "kept"), None, lambda out: out[0]),
        (lambda x: ("first", x), 1, lambda out: out[1]),
        (lambda x: ("first", x), -1, lambda out: out[1]),
        (lambda x: [x, 3], 0, lambda out: out[0]),
        (lambda x: Pair(x, 3), None, lambda out: out.hidden),
        (lambda x: {"a": 1, "b": x}, "b", lambda out: out["b"]),
        (lambda x: OrderedDict(b=x), None, lambda out: out["b"]),
    ],
)
def test_the_tensor_is_replaced_wherever_it_sits(wrap, select, pick):
    module, x = Wraps(wrap), torch.randn(2, 3, 4, dtype=torch.float64)
    with splice(module, double, select=select):
        spliced = module(x)
    assert type(spliced) is type(module(x))
    torch.testing.assert_close(pick(spliced), x.float().double() * 2)
    assert torch.equal(pick(module(x)), x)
    assert not module._forward_hooks


def test_what_the_host_holds_is_not_changed():
    held = {"a": torch.ones(2, 3)}
    with splice(module := Wraps(lambda x: held), zero_ablation):
        assert module(None)["a"].sum() == 0
    assert held["a"].sum() == 6


def test_a_transcoder_sees_the_input():
    module = torch.nn.Linear(3, 5)
    with splice(module, lambda x: torch.cat([x, x[:, :2]], 1), source="input"):
        out = module(torch.ones(4, 3))
    assert torch.equal(out, torch.ones(4, 5))


def test_an_sae_of_channels_replaces_an_image_place_by_place():
    image = torch.randn(2, 3, 4, 5)
    seen = []

    def double(rows_BD):
        seen.append(rows_BD)
        return 2 * rows_BD

    module = torch.nn.Identity()
    with splice(module, double, row_dim=1):
        assert torch.equal(module(image), 2 * image)
    assert torch.equal(seen[0], image.permute(0, 2, 3, 1).reshape(40, 3))


def test_the_hook_goes_whatever_happens():
    module = Wraps(lambda x: "no tensor")
    with pytest.raises(ValueError, match="no tensor in a str"), splice(module, double):
        module(torch.ones(2, 2))
    assert not module._forward_hooks
    wrong = Wraps(lambda x: x)
    complaint = r"is \(2, 1\), the module's output \(2, 2\)"
    with pytest.raises(ValueError, match=complaint), splice(wrong, lambda x: x[:, :1]):
        wrong(torch.ones(2, 2))
    assert not wrong._forward_hooks


class Bigram(torch.nn.Module):
    """The smallest language model: an embedding and a head."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = torch.nn.Embedding(11, 8)
        self.head = torch.nn.Linear(8, 11, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, ids):
        return self.head(self.embed(ids))


def ids():
    return torch.randint(0, 11, (4, 20), generator=torch.Generator().manual_seed(1))


def test_a_perfect_reconstruction_does_no_damage():
    model = Bigram()
    damage = language_damage(model, [ids(), ids()[:, :1]], model.embed, lambda x: x)
    assert damage.tokens == 4 * 19
    assert damage.kl == pytest.approx(0.0, abs=1e-6)
    assert damage.ce_spliced == pytest.approx(damage.ce_clean)
    assert damage.loss_recovered == pytest.approx(1.0)
    assert damage.ce_ablated == pytest.approx(torch.tensor(11.0).log().item())


def test_ablation_is_the_zero_of_recovered_loss():
    model = Bigram()
    mean_D = model.embed(ids()).mean((0, 1))
    for ablation in (zero_ablation, mean_ablation(mean_D)):
        damage = language_damage(model, [ids()], model.embed, ablation, ablation=ablation)
        assert damage.loss_recovered == pytest.approx(0.0)
        assert damage.kl > 0
    half = language_damage(model, [ids()], model.embed, lambda x: 0.9 * x)
    assert 0 < half.kl < damage.kl
    with pytest.raises(ValueError, match="two tokens"):
        language_damage(model, [ids()[:, :1]], model.embed, double)


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


def test_an_agents_damage_is_the_mean_over_states():
    policy = torch.nn.Linear(3, 2)
    states = torch.randn(10, 3, generator=torch.Generator().manual_seed(2))

    def distribution(observations):
        return Categorical(logits=policy(observations))

    none = policy_damage(distribution, states.split(4), policy, lambda x: x)
    assert none.states == 10
    assert none.kl_max == pytest.approx(0.0, abs=1e-6)
    some = policy_damage(distribution, states.split(4), policy, zero_ablation)
    expected = action_kl(distribution(states), Categorical(logits=torch.zeros(10, 2)))
    assert some.kl_mean == pytest.approx(float(expected.mean().detach()), rel=1e-4)
    assert some.kl_max == pytest.approx(float(expected.max().detach()), rel=1e-4)


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
    with splice(bias, double):
        assert episode_returns(act, Countdown(), episodes=3, seed=1) == [2.0, 4.0, 6.0]
    assert episode_returns(act, Countdown(), episodes=1, seed=9, max_steps=4) == [4.0]


@pytest.mark.parametrize("architecture", ["topk", "skip_transcoder"])
def test_the_modules_own_output_stays_where_an_sae_leaves_rows_alone(architecture):
    sae = build_sae(SAEConfig(architecture=architecture, d_sae=12, k=2), 6)
    sae.outlier_norm = 5.0
    x_BTD = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)).clamp(-0.8, 0.8)
    x_BTD[:, 0] *= 100
    module = torch.nn.Linear(6, 6)
    source = "input" if architecture == "skip_transcoder" else "output"
    clean_BTD = module(x_BTD)
    with splice(module, sae, source=source):
        made_BTD = module(x_BTD)
    assert torch.equal(made_BTD[:, 0], clean_BTD[:, 0])
    assert not torch.isclose(made_BTD[:, 1:], clean_BTD[:, 1:]).all(-1).any()
