"""What one hook adds to a forward call, per bus, with a reader that keeps the bus empty."""

import pytest
import torch
from plugins import BACKENDS, GROUP, bus_of

from asys_bench.capture.hooker import ActivationHooker
from asys_bench.capture.points.hookpoints import resolve
from asys_bench.capture.tags.clock import StepClock
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.contracts.stats import StatsPage
from asys_bench.kernels.identity.kernel import IdentityPreprocessor

ROWS = {"4KiB": 1, "1MiB": 256}


def model_and_input(size):
    return torch.nn.Sequential(torch.nn.Identity()), torch.randn(ROWS[size], 1024)


@pytest.mark.parametrize("size", ROWS)
def test_forward_without_a_hook(benchmark, size):
    model, x = model_and_input(size)
    benchmark.pedantic(model, args=(x,), rounds=300, warmup_rounds=20)


@pytest.mark.parametrize("size", ROWS)
@pytest.mark.parametrize("name", BACKENDS)
def test_hooked_forward(benchmark, name, size):
    model, x = model_and_input(size)
    page = StatsPage.create(["host"])
    with bus_of(name) as bus:
        points = resolve(model, [HookConfig(match=("0",))])
        slot = page.slot("host")
        hooker = ActivationHooker(
            bus, points, [IdentityPreprocessor()], slot, StepClock(slot), coins=[0]
        )
        hooker.attach()
        with bus.subscribe(GROUP, "reader") as reader:

            def make_room():
                with reader.pull_batch(256, 0.0, 0):
                    pass

            benchmark.pedantic(model, args=(x,), setup=make_room, rounds=300, warmup_rounds=20)
        hooker.detach()
        assert slot.counter("hook_captured", hook="0").value >= 300
    page.close()
