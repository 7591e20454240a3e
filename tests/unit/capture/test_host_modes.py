"""A host's own modes see the host's operations, each of them, and none of ours.

`TorchFunctionMode` and `TorchDispatchMode` are how hosts count FLOPs, log operators, check numerics and
move tensors. They see even the reading of a tensor's shape. Whatever a hook does, in the forward pass
or in the backward pass, the list of what they saw is the same as without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from asys_bench.contracts.bus import BusPlugin
from asys_bench.contracts.preprocessor import KernelPlugin
from asys_bench.registry import registry

from .conftest import usable_bus

KINDS = ["activation", "input", "gradient", "input_gradient", "parameter_gradient"]
KERNELS = {
    "identity": "identity",
    "cast": {"cast": {"dtype": "float16"}},
    "int8": "int8",
    "fp8": "fp8",
    "topk": {"topk": {"k": 2}},
    "token_sample": {"token_sample": {"fraction": 0.5}},
    "heads": {"heads": {"count": 2}},
    "random_projection": {"random_projection": {"d_out": 2}},
}


class SeesFunctions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(resolve_name(func) or repr(func))
        return func(*args, **(kwargs or {}))


class SeesOperations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Both:
    """A mode of each kind at once."""

    def __init__(self):
        self.functions, self.operations = SeesFunctions(), SeesOperations()

    def __enter__(self):
        self.functions.__enter__()
        self.operations.__enter__()
        return self

    def __exit__(self, *error):
        self.operations.__exit__(*error)
        self.functions.__exit__(*error)

    @property
    def seen(self):
        return [*self.functions.seen, "|", *self.operations.seen]


MODES = {"function": SeesFunctions, "dispatch": SeesOperations, "both": Both}


@pytest.fixture(params=["mp_queue", "numba_ring", "cpp_spmc"])
def backend(request):
    return usable_bus(request.param)


@pytest.fixture
def fastest():
    """For what no bus has a part in."""
    names = ["cpp_spmc", "numba_ring", "mp_queue"]
    return next(n for n in names if registry("backend").get(n, BusPlugin).unavailable() is None)


class Attends(torch.nn.Module):
    """Its input has several uses, and its output is a view (three dimensions)."""

    def __init__(self):
        super().__init__()
        self.query, self.value = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        return torch.softmax(self.query(x) @ x.mT, -1) @ self.value(x) + x


def mlp():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), Attends(), torch.nn.Linear(4, 4))


STEPS = 2
CALLS = STEPS * len(MODES)


def train(make_model, inputs, watch=None):
    """What each mode sees of `STEPS` training steps, and the gradients."""
    torch.manual_seed(0)
    model = make_model()
    observed = watch(model) if watch is not None else None
    seen, gradients = {}, []
    for name, mode in MODES.items():
        for _ in range(STEPS):
            model.zero_grad()
            inputs.grad = None
            with mode() as watched:
                model(inputs).square().mean().backward()
            seen.setdefault(name, []).append(watched.seen)
        gradients += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return seen, gradients, observed


def assert_unseen(rig, make_model, inputs, *hooks, **bus):
    """Returns the rig, with all that was captured still on its bus."""
    alone, gradients, _ = train(make_model, inputs)
    assert all(all(steps) for steps in alone.values())
    beside, same, observed = train(make_model, inputs, lambda model: rig(model, *hooks, **bus))
    assert beside == alone
    assert all(torch.equal(*pair) for pair in zip(gradients, same, strict=True))
    for point in observed.points:
        assert observed.value("failed", point.name) == 0
        assert observed.is_accounted_for(point.name)
    return observed


def assert_all_captured(observed):
    for point in observed.points:
        assert observed.value("captured", point.name) == CALLS, point.name


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kind_of_hook_with_every_preprocessor(rig, backend, kernel):
    hook = {"match": "[0-2]", "capture": KINDS, "preprocess": [KERNELS[kernel]]}
    observed = assert_unseen(rig, mlp, torch.randn(2, 3, 4, requires_grad=True), hook,
                             backend=backend)  # fmt: skip
    assert_all_captured(observed)
    assert len(observed.packets()) == CALLS * len(observed.points)


def test_every_preprocessor_is_among_them():
    assert set(KERNELS) == set(registry("kernel").names())
    assert all(registry("kernel").get(name, KernelPlugin) for name in KERNELS)


@pytest.mark.parametrize("bus", [{"on_full": "block"}, {"checksum": True}], ids=str)
def test_every_way_onto_the_bus(rig, backend, bus):
    hooks = [
        {"match": "[0-2]", "capture": KINDS},
        {"match": "1.query", "capture": KINDS, "preprocess": ["int8"]},
    ]
    observed = assert_unseen(rig, mlp, torch.randn(2, 3, 4, requires_grad=True), *hooks,
                             backend=backend, **bus)  # fmt: skip
    assert_all_captured(observed)


def test_the_general_path_where_there_is_a_compiled_one(rig, monkeypatch):
    from asys_bench.backends.cpp_spmc.bus import CppSpmcProducer
    from asys_bench.backends.cpp_spmc.native import unavailable

    if unavailable() is not None:
        pytest.skip(str(unavailable()))
    monkeypatch.setattr(CppSpmcProducer, "capture_port", lambda *_: None)
    hook = {"match": "[0-2]", "capture": KINDS}
    observed = assert_unseen(
        rig, mlp, torch.randn(2, 3, 4, requires_grad=True), hook, backend="cpp_spmc"
    )
    assert_all_captured(observed)


@pytest.mark.parametrize(
    "rule",
    [
        {"sampling": {"max_rate": 0.5}},
        {"sampling": {"max_rows_per_s": 1e9}},
        {"phase": "eval"},
        {"phase": "train"},
        {"select": 0},
        {"select": 7},
        {"rows": "channels"},
        {"rows": "last"},
    ],
    ids=str,
)
def test_every_rule_of_a_hook(rig, fastest, rule):
    hook = {"match": "[0-2]", "capture": KINDS, **rule}
    assert_unseen(rig, mlp, torch.randn(2, 3, 4, requires_grad=True), hook, backend=fastest)


@pytest.mark.rest
def test_a_bus_that_is_full_and_what_never_fits(rig, backend):
    hook = {"match": "[0-2]", "capture": KINDS, "sampling": {"min_rate": 0.5}}
    full = assert_unseen(rig, mlp, torch.randn(2, 3, 4, requires_grad=True), hook,
                         backend=backend, capacity_packets=8)  # fmt: skip
    assert sum(full.value("dropped", point.name) for point in full.points)
    tall = torch.randn(1 << 17, 1, 4, requires_grad=True)
    hook = {"match": "2", "capture": ["activation", "gradient"]}
    never = assert_unseen(rig, mlp, tall, hook, backend=backend, capacity_mib=1)
    assert all(never.value("dropped", point.name) == CALLS for point in never.points)


@dataclass
class Answer:
    hidden: torch.Tensor
    words: str = "none"


class Speaks(torch.nn.Module):
    """Returns a structure, also one without a tensor."""

    def forward(self, x):
        return Answer(x * 2)


class Says(torch.nn.Module):
    def forward(self, answer):
        return "nothing to see", answer.words


class Mute(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.speaks, self.says = torch.nn.Linear(4, 4), Speaks(), Says()

    def forward(self, x):
        answer = self.speaks(self.linear(x))
        self.says(answer)
        return answer.hidden


def test_structures_and_calls_without_a_tensor(rig, fastest):
    hook = {"match": "*", "capture": ["activation", "input", "gradient", "input_gradient"]}
    observed = assert_unseen(rig, Mute, torch.ones(2, 4, requires_grad=True), hook, backend=fastest)
    assert observed.value("skipped", "says") == CALLS
    assert observed.value("captured", "speaks") == CALLS


class Image(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5)

    def forward(self, x):
        return self.norm(self.conv(x))


@pytest.mark.parametrize("kernel", ["identity", "int8"])
def test_channels_first_tensors(rig, fastest, kernel):
    hook = {"match": "*", "capture": KINDS, "preprocess": [kernel]}
    observed = assert_unseen(
        rig, Image, torch.randn(2, 3, 6, 6, requires_grad=True), hook, backend=fastest
    )
    assert_all_captured(observed)


class Text(torch.nn.Module):
    """Takes text with padding."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(9, 4, padding_idx=0)
        self.block = torch.nn.Linear(4, 4)

    def forward(self, input_ids, attention_mask=None):
        return self.block(self.embed(input_ids))


