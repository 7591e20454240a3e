"""What is hooked when nobody says."""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase

import pytest
import torch

from asys_bench.capture.points.default_hooks import default_hooks
from asys_bench.capture.points.hookpoints import HookError, resolve
from asys_bench.config.sections.hooks import HookConfig


class Block(torch.nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.linear = torch.nn.Linear(width, width)


class Transformer(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.embed = torch.nn.Embedding(10, 8)
        self.layers = torch.nn.ModuleList(Block() for _ in range(layers))
        self.adapters = torch.nn.ModuleList(Block(1) for _ in range(12))
        self.head = torch.nn.Linear(8, 10)


def test_a_stack_of_layers_is_hooked_at_quarters_of_its_depth():
    assert default_hooks(Transformer(12)) == ["layers.3", "layers.6", "layers.9"]


def test_a_short_stack_is_hooked_whole():
    assert default_hooks(Transformer(2)) == ["layers.0", "layers.1"]


def test_without_a_stack_it_is_the_wide_linear_layers():
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 32), torch.nn.Linear(32, 1)
    )
    assert default_hooks(model) == ["0", "2"]


def test_a_stack_at_the_root_is_a_stack():
    model = torch.nn.Sequential(Block(), Block(), Block(), Block())
    assert default_hooks(model) == ["1", "2", "3"]


def test_names_that_look_like_globs_match_themselves_alone():
    model = torch.nn.Module()
    model.add_module("a[1]*", torch.nn.Linear(8, 8))
    model.add_module("a1x", torch.nn.Linear(8, 8))
    first, second = default_hooks(model)
    assert fnmatchcase("a[1]*", first)
    assert not fnmatchcase("a1x", first)
    assert second == "a1x"


def test_a_model_with_nothing_suitable_is_refused_with_its_modules():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3), torch.nn.ReLU())
    with pytest.raises(HookError, match=r"pass hooks=.*Modules: 0, 1"):
        default_hooks(model)


@pytest.mark.rest
@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize(
    ("algorithm", "environment", "hooks", "left_out"),
    [
        ("DQN", "CartPole-v1", ["q_net.q_net.0", "q_net.q_net.2"], ["q_net_target"]),
        (
            "SAC",
            "Pendulum-v1",
            ["actor.latent_pi.2", "critic.qf0.2", "critic.qf1.0"],
            ["critic_target"],
        ),
        (
            "TD3",
            "Pendulum-v1",
            ["actor.mu.2", "critic.qf0.2", "critic.qf1.0"],
            ["actor_target", "critic_target"],
        ),
        ("A2C", "CartPole-v1", None, []),
        ("PPO", "CartPole-v1", None, []),
    ],
)
def test_target_networks_of_reinforcement_learning_are_left_out_and_the_log_says_so(
    caplog, algorithm, environment, hooks, left_out, learnt
):
    sb3 = pytest.importorskip("stable_baselines3")
    model = getattr(sb3, algorithm)("MlpPolicy", environment, device="cpu")
    if learnt:  # another mode, and targets that differ from what they follow
        model.learning_starts = 2
        model.learn(4)
    names = [f"mlp_extractor.{net}" for net in ("policy_net.2", "value_net.0", "value_net.2")]
    assert default_hooks(model.policy) == (hooks or names)
    for name in left_out:
        assert f"{name} (a copy of {name.removesuffix('_target')}, by its name)" in caplog.text
    assert bool(caplog.text) == bool(left_out)


def net(width=8):
    return torch.nn.Sequential(
        torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 8)
    )


def holding(**networks):
    model = torch.nn.Module()
    for name, network in networks.items():
        model.add_module(name, network)
    return model


def frozen(network):
    return copy.deepcopy(network).requires_grad_(False)


