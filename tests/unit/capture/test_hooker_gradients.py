"""Gradients: whose they are, in-place operations, activation checkpointing, threads of autograd."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from asys_bench.capture.hooks import input_gradient
from asys_bench.contracts.packet import Kind

Linear, Tanh = torch.nn.Linear, torch.nn.Tanh


class Residual(torch.nn.Module):
    """Uses its input three times, and its caller uses it once more."""

    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v = (Linear(width, width) for _ in range(3))

    def forward(self, x, scale=None):
        out = torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x)
        return out if scale is None else out * scale


class Block(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.first, self.inner, self.last = Linear(width, width), Residual(width), Linear(width, 1)

    def forward(self, x):
        h = self.first(x)
        h = h + self.inner(h)
        h = h + self.inner(h, scale=h * 1)  # again, and what was made of its input beside it
        return self.last(h)


def full_backward_gradients(model, module, x):
    """What register_full_backward_hook sees, in the order of the forward calls."""
    found = []
    handle = module.register_full_backward_hook(lambda m, gi, go: found.append(gi[0].clone()))
    model(x).square().sum().backward()
    handle.remove()
    model.zero_grad()
    return list(reversed(found))


@pytest.mark.parametrize("leaf", [False, True], ids=["intermediate", "leaf"])
def test_input_gradients_are_those_of_full_backward_hooks(rig, leaf):
    torch.manual_seed(0)
    model = Block()
    module = model.first if leaf else model.inner
    x = torch.randn(3, 4, requires_grad=True)
    expected = full_backward_gradients(model, module, x)
    name = "first" if leaf else "inner"
    observed = rig(model, {"match": name, "capture": "input_gradient"})
    model(x).square().sum().backward()
    packets = sorted(observed.packets(), key=lambda p: p.call)
    assert [p.kind for p in packets] == [Kind.INPUT_GRADIENT] * len(expected)
    for packet, gradient in zip(packets, expected, strict=True):
        torch.testing.assert_close(packet.tensor, gradient)


def test_an_input_gradient_comes_even_if_a_part_of_the_module_takes_no_part(rig):
    class TwoHeads(torch.nn.Module):
        def forward(self, x):
            return x * 2, x * 3

    model = torch.nn.Sequential(Linear(4, 4), TwoHeads())
    observed = rig(model, {"match": "1", "capture": "input_gradient"})
    model(torch.randn(2, 4))[1].sum().backward()
    model(torch.randn(2, 4))[0].sum().backward()
    first, second = observed.tensors()
    assert torch.equal(first, torch.full((2, 4), 3.0))
    assert torch.equal(second, torch.full((2, 4), 2.0))


def _dense(weight):
    return (weight * weight).sum()


def _sparse(weight):
    return torch.nn.functional.embedding(torch.tensor([1, 2, 1]), weight, sparse=True).sum()


ORDERS = {
    "sparse first": [_dense, _sparse],
    "dense first": [_sparse, _dense],
    "sparse between": [_dense, _sparse, lambda w: w.sum()],
    "dense between": [_sparse, _dense, _sparse],
    "only sparse": [_sparse, _sparse],
    "once": [_dense],
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(("order", "dtype"), [
    (order, dtype)
    for order in ORDERS
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    if order != "only sparse" or dtype.itemsize > 2  # which torch itself cannot add
])  # fmt: skip
def test_the_sum_of_sparse_and_dense_parts_is_the_hosts_gradient(rig, order, dtype):
    """The engine runs the parts backwards: the last use of the weight sends its gradient first."""

    class Tied(torch.nn.Module):
        def forward(self, weight):
            return sum(use(weight) for use in ORDERS[order])

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tied = Tied()
            values = torch.tensor([[0.5, -3.0], [1.0, 2.0], [-1.5, 0.25], [8.0, 0.0]])
            self.weight = torch.nn.Parameter(values.to(dtype))

        def forward(self):
            return self.tied(self.weight)

    model, alone = Net(), Net()
    observed = rig(model, {"match": "tied", "capture": "input_gradient"})
    for _ in range(3):
        for one in (model, alone):
            one.weight.grad = None
            one().backward()
        assert torch.equal(model.weight.grad.to_dense(), alone.weight.grad.to_dense())
    uses = [use for use in ORDERS[order] if use is not _sparse]
    expected = sum(2 * alone.weight if use is _dense else 1 for use in uses)
    sparse = torch.tensor([0, 2, 1, 0], dtype=dtype)[:, None]
    expected = (expected + ORDERS[order].count(_sparse) * sparse).detach()
    found = observed.tensors()
    if order == "only sparse":
        assert found == []
        assert observed.value("skipped", "tied:input_gradient") == 3
    else:
        assert len(found) == 3
        for gradient in found:
            assert gradient.dtype == dtype
            assert torch.equal(gradient, expected)
            assert torch.equal(gradient, alone.weight.grad)
    assert observed.is_accounted_for("tied:input_gradient")
    assert observed.value("failed", "tied:input_gradient") == 0


def test_a_second_backward_through_the_same_graph_sends_the_gradient_again(rig):
    model = torch.nn.Sequential(Linear(4, 4), Residual(4))
    hook = {"match": "1", "capture": ["gradient", "input_gradient"]}
    observed = rig(model, hook)
    loss = model(torch.randn(2, 4)).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    found = observed.packets()
    for kind in (Kind.GRADIENT, Kind.INPUT_GRADIENT):
        one, two = (p.tensor for p in found if p.kind == kind)
        assert torch.equal(one, two)


def test_a_module_that_works_in_place_or_returns_its_input_has_an_input_gradient(rig):
    model = torch.nn.Sequential(Linear(4, 4), torch.nn.ReLU(inplace=True), torch.nn.Identity())
    hook = {"match": ["1", "2"], "capture": ["gradient", "input_gradient"]}
    observed = rig(model, hook)
    x = torch.randn(2, 4)
    (model(x) * 3).sum().backward()
    found = {p.name: p.tensor for p in observed.packets()}
    with torch.no_grad():
        positive = (torch.nn.functional.linear(x, model[0].weight, model[0].bias) > 0).float()
    assert torch.equal(found["2:gradient"], torch.full((2, 4), 3.0))
    assert torch.equal(found["2:input_gradient"], torch.full((2, 4), 3.0))
    assert torch.equal(found["1:gradient"], torch.full((2, 4), 3.0))
    assert torch.equal(found["1:input_gradient"], 3 * positive)


def test_an_output_that_is_changed_in_place_afterwards_keeps_its_own_gradient(rig):
    model = torch.nn.Sequential(Linear(4, 4), Tanh())
    observed = rig(model, {"match": "0", "capture": ["activation", "gradient"]})
    h = model[0](torch.randn(2, 4))
    before = h.detach().clone()
    h.mul_(5)
    h.sum().backward()
    activation, gradient = observed.tensors()
    assert torch.equal(activation, before)
    assert torch.equal(gradient, torch.full((2, 4), 5.0))


@pytest.mark.parametrize("change", [torch.relu_, lambda h: h.mul_(5), lambda h: h[..., :1].zero_()])
def test_an_output_that_is_a_view_and_changed_in_place_keeps_its_own_gradient(rig, change):
    model = torch.nn.Sequential(Linear(4, 4))
    observed = rig(model, {"match": "0", "capture": "gradient"})
    x = torch.randn(2, 3, 4)
    for in_place in (False, True):
        h = model[0](x)
        assert h._is_view()
        if in_place:
            change(h)
            loss = h.square().sum()
        else:
            leaf = h.detach().requires_grad_()
            copy = leaf.clone()
            change(copy)
            copy.square().sum().backward()
            expected = leaf.grad
            loss = h.sum()
        loss.backward(retain_graph=True)
        loss.backward()
    plain, again, changed, changed_again = observed.tensors()
    assert torch.equal(plain, torch.ones_like(plain))
    assert torch.equal(again, plain)
    assert torch.equal(changed, expected)
    assert torch.equal(changed_again, expected)


def test_a_view_of_the_modules_own_input_never_sends_the_inputs_gradient(rig):
    class Flattens(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)

    model = torch.nn.Sequential(Linear(4, 4), Flattens())
    observed = rig(model, {"match": "1", "capture": "gradient"})
    for call in (lambda x: model[1](x), lambda x: model[1](x=x)):
        h = model[0](torch.randn(2, 3, 4)) * 1
        flat = call(h)
        (flat.sum() + (h * 7).sum()).backward()
        flat = call(h := model[0](torch.randn(2, 3, 4)) * 1)
        flat.mul_(2)
        (flat.sum() + (h * 7).sum()).backward()
    assert [t.unique().tolist() for t in observed.tensors()] == [[1.0], [1.0]]


def test_views_of_a_buffer_that_is_written_to_later_arrive_as_they_were(rig):
    class View(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cache = torch.zeros(8, 4)

        def forward(self, x):
            self.cache[:2] = x
            return self.cache[:2]

    model = torch.nn.Sequential(View())
    observed = rig(model, {"match": "0"})
    first, second = torch.randn(2, 4), torch.randn(2, 4)
    model(first)
    model(second)
    assert [torch.equal(*pair) for pair in zip(observed.tensors(), (first, second), strict=True)]


def test_parameter_gradients_accumulate_as_the_host_sees_them(rig):
    model = torch.nn.Sequential(Linear(4, 2))
    observed = rig(model, {"match": "0", "capture": "parameter_gradient"})
    expected = []
    for _ in range(2):
        model(torch.randn(3, 4)).sum().backward()
        expected.append(model[0].weight.grad.clone())
    found = observed.tensors("0.weight:grad")
    assert len(found) == 2
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_tied_weight_sends_one_gradient_with_both_uses(rig):
    model = torch.nn.Sequential(Linear(4, 4, bias=False), Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    observed = rig(model, {"match": "*", "capture": "parameter_gradient"})
    model(torch.randn(3, 4)).square().sum().backward()
    (gradient,) = observed.tensors()
    assert torch.equal(gradient, model[0].weight.grad)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_and_vanished_gradients_are_skipped_and_explained(rig, caplog):
    model = torch.nn.Sequential(torch.nn.Embedding(10, 4, sparse=True), Linear(4, 2, bias=False))

    def step_in_backward(parameter):
        parameter.grad = None

    model[1].weight.register_post_accumulate_grad_hook(step_in_backward)
    observed = rig(model, {"match": "*", "capture": "parameter_gradient"})
    model(torch.tensor([1, 2])).sum().backward()
    assert observed.packets() == []
    assert observed.value("skipped", "0.weight:grad") == 1
    assert observed.value("skipped", "1.weight:grad") == 1
    messages = " ".join(record.message for record in caplog.records)
    assert "sparse" in messages
    assert "was gone" in messages


@pytest.mark.rest
def test_a_host_that_never_calls_backward_keeps_no_memory_of_ours(rig):
    def sums():
        return sum(type(o) is input_gradient._Sum for o in gc.get_objects())

    model = torch.nn.Sequential(Linear(4, 4), Residual(4))
    rig(model, {"match": "*", "capture": ["gradient", "input_gradient"]})
    gc.collect()
    gc.disable()  # nothing of ours may need it: autograd's graph is no place for cycles
    try:
        out = model(torch.randn(2, 4, requires_grad=True))
        assert sums() == 5
        del out
        assert sums() == 0
    finally:
        gc.enable()


def test_a_forward_that_raises_leaves_nothing_behind_on_the_stack_of_calls(rig):
    class Moody(torch.nn.Module):
        angry = True

        def forward(self, x):
            if self.angry:
                raise RuntimeError("no")
            return x * 2

    model = torch.nn.Sequential(Linear(4, 4), Moody())
    observed = rig(model, {"match": "1", "capture": "input_gradient"})
    for _ in range(3):
        with pytest.raises(RuntimeError, match="no"):
            model(torch.randn(2, 4))
        observed.clock.step()
    Moody.angry = False
    model(torch.randn(2, 4)).sum().backward()
    (gradient,) = observed.tensors()
    assert torch.equal(gradient, torch.full((2, 4), 2.0))


def test_a_module_of_too_many_nodes_is_left_out_and_explained(rig, caplog, monkeypatch):
    monkeypatch.setattr(input_gradient, "MAX_NODES", 2)
    model = torch.nn.Sequential(Linear(4, 4), Residual(4))
    observed = rig(model, {"match": "1", "capture": "input_gradient"})
    model(torch.randn(2, 4)).sum().backward()
    assert observed.packets() == []
    assert any("more than 2 nodes" in record.message for record in caplog.records)


# Activation checkpointing


class Checkpointed(torch.nn.Module):
    """Two layers inside a checkpoint, a layer before and after."""

    def __init__(self, reentrant):
        super().__init__()
        self.before, self.after = Linear(4, 4), Linear(4, 4)
        self.inside = torch.nn.Sequential(Linear(4, 4), Tanh(), Linear(4, 4), Tanh())
        self.reentrant = reentrant

    def forward(self, x):
        h = self.before(x)
        if self.reentrant is None:
            h = self.inside(h)
        else:
            h = checkpoint(self.inside, h, use_reentrant=self.reentrant)
        return self.after(h)


MODES = [(True, True), (False, True), (False, False)]
MODE_NAMES = ["reentrant", "non-reentrant", "non-reentrant without early stop"]


def run(rig, reentrant, early_stop, kinds):
    torch.manual_seed(0)
    model = Checkpointed(reentrant)
    observed = rig(model, {"match": ["before", "inside.*", "after"], "capture": kinds})
    for step in range(2):
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(step)).requires_grad_()
        with set_checkpoint_early_stop(early_stop):
            model(x).square().sum().backward()
        observed.clock.step()
    return observed, observed.packets()


@pytest.mark.parametrize(("reentrant", "early_stop"), MODES, ids=MODE_NAMES)
def test_recomputation_is_not_captured(rig, reentrant, early_stop):
    kinds = ["activation", "input"]
    _, plain = run(rig, None, True, kinds)
    observed, packets = run(rig, reentrant, early_stop, kinds)
    assert len(plain) == 2 * 6 * 2
    assert [p[:2] + p[3:] for p in packets] == [p[:2] + p[3:] for p in plain]
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(packets, plain, strict=True))
    assert observed.value("recomputed", "inside.0") == 2
    assert observed.value("recomputed", "before") == 0
    assert observed.value("calls", "inside.0") == 2


@pytest.mark.parametrize(("reentrant", "early_stop"), MODES, ids=MODE_NAMES)
def test_gradients_inside_a_checkpoint_are_captured_once(rig, reentrant, early_stop):
    kinds = ["gradient", "input_gradient", "parameter_gradient"]

    def by_place(packets):
        return {(p.name, p.step, p.call): p.tensor for p in packets}

    _, plain = run(rig, None, True, kinds)
    _, packets = run(rig, reentrant, early_stop, kinds)
    assert len(packets) == len(plain)
    expected, found = by_place(plain), by_place(packets)
    assert found.keys() == expected.keys()
    for place, tensor in expected.items():
        torch.testing.assert_close(found[place], tensor, msg=str(place))