class PlainText(Text):
    def forward(self, ids, attention_mask=None):
        return self.block(self.embed(ids))


@pytest.mark.parametrize("model", [Text, PlainText])
def test_a_model_of_text(watch, fastest, model):
    ids = torch.tensor([[3, 4, 5], [7, 0, 0]])
    observed = assert_unseen(watch, model, ids, {"match": "*", "capture": KINDS}, backend=fastest)
    assert observed.value("captured", "block") == observed.value("captured", "tokens") == CALLS


class Frees(torch.nn.Module):
    """Returns what cannot be read."""

    def forward(self, x):
        freed = torch.ones(2, 4)
        freed.untyped_storage().resize_(0)
        return x * 1, freed


class KeepsNothing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.frees = torch.nn.Linear(4, 4), Frees()

    def forward(self, x):
        return self.frees(self.linear(x))[0]


def test_a_tensor_that_cannot_be_read(rig, fastest):
    hook = {"match": "frees", "select": 1}
    observed = assert_unseen(
        rig, KeepsNothing, torch.ones(2, 4, requires_grad=True), hook, backend=fastest
    )
    assert observed.value("skipped", "frees") == CALLS


class Tied(torch.nn.Module):
    def forward(self, weight):
        ids = torch.tensor([1, 2])
        dense = (weight * weight).sum()
        return dense + torch.nn.functional.embedding(ids, weight, sparse=True).sum()


class SparseAndDense(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.tied, self.weight = Tied(), torch.nn.Parameter(torch.randn(5, 3))

    def forward(self, x):
        return self.tied(self.weight) * x


def test_parts_of_an_input_gradient_that_are_added_up(rig, fastest):
    hook = {"match": "tied", "capture": "input_gradient"}
    observed = assert_unseen(rig, SparseAndDense, torch.ones(()), hook, backend=fastest)
    assert_all_captured(observed)


def test_a_default_device_moves_nothing_of_ours(rig, fastest):
    model = mlp()
    hook = {"match": "*", "preprocess": [KERNELS["cast"]]}
    observed = rig(model, hook, backend=fastest)
    x = torch.randn(2, 3, 4)
    with torch.device("meta"):
        model(x)
    assert len(observed.packets()) == len(observed.points)