@pytest.mark.parametrize(
    "model",
    [
        holding(b=frozen(net()), a=net()),
        holding(b=copy.deepcopy(net()).eval(), a=net()),
        holding(ema=copy.deepcopy(net()), a=net()),
        holding(target_net=net(), a=torch.nn.Identity(), policy_net=net()),
        holding(policyOld=net(), policy=net()),
        holding(teacher=frozen(net(64)), a=net()),
        holding(perceptual_loss=frozen(net(64)), a=net()),
        holding(x=torch.optim.swa_utils.AveragedModel(net()), a=net()),
        holding(nets=torch.nn.ModuleDict({"target": net(), "online": net()})),
        holding(b=holding(net=frozen(net())), a=holding(net=net(), head=torch.nn.Linear(8, 1))),
    ],
    ids=lambda model: next(iter(model._modules)),
)
def test_a_network_that_something_tells_from_its_twin_is_left_out(model, caplog):
    names = [
        name for name in default_hooks(model) if not name.startswith(("a", "policy", "nets.o"))
    ]
    assert names == []
    assert "no hooks were named: observing" in caplog.text


@pytest.mark.parametrize(
    "model",
    [
        holding(query=net(), passage=copy.deepcopy(net())),
        holding(source_encoder=net(), target_encoder=net()),
        holding(layer1=frozen(net()), layer2=net()),
        holding(layers=torch.nn.ModuleList([frozen(Block()), frozen(Block()), Block()])),
        holding(backbone=frozen(net(16)), head=torch.nn.Linear(8, 2)),
        torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 4),
        torch.nn.Transformer(8, 2, 2, 2, 8, batch_first=True),
        frozen(holding(first=net(), second=net())),
        net().eval(),
    ],
)
def test_equal_networks_and_frozen_layers_of_one_model_are_not_taken_for_copies(model, caplog):
    assert default_hooks(model)
    assert caplog.text == ""


def test_an_optimizer_tells_which_of_two_networks_is_trained(caplog):
    model = holding(first=net(), second=net())
    optimizer = torch.optim.SGD(model.second.parameters(), 0.1)
    assert default_hooks(model, [optimizer]) == ["second.0", "second.2"]
    assert "first (the same layers as second, and in no optimizer)" in caplog.text
    assert default_hooks(model) == ["first.2", "second.0", "second.2"]


def test_a_stack_in_a_target_network_is_not_the_models_stack():
    model = holding(target=Transformer(6), online=Transformer(6))
    assert default_hooks(model) == ["online.layers.1", "online.layers.3", "online.layers.4"]


def test_networks_in_a_metric_are_left_out():
    torchmetrics = pytest.importorskip("torchmetrics")

    class Distance(torchmetrics.Metric):
        def __init__(self):
            super().__init__()
            self.inception = Transformer(8)

        def update(self): ...

        def compute(self): ...

    model = holding(metrics=torchmetrics.MetricCollection([Distance()]), net=Transformer(2))
    assert default_hooks(model) == ["net.layers.0", "net.layers.1"]


def test_layers_that_share_their_weights_are_one_block():
    block = Block(16)
    model = holding(layers=torch.nn.ModuleList([block] * 6), head=torch.nn.Linear(16, 8))
    model.head2 = model.head
    assert default_hooks(model) == ["layers.0"]
    heads = holding(trunk=net(), wide=net(), heads=torch.nn.ModuleList([net()]))
    assert len(default_hooks(heads)) == 3
    assert "heads.0" not in default_hooks(heads)


def test_what_is_inside_a_compiled_or_parallel_module_has_the_name_that_hooks_have():
    inner = torch.compile(Transformer(4), backend="eager")
    layers = Transformer(4)
    for index, layer in enumerate(layers.layers):
        layers.layers[index] = torch.compile(layer, backend="eager")
    wrapped = torch.nn.DataParallel(Transformer(4))
    for model, prefix in (
        (holding(net=inner), "net."),
        (layers, ""),
        (holding(net=wrapped), "net.module."),
        (holding(target=Transformer(4), online=inner), "online."),
    ):
        found = default_hooks(model)
        assert found == [f"{prefix}layers.{index}" for index in (1, 2, 3)]
        assert [point.name for point in resolve(model, [HookConfig(match=tuple(found))])] == found


def test_a_model_whose_only_layers_are_not_trained_is_refused_and_told_why():
    model = holding(teacher=frozen(net()), student=torch.nn.Conv2d(3, 3, 3))
    with pytest.raises(HookError, match=r"beside teacher \(frozen.*pass hooks="):
        default_hooks(model)
