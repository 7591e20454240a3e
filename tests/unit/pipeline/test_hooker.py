"""The hooker copies, samples, fails open, and leaves no trace."""

from __future__ import annotations

import logging
import time
from collections import namedtuple

import pytest
import torch

from asys_bench.config.bus import BusConfig
from asys_bench.config.hooks import HookConfig
from asys_bench.contracts.bus import GroupSpec
from asys_bench.contracts.packet import Kind
from asys_bench.contracts.stats import StatsPage
from asys_bench.pipeline.assembly import build_preprocessor, create_data_bus
from asys_bench.pipeline.clock import StepClock
from asys_bench.pipeline.decoding import Decoder
from asys_bench.pipeline.hooker import ActivationHooker
from asys_bench.pipeline.hookpoints import HookError, resolve, select_tensor


class Rig:
    """A model with hooks, a bus and one reader in this process."""

    def __init__(self, model, hooks, **bus):
        config = BusConfig(**{"capacity_packets": 64, **bus})
        self.page = StatsPage.create(["host"])
        self.slot = self.page.slot("host")
        self.clock = StepClock(self.slot)
        self.bus = create_data_bus(config, [GroupSpec("g")])
        points = resolve(model, hooks)
        self.hooker = ActivationHooker(
            self.bus,
            points,
            [build_preprocessor(point.config) for point in points],
            self.slot,
            self.clock,
            on_full=config.on_full,
            block_timeout_s=config.block_timeout_s,
            seeds=list(range(len(points))),
        )
        self.hooker.attach()

    def pull(self):
        """Everything on the bus as (hook name, packet fields, tensor)."""
        decode = Decoder(self.bus.name_of)
        found = []
        while True:
            with self.bus.pull_batch("g", 64, timeout_s=0.3) as lease:
                if not len(lease):
                    return found
                found.extend(
                    (self.bus.name_of(p.hook_id), p.kind, decode(p).clone()) for p in lease
                )

    def value(self, name):
        return self.slot.metrics()[name].value

    def close(self):
        self.hooker.detach()
        self.bus.close()
        self.page.close()


@pytest.fixture
def rig():
    rigs = []

    def make(model, *hooks, **bus):
        rigs.append(Rig(model, [HookConfig.model_validate(hook) for hook in hooks], **bus))
        return rigs[-1]

    yield make
    for one in rigs:
        one.close()


def mlp():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def test_the_output_arrives_as_it_was_even_if_the_host_then_overwrites_it(rig):
    model = mlp()
    observed = rig(model, {"match": "0"})
    x = torch.randn(3, 4)
    with torch.no_grad():
        expected = model[0](x).clone()
        observed.pull()
        model[0](x).zero_()
    ((name, kind, tensor),) = observed.pull()
    assert (name, kind) == ("0", Kind.ACTIVATION)
    assert torch.equal(tensor, expected)


@pytest.mark.parametrize("kind", ["activation", "input", "gradient"])
@pytest.mark.parametrize("kernel", ["identity", {"cast": {"dtype": "float16"}}])
def test_training_is_bit_identical_under_observation(rig, kind, kernel):
    def train(observe):
        model = mlp()
        if observe:
            observed = rig(model, {"match": "*", "capture": kind, "preprocess": [kernel]})
        optimizer = torch.optim.Adam(model.parameters())
        for step in range(5):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            loss = torch.nn.functional.dropout(model(x), 0.5).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if observe:
            assert len(observed.pull()) == 15
        return [p.detach().clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))


def test_gradients_and_inputs_are_the_ones_autograd_saw(rig):
    model = mlp()
    observed = rig(model, {"match": "0", "capture": ["input", "gradient"]})
    x = torch.randn(3, 4)
    out = model[0](x)
    out.retain_grad()
    out.square().sum().backward()
    found = {(name, kind): tensor for name, kind, tensor in observed.pull()}
    assert torch.equal(found["0:input", Kind.INPUT], x)
    assert torch.equal(found["0:gradient", Kind.GRADIENT], out.grad)


def test_detach_leaves_the_model_as_it_was(rig):
    model = mlp()
    observed = rig(model, {"match": "*", "capture": ["activation", "input", "gradient"]})
    observed.hooker.attach()
    observed.hooker.detach()
    observed.hooker.detach()
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    model(torch.randn(1, 4)).sum().backward()
    assert observed.pull() == []


def test_a_failing_observer_switches_itself_off_and_logs_once(rig, caplog):
    model = mlp()
    observed = rig(model, {"match": "0", "preprocess": [{"cast": {"dtype": "float16"}}]})
    with caplog.at_level(logging.WARNING):
        model[0].weight.data = model[0].weight.data.to(torch.complex64)
        model[0].bias.data = model[0].bias.data.to(torch.complex64)
        for _ in range(3):
            out = model[0](torch.randn(2, 4, dtype=torch.complex64))
    assert out.shape == (2, 8)
    assert observed.value("hook_failed{hook=0}") == 1
    assert sum("switched itself off" in record.message for record in caplog.records) == 1
    assert observed.pull() == []


