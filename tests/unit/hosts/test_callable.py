"""The `callable` host: a function gives the model and the loop."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from asys_bench.contracts.host import HostError
from asys_bench.hosts.callable import CallableHost, CallableOptions


class Clock:
    should_stop = False

    def __init__(self):
        self.steps = self.versions = 0
        self.reported = {}

    def step(self, n=1):
        self.steps += n

    def weights_updated(self):
        self.versions += 1

    def report(self, name, value):
        self.reported[name] = value

    def label(self, **labels):
        self.labels = labels


@pytest.fixture
def mine():
    module = types.ModuleType("my_functions")
    sys.modules["my_functions"] = module
    yield module
    del sys.modules["my_functions"]


def host(name="my_functions:build", **options):
    return CallableHost(CallableOptions(function=name, **options), 5)


def test_the_function_gets_the_seed_and_its_arguments_and_its_loop_the_clock(mine):
    def build(seed, width):
        model = torch.nn.Linear(width, seed)

        def train(clock):
            for _ in range(4):
                clock.step(2)
                clock.weights_updated()
                clock.report("loss", 0.5)
                clock.label(reward=1.0)
            return {"loss": torch.tensor(0.25), "note": "text"}

        return model, train

    mine.build = build
    one = host(kwargs={"width": 3}, step_unit="batch")
    model = one.build()
    assert (model.in_features, model.out_features) == (3, 5)
    clock = Clock()
    result = one.run(clock)
    assert (clock.steps, clock.versions, clock.reported) == (8, 4, {"loss": 0.5})
    assert clock.labels == {"step": None, "microbatch": None, "reward": 1.0}
    assert result.steps == 8
    assert result.figures["loss"] == 0.25
    assert result.figures["note"] != result.figures["note"], "what is no number is NaN"
    assert one.step_unit == "batch"


def test_a_loop_that_returns_nothing_has_no_figures(mine):
    mine.build = lambda seed: (torch.nn.Linear(1, 1), lambda clock: None)
    one = host()
    one.build()
    assert one.run(Clock()).figures == {}


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (None, "returned a NoneType"),
        (torch.nn.Linear(1, 1), "returned a Linear"),
        ((torch.nn.Linear(1, 1), 3), r"returned \(Linear, int\)"),
        ((3, print), r"returned \(int, builtin_function_or_method\)"),
    ],
)
def test_a_function_that_returns_something_else_is_refused(mine, built, message):
    mine.build = lambda seed: built
    with pytest.raises(HostError, match=message):
        host().build()


def test_without_a_function_it_says_what_to_name():
    with pytest.raises(HostError, match="name one as"):
        host("").build()
    with pytest.raises(HostError, match="before build"):
        host().run(Clock())
