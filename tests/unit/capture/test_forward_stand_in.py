"""A host of one call per step has its modules' forward called through ours, and notices nothing of it."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from asys_bench.capture.hooks.own_hooks import ForwardStandIn


def mlp():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


@pytest.fixture
def watched(rig):
    """watched(model, *hooks) -> the rig of a host that makes one call in each step."""

    def make(model, *hooks, **options):
        hooks = hooks or ({"match": "0"},)
        return rig(model, *hooks, backend="cpp_spmc", one_call=True, **options)

    return make


def has_one(module):
    return isinstance(vars(module).get("forward"), ForwardStandIn)


def test_what_the_module_returns_is_captured_without_a_hook_and_forward_is_its_own_again(watched):
    model, x = mlp(), torch.randn(3, 4)
    expected = model[0](x)
    observed = watched(model)
    assert has_one(model[0])
    assert not model[0]._forward_hooks
    assert torch.equal(model[0](x), expected)
    assert torch.equal(model[0](input=x), expected)
    assert torch.equal(observed.tensors()[1], expected)
    assert observed.value("captured", "0") == 2
    observed.hooker.detach()
    assert "forward" not in vars(model[0])
    observed.hooker.attach()
    model(x)
    assert observed.value("captured", "0") == 3
    assert observed.is_accounted_for("0")


@pytest.mark.parametrize(
    "what", ["hook", "pre-hook", "forward", "class", "other backend", "counted"]
)
def test_where_somebody_else_is_in_between_or_steps_are_not_the_hosts_it_is_a_hook(rig, what):
    class Own(torch.nn.Linear):
        def __call__(self, x):
            return super().__call__(x) + 1

    model = mlp()
    if what == "hook":
        model[0].register_forward_hook(lambda module, args, output: 2 * output)
    elif what == "pre-hook":
        model[0].register_forward_pre_hook(lambda module, args: None)
    elif what == "forward":
        model[0].forward = model[0].forward
    elif what == "class":
        model[0] = Own(4, 8)
    backend = "mp_queue" if what == "other backend" else "cpp_spmc"
    observed = rig(model, {"match": "0"}, backend=backend, one_call=what != "counted")
    assert not has_one(model[0])
    model(torch.randn(3, 4))
    assert observed.value("captured", "0") == 1


def test_a_hook_of_the_hosts_own_that_comes_later_runs_after_ours(watched):
    model = mlp()
    observed = watched(model)
    handle = model[0].register_forward_hook(lambda module, args, output: 2 * output)
    x = torch.randn(3, 4)
    changed = model[0](x)
    handle.remove()
    assert torch.equal(observed.tensors()[0], changed / 2)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_copies_pickles_and_torchscript_have_the_modules_own_forward(watched):
    model, x = mlp(), torch.randn(3, 4)
    observed = watched(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.zero_()
        twin[0].bias.zero_()
    assert "forward" not in vars(twin[0])
    assert not twin[0](x).any()
    assert "forward" not in vars(copy.copy(model[0]))
    again = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own
    assert torch.equal(again(x), model(x))
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    assert has_one(model[0])
    assert torch.equal(torch.jit.load(io.BytesIO(file.getvalue()))(x), model(x))
    assert observed.value("captured", "0") == 2, "of the model itself"


def test_replicas_compute_with_their_own_parameters_and_are_captured(watched):
    model = mlp()
    observed = watched(model)
    replica = model[0]._replicate_for_data_parallel()
    replica._is_replica = True
    replica.weight, replica.bias = torch.zeros(8, 4), torch.ones(8)
    assert torch.equal(replica(torch.randn(3, 4)), torch.ones(3, 8))
    assert torch.equal(observed.tensors()[0], torch.ones(3, 8))
    assert has_one(model[0])
    assert not model[0]._forward_hooks


def test_somebody_who_wraps_it_afterwards_keeps_what_is_his(watched):
    model, x = mlp(), torch.randn(3, 4)
    observed = watched(model)
    ours = model[0].forward
    model[0].forward = lambda x: ours(x) + 1
    expected = model[0](x)
    observed.hooker.detach()
    assert torch.equal(model[0](x), expected)
    assert observed.value("captured", "0") == 1


def test_a_forward_that_raises_captures_nothing_and_raises(watched):
    observed = watched(model := mlp())
    with pytest.raises(RuntimeError, match="shape"):
        model[0](torch.randn(3, 5))
    assert observed.value("calls", "0") == 0


@pytest.mark.rest
def test_a_compiled_host_keeps_one_graph(watched):
    model, x = mlp(), torch.randn(3, 4)
    expected = model(x)
    observed = watched(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)
    assert torch.equal(compiled(x), expected)
    assert observed.value("captured", "0") == 2