def test_a_full_bus_lowers_the_rate_and_it_recovers_once_drained(rig):
    model = mlp()
    sampling = {"increase_per_s": 20.0, "decrease_factor": 0.5}
    observed = rig(model, {"match": "0", "sampling": sampling}, capacity_packets=32)
    x = torch.randn(1, 4)
    deadline = time.monotonic() + 10
    while observed.value("hook_sampling_rate{hook=0}") > 0.3 and time.monotonic() < deadline:
        model[0](x)
    assert observed.value("hook_sampling_rate{hook=0}") <= 0.3
    assert observed.value("hook_dropped{hook=0}") + observed.value("hook_captured{hook=0}") > 0
    while observed.value("hook_sampling_rate{hook=0}") < 1.0 and time.monotonic() < deadline:
        observed.pull()
        for _ in range(40):
            model[0](x)
    assert observed.value("hook_sampling_rate{hook=0}") == 1.0
    observed.pull()
    account = observed.bus.account()
    assert account.imbalance(account.group("g")) == 0
    calls = observed.value("hook_calls{hook=0}")
    parts = ("hook_captured", "hook_sampled_out", "hook_dropped", "hook_skipped")
    assert calls == sum(observed.value(f"{part}{{hook=0}}") for part in parts)


def test_on_full_drop_counts_and_never_lowers_the_rate(rig):
    model = mlp()
    observed = rig(model, {"match": "0"}, capacity_packets=8, on_full="drop")
    for _ in range(50):
        model[0](torch.randn(1, 4))
    account = observed.bus.account()
    assert observed.value("hook_sampling_rate{hook=0}") == 1.0
    assert observed.value("hook_dropped{hook=0}") == account.dropped["full"] > 0
    assert account.produced == 50


def test_on_full_block_waits_no_longer_than_its_timeout(rig):
    model = mlp()
    observed = rig(model, {"match": "0"}, capacity_packets=4, on_full="block", block_timeout_s=0.05)
    for _ in range(8):
        model[0](torch.randn(1, 4))
    assert observed.bus.account().dropped["timeout"] > 0


def test_phase_selects_training_or_evaluation_calls(rig):
    model = mlp()
    observed = rig(model, {"match": "0", "phase": "eval"})
    model.train()
    model(torch.randn(1, 4))
    model.eval()
    model(torch.randn(2, 4))
    assert [tuple(tensor.shape) for _, _, tensor in observed.pull()] == [(2, 8)]
    assert observed.value("hook_skipped{hook=0}") == 1


def test_non_contiguous_outputs_arrive_in_logical_order(rig):
    class Transposed(torch.nn.Module):
        def forward(self, x):
            return x.t()

    model = torch.nn.Sequential(Transposed())
    observed = rig(model, {"match": "0"})
    x = torch.arange(12.0).reshape(3, 4)
    model(x)
    ((_, _, tensor),) = observed.pull()
    assert torch.equal(tensor, x.t())


Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    ("value", "select", "index"),
    [
        ((0, 1), None, 0),
        ((0, 1), 1, 1),
        ((0, 1), 2, None),
        ([0, 1], -1, 1),
        ({"a": 0, "b": 1}, "b", 1),
        ({"a": 0, "b": 1}, None, 0),
        ({"a": 0}, "z", None),
        (Pair(0, 1), "second", 1),
        (("text", 1), None, 1),
        ("text", None, None),
    ],
)
def test_a_tensor_is_selected_out_of_structures(value, select, index):
    tensors = [torch.tensor(0), torch.tensor(1)]

    def fill(item):
        return tensors[item] if isinstance(item, int) else item

    if isinstance(value, dict):
        filled = {key: fill(item) for key, item in value.items()}
    elif isinstance(value, Pair):
        filled = Pair(*map(fill, value))
    elif isinstance(value, (tuple, list)):
        filled = type(value)(map(fill, value))
    else:
        filled = value
    found = select_tensor(filled, select)
    assert found is (None if index is None else tensors[index])


def test_a_glob_that_matches_nothing_names_what_is_there():
    with pytest.raises(HookError, match="matches no module of Sequential") as caught:
        resolve(mlp(), [HookConfig(match=["10"])])
    assert "0, 1, 2" in str(caught.value)


def test_the_first_rule_that_matches_wins_and_points_come_in_module_order():
    points = resolve(
        mlp(),
        [HookConfig(match=["2"], phase="eval"), HookConfig(match=["*"])],
    )
    assert [point.name for point in points] == ["0", "1", "2"]
    assert [point.config.phase for point in points] == ["any", "any", "eval"]
