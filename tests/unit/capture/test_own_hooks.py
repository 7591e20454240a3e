"""Others move, copy and convert modules with our hooks on them."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
import torch.ao.quantization as quantization
import torch.jit._recursive

from asys_bench.capture.hooks.own_hooks import is_ours

KINDS = ["activation", "input", "gradient", "input_gradient", "parameter_gradient"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def mlp():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))


def hooks_of(model):
    return [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]


def ours_in(model):
    return [hook for hook in hooks_of(model) if is_ours(hook)]


def hosts_own(module, args, output):
    return None


def qat(model):
    model.train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    quantization.prepare_qat(model, inplace=True)


def fuse(model):
    model.eval()
    quantization.fuse_modules(model, [["0", "1"]], inplace=True)


def quantize(model):
    model.eval()
    quantization.quantize_dynamic(model, {torch.nn.Linear}, inplace=True)


@pytest.mark.parametrize("change", [qat, fuse, quantize])
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_that_quantisation_registers_anew_raise_nothing_and_capture(rig, change, kind):
    results = []
    for observed in (False, True):
        model = mlp()
        seen = rig(model, {"match": "0", "capture": kind}) if observed else None
        change(model)
        x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
        out = model(x)
        if out.requires_grad:
            out.sum().backward()
        results.append(out.detach())
    assert torch.equal(*results)
    assert not [s for s in seen.hooker._streams if s.failures.value]
    packets = seen.packets()
    if kind == "activation" and change is not fuse:  # that one leaves the place after the ReLU
        assert torch.equal(packets[0].tensor, model[0](x).detach())
    if kind == "input":
        assert torch.equal(packets[0].tensor, x.detach())
    seen.packets()
    seen.hooker.detach()
    assert not ours_in(model)
    model(x)
    assert seen.packets() == []


@pytest.mark.parametrize("kind", KINDS[:4])
def test_a_hook_takes_its_arguments_in_any_form(rig, kind):
    model = mlp()
    seen = rig(model, {"match": "0", "capture": kind})
    x = torch.ones(2, 8, requires_grad=True)
    out = model[0](x)
    (captured,) = seen.packets() or [None]
    for hook in (
        hook for hook in ours_in(model) if hasattr(hook, "stream") or hasattr(hook, "hook")
    ):
        for call in (
            (model[0], (x,), {}, out),
            (model[0], (x,), out),
            (model[0], (x,), {}),
            (model[0], (x,)),
            (model[0], x),
            (model[0],),
            (None, None, None),
            (x, out),
            (),
        ):
            assert hook(*call) is None
    assert not [s for s in seen.hooker._streams if s.failures.value]
    if kind in ("activation", "input"):
        first = seen.packets()[0]
        assert torch.equal(first.tensor, captured.tensor)
        assert seen.is_accounted_for(first.name)


class Twin(torch.nn.Module):
    """An average of the weights, as `swa_utils` keeps it."""

    def __init__(self, model):
        super().__init__()
        self.module = torch.optim.swa_utils.AveragedModel(model)

    def forward(self, x):
        return self.module(x)


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "make",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),  # noqa: S301 - a model of our own
        lambda m: pickle.loads(pickle.dumps(m, protocol=1)),  # noqa: S301
        saved,
        Twin,
    ],
)
def test_a_copy_has_the_hosts_hooks_and_none_of_ours(rig, make):
    model = mlp()
    first = model[0].register_forward_hook(hosts_own, with_kwargs=False, always_call=True)
    seen = rig(model, {"match": ["0", "2"], "capture": KINDS})
    model[0].register_forward_hook(hosts_own)
    ours = ours_in(model)
    twin = make(model)
    assert not ours_in(twin)
    assert hooks_of(twin) == [hosts_own, hosts_own]
    linear = next(m for m in twin.modules() if isinstance(m, torch.nn.Linear))
    assert type(linear._forward_hooks) is OrderedDict
    assert list(linear._forward_hooks_always_called) == [first.id]
    assert not linear._forward_pre_hooks_with_kwargs
    twin(torch.ones(1, 8)).sum().backward()
    assert seen.packets() == []
    assert ours_in(model) == ours, "the model keeps its hooks"


def test_a_shallow_copy_of_a_module_captures_nothing_and_shares_the_weights(rig):
    model = mlp()
    seen = rig(model, {"match": "0"})
    twin = copy.copy(model[0])
    assert twin.weight is model[0].weight
    twin(torch.ones(1, 8))
    assert seen.packets() == []
    model(torch.ones(1, 8))
    assert len(seen.packets()) == 1


@pytest.mark.rest
def test_a_saved_model_that_was_observed_loads_without_this_package(rig, tmp_path):
    model = mlp()
    rig(model, {"match": "*", "capture": KINDS})
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys, torch; m = torch.load(sys.argv[1], weights_only=False);"
        "assert not any(x._forward_hooks or x._forward_pre_hooks for x in m.modules());"
        "m(torch.ones(1, 8)); assert not any(n.startswith('asys_bench') for n in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "model.pt"], check=True, timeout=240)


def test_a_model_and_its_copies_convert_to_torchscript_while_it_is_observed(rig):
    model = mlp().eval()

    def host_hook(self, input: tuple[torch.Tensor], output: torch.Tensor):
        return output

    rig(model, {"match": ["0", "1"], "capture": KINDS[:4]})
    model[1].register_forward_hook(host_hook)
    before = hooks_of(model)
    x = torch.randn(2, 8)
    expected = model(x)
    for convert in (
        lambda: torch.jit.script(model),
        lambda: torch.jit.script(copy.deepcopy(model)),
        lambda: torch.jit.trace(model, x),
        lambda: torch.jit.trace(copy.deepcopy(model), x),
    ):
        scripted = convert()
        assert torch.equal(scripted(x), expected)
        assert hooks_of(model) == before, "in the order that they had"
        file = io.BytesIO()
        torch.jit.save(scripted, file)
        assert b"asys" not in file.getvalue()


def test_parametrised_and_reclassed_modules_are_captured_and_let_go(rig):
    class Scaled(torch.nn.Module):
        def forward(self, weight):
            return weight * 2

    class Other(torch.nn.Linear):
        pass

    model = mlp()
    seen = rig(model, {"match": ["0", "2"], "capture": KINDS[:4]})
    torch.nn.utils.parametrize.register_parametrization(model[0], "weight", Scaled())
    model[2].__class__ = Other
    x = torch.ones(1, 8, requires_grad=True)
    model(x).sum().backward()
    twin = copy.deepcopy(model)  # a parametrised class copies its dictionaries by itself
    names = {packet.name for packet in seen.packets()}
    assert {"0", "0:input", "2", "2:gradient", "2:input_gradient"} <= names
    twin(x).sum().backward()
    assert seen.packets() == []
    seen.hooker.detach()
    assert not ours_in(model)


def test_a_hook_that_was_moved_to_another_module_is_found_at_the_end(rig):
    model = mlp()
    seen = rig(model, {"match": "0", "capture": KINDS[:4]})
    wrapper = torch.nn.Identity()
    for hook in list(model[0]._forward_hooks.values()):
        wrapper.register_forward_hook(hook)
    for hook in list(model[0]._forward_pre_hooks.values()):
        wrapper.register_forward_pre_hook(hook)
    model[0]._forward_hooks.clear()
    model[0]._forward_pre_hooks.clear()
    model.append(wrapper)
    x = torch.ones(2, 8, requires_grad=True)
    model(x).sum().backward()
    assert {packet.name for packet in seen.packets()} >= {"0", "0:input", "0:gradient"}
    seen.hooker.detach()
    assert not ours_in(model)
    assert not wrapper._forward_pre_hooks_with_kwargs


def test_torch_is_as_it_was_once_the_last_observer_has_left(rig):
    before = (torch.nn.Module.__getstate__, torch.jit._recursive.create_script_module)
    one, other = rig(mlp(), {"match": "0"}), rig(mlp(), {"match": "0"})
    one.hooker.detach()
    assert torch.nn.Module.__getstate__ is not before[0]
    other.hooker.detach()
    other.hooker.detach()
    assert (torch.nn.Module.__getstate__, torch.jit._recursive.create_script_module) == before
