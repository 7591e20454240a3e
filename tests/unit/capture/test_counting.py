"""Steps from forward calls, versions from optimizers, wrappers, and copies of an observed model."""

from __future__ import annotations

import copy
import io
import sys
import threading

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from asys_bench.capture.hooks.root_hook import ForwardCalls
from asys_bench.capture.points.hookpoints import modules_by_name, resolve
from asys_bench.capture.points.untrained_networks import unwrap
from asys_bench.capture.tags.clock import StepClock
from asys_bench.capture.tags.optimizer_watch import OptimizerWatch
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.contracts.stats import StatsPage
from asys_bench.contracts.torch_internals import is_compiled_in_place
from asys_bench.run.experiment import LateStepClock


@pytest.fixture
def clock():
    page = StatsPage.create(["host"])
    yield StepClock(page.slot("host"))
    page.close()


def model():
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))


def counted(net, clock):
    """`net` with the hooks of a root, its calls counted as steps."""
    calls = ForwardCalls(clock, [net])
    calls.attach_begin()
    calls.attach_end()
    clock.count_calls()
    return calls


def test_a_step_begins_with_each_call_after_the_first(clock):
    net = model()
    counted(net, clock)
    seen = []
    net[0].register_forward_hook(lambda *_: seen.append(clock.host_step))
    for _ in range(3):
        net(torch.randn(2, 4))
    assert seen == [0, 1, 2]
    clock.end_counting()
    assert clock.host_step == 3
    clock.end_counting()
    assert clock.host_step == 3


def test_marked_steps_number_calls_as_counting_does(clock):
    net = model()
    counted(net, clock)
    seen = []
    net[0].register_forward_hook(lambda *_: seen.append(clock.host_step))
    for _ in range(3):
        net(torch.randn(2, 4))
        clock.step()
    clock.end_counting()
    assert seen == [0, 1, 2]
    assert clock.host_step == 3


def test_a_model_that_is_never_called_makes_no_step(clock):
    counted(model(), clock)
    clock.end_counting()
    assert clock.host_step == 0


def test_only_optimizers_of_the_model_version_its_weights(clock):
    net, other = model(), model()
    watch = OptimizerWatch(net, clock)
    watch.attach()
    ours = [torch.optim.SGD(net[1].parameters(), 0.1), torch.optim.Adam(net[0].parameters())]
    theirs = torch.optim.SGD(other.parameters(), 0.1)
    net(torch.randn(2, 4)).sum().backward()
    for optimizer in (*ours, theirs, ours[0]):
        optimizer.step()
    assert clock.weights_version == 3
    watch.detach()
    ours[0].step()
    assert clock.weights_version == 3


def test_an_observed_model_can_be_copied_and_saved(clock):
    net = model()
    counted(net, clock)
    twin = copy.deepcopy(net)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for copied in (twin, loaded):
        assert torch.equal(copied(torch.ones(1, 4)), net(torch.ones(1, 4)))
    assert clock.host_step == 1, "a copy counts nothing"


def test_a_call_that_raises_is_over_and_one_that_was_interrupted_is_found_out(clock):
    net = model()
    counted(net, clock)
    with pytest.raises(RuntimeError):
        net(torch.randn(2, 5))
    assert clock.call is None
    handle = net[1].register_forward_hook(lambda *_: interrupt())

    def interrupt():
        raise KeyboardInterrupt  # torch calls no forward hook for what is no Exception

    with pytest.raises(KeyboardInterrupt):
        net(torch.randn(2, 4))
    assert clock.call is not None
    handle.remove()
    net(torch.randn(2, 4))
    assert clock.call is None
    assert clock.host_step == 2


def test_a_model_that_calls_itself_is_one_call(clock):
    class Twice(torch.nn.Module):
        def forward(self, x, deeper=True):
            return self(x, False) + 1 if deeper else x

    net = Twice()
    counted(net, clock)
    for _ in range(2):
        net(torch.zeros(1))
    clock.end_counting()
    assert clock.host_step == 2


def test_copies_of_the_hooks_of_a_root_do_nothing(clock):
    net = model()
    counted(net, clock)
    twin = copy.deepcopy(net)
    assert twin(torch.ones(1, 4)).shape == (1, 2)
    assert clock.host_step == 0
    assert clock.call is None


def deepspeed_engine():
    """A class that is called as DeepSpeed's, which is not installed."""

    def forward(self, *inputs):
        return self.module(*inputs)

    def keep(self, module):
        torch.nn.Module.__init__(self)
        self.module = module

    body = {"__module__": "deepspeed.runtime.engine", "__init__": keep, "forward": forward}
    return type("DeepSpeedEngine", (torch.nn.Module,), body)


def test_wrapped_blocks_keep_their_names():
    net = torch.nn.Sequential(checkpoint_wrapper(torch.nn.Sequential(torch.nn.Linear(4, 4))))
    assert list(modules_by_name(net)) == ["0", "0.0"]
    points = resolve(
        net, [HookConfig(match=("0.0",), capture=("activation", "parameter_gradient"))]
    )
    assert [point.name for point in points] == ["0.0", "0.0.weight:grad", "0.0.bias:grad"]


def test_wrappers_are_looked_through():
    net = model()
    assert unwrap(net) is net
    assert unwrap(torch.nn.DataParallel(net)) is net
    assert unwrap(torch.compile(net, backend="eager")) is net
    assert unwrap(torch.nn.DataParallel(torch.compile(net, backend="eager"))) is net
    assert unwrap(checkpoint_wrapper(net)) is net
    engine = type("PipelineEngine", (deepspeed_engine(),), {})
    assert unwrap(engine(net)) is net
    assert unwrap(torch.compile(engine(torch.nn.DataParallel(net)), backend="eager")) is net
    assert not is_compiled_in_place(net)
    net.compile(backend="eager")
    assert is_compiled_in_place(net)


def test_a_late_clock_says_why_a_model_does_not_fit(clock):
    late = LateStepClock([HookConfig(match=("0", "nope*"))], lambda *_: clock)
    assert "nope" in str(late.misfit(model()))
    assert LateStepClock([HookConfig(match=("0",))], lambda *_: clock).misfit(model()) is None


def test_a_late_clock_counts_from_the_call_that_is_under_way(clock):
    net = model()

    def begin(found, called):
        calls = ForwardCalls(clock, [found])
        calls.attach_begin()
        calls.attach_end()
        clock.count_calls(called=called)
        return clock

    late = LateStepClock([], begin)
    late.step()
    late.report("loss", 1.0)
    assert late.steps_made == 0, "nobody is observed yet"
    handle = net.register_forward_pre_hook(lambda *_: late.observe(net, called=True))
    net(torch.randn(1, 4))
    handle.remove()
    net(torch.randn(1, 4))
    late.end()
    late.end()
    assert late.steps_made == 2
    with pytest.raises(RuntimeError, match="observed already"):
        late.observe(net)


def test_steps_that_several_threads_mark_at_once_all_count(clock):
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda: [clock.step() for _ in range(400)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert clock.host_step == 1600
