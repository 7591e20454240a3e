"""Which tensor of what a module returns, or is called with, is captured."""

from __future__ import annotations

import logging
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from pydantic import ValidationError

from asys_bench.capture.points.hookpoints import HookError, resolve
from asys_bench.capture.points.selection import describe, parse_path, select_tensor
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.contracts.packet import Kind

Pair = namedtuple("Pair", "first second")


@dataclass
class Output:
    loss: object = None
    hidden: object = None


class ModelOutput(OrderedDict):
    """As Hugging Face's: a dictionary with indices and attributes."""


T = [torch.tensor(i) for i in range(6)]


@pytest.mark.parametrize(
    ("value", "select", "expected"),
    [
        ((T[0], T[1]), None, T[0]),
        ((T[0], T[1]), 1, T[1]),
        ((T[0], T[1]), 2, None),
        ((T[0], T[1]), -3, None),
        ([T[0], T[1]], -1, T[1]),
        ({"a": T[0], "b": T[1]}, "b", T[1]),
        ({"a": T[0], "b": T[1]}, None, T[0]),
        ({"a": T[0]}, "z", None),
        ({"a": T[0], "b": T[1]}, 1, T[1]),
        ({3: T[0]}, 3, T[0]),
        ({"a.b": T[0], "a": {"b": T[1]}}, "a.b", T[0]),
        ({"a": {"b": T[1]}}, "a.b", T[1]),
        (Pair(T[0], T[1]), "second", T[1]),
        (Pair(T[0], T[1]), "third", None),
        (Pair(T[0], (T[1], T[2])), "second.1", T[2]),
        (("text", T[1]), None, T[1]),
        ((None, [None, (T[3],)]), None, T[3]),
        ("text", None, None),
        (None, "a", None),
        ((), None, None),
        (T[4], 0, T[4]),
        (T[4], None, T[4]),
        (T[4], 1, None),
        (T[4], "grad", None),
        ((T[0], (T[1], T[2])), "1.0", T[1]),
        ((T[0], (T[1], T[2])), "1", T[1]),
        ((T[0], (T[1], T[2])), "-1.-1", T[2]),
        (Output(hidden=(T[0], T[1], T[2])), "hidden.2", T[2]),
        (Output(hidden=T[5]), None, T[5]),
        (Output(hidden=T[5]), "loss", None),
        (ModelOutput(last=T[0], hidden_states=(T[1], T[2])), "hidden_states.1", T[2]),
        (ModelOutput(last=T[0], hidden_states=(T[1], T[2])), "1.0", T[1]),
    ],
)
def test_a_tensor_is_found_in_structures(value, select, expected):
    assert select_tensor(value, parse_path(select)) is expected


def test_a_description_shows_shapes_and_no_values():
    text = describe({"a": torch.zeros(2, 3), "b": Pair(torch.zeros(1), [T[0]] * 20), "c": "secret"})
    assert text == "dict(a: float32[2, 3], b: Pair(first: float32[1], second: list of 20), c: str)"


class Attention(torch.nn.Module):
    """Called with keyword arguments; returns nested structures."""

    def forward(self, hidden, mask=None, *, cache=None):
        return {"out": hidden * 2, "states": (hidden, mask)}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()

    def forward(self, x):
        return self.attention(x, mask=x + 1, cache={"keys": x + 2})["out"]


@pytest.mark.parametrize(
    ("kind", "select", "offset"),
    [
        ("input", None, 0),
        ("input", 0, 0),
        ("input", "hidden", 0),
        ("input", "mask", 1),
        ("input", "cache.keys", 2),
        ("activation", "states.1", 1),
        ("activation", "states", 0),
    ],
)
def test_select_reaches_into_arguments_and_outputs(rig, kind, select, offset):
    model = Model()
    observed = rig(model, {"match": "attention", "capture": kind, "select": select})
    x = torch.randn(2, 3)
    model(x)
    (tensor,) = observed.tensors()
    assert torch.equal(tensor, x + offset)


@pytest.mark.parametrize("kind", ["activation", "input", "gradient", "input_gradient"])
def test_a_selection_that_is_not_there_is_counted_and_explained_once(rig, caplog, kind):
    model = Model()
    observed = rig(model, {"match": "attention", "capture": kind, "select": "nowhere.3"})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            model(torch.randn(2, 3, requires_grad=True))
    name = "attention" if kind == "activation" else f"attention:{kind}"
    assert observed.value("skipped", name) == observed.value("calls", name) == 3
    (record,) = [r for r in caplog.records if "nowhere.3" in r.message]
    assert "float32[2, 3]" in record.message
    assert "hook_skipped" in record.message


def test_a_hosts_class_that_raises_when_looked_into_does_not_reach_the_host(rig):
    class Hostile:
        @property
        def tensor(self):
            raise RuntimeError("not now")

    class Host(torch.nn.Module):
        def forward(self, x):
            return Hostile()

    model = torch.nn.Sequential(Host())
    observed = rig(model, {"match": "0", "select": "tensor", "capture": ["activation", "gradient"]})
    model(torch.randn(1))
    assert observed.value("skipped", "0") == observed.value("skipped", "0:gradient") == 1
    assert observed.value("failed", "0") == observed.value("failed", "0:gradient") == 0


@pytest.mark.parametrize("select", ["a..b", ".a", "a.", "", 0.1, True])
def test_paths_that_cannot_be_meant_are_refused_by_the_configuration(select):
    with pytest.raises(ValidationError):
        HookConfig(match=("x",), select=select)


def test_an_unquoted_path_of_numbers_is_explained():
    with pytest.raises(ValidationError, match="must be quoted"):
        HookConfig(match=("x",), select=0.1)


# Which modules and parameters


def mlp():
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def test_a_glob_that_matches_nothing_names_what_is_there():
    with pytest.raises(HookError, match="matches no module of Sequential") as caught:
        resolve(mlp(), [HookConfig(match=["10"])])
    assert "0, 1, 2" in str(caught.value)


def test_the_first_rule_that_matches_wins_and_points_come_in_module_order():
    points = resolve(mlp(), [HookConfig(match=["2"], phase="eval"), HookConfig(match=["*"])])
    assert [point.name for point in points] == ["0", "1", "2"]
    assert [point.config.phase for point in points] == ["any", "any", "eval"]


def test_each_parameter_has_a_stream_of_its_own():
    model = torch.nn.Sequential(mlp(), torch.nn.Tanh())
    points = resolve(model, [HookConfig(match=["0"], capture=["activation", "parameter_gradient"])])
    assert [point.name for point in points] == [
        "0",
        "0.0.weight:grad",
        "0.0.bias:grad",
        "0.2.weight:grad",
        "0.2.bias:grad",
    ]
    assert points[1].parameter is model[0][0].weight
    assert {point.kind for point in points[1:]} == {Kind.PARAMETER_GRADIENT}


def test_a_shared_parameter_and_a_shared_module_have_one_stream():
    model = mlp()
    model.append(torch.nn.Linear(8, 4))
    model[3].weight = torch.nn.Parameter(torch.zeros(4, 8))
    model[2].weight = model[3].weight
    model.append(model[1])
    points = resolve(model, [HookConfig(match=["*"], capture=["activation", "parameter_gradient"])])
    assert [p.name for p in points if p.kind is Kind.ACTIVATION] == ["0", "1", "2", "3"]
    assert [p.name for p in points if p.name.endswith("weight:grad")] == [
        "0.weight:grad",
        "2.weight:grad",
    ]


def test_modules_without_parameters_have_no_gradients_to_capture():
    with pytest.raises(HookError, match="captures parameter_gradient, but none of the modules 1"):
        resolve(mlp(), [HookConfig(match=["1"], capture="parameter_gradient")])


def test_a_frozen_parameter_is_left_out(rig, caplog):
    model = mlp()
    model[0].weight.requires_grad_(False)
    observed = rig(model, {"match": "0", "capture": "parameter_gradient"})
    model(torch.randn(2, 4)).sum().backward()
    assert [p.name for p in observed.packets()] == ["0.bias:grad"]
    observed.hooker.review()
    assert any("0.weight:grad" in r.message and "frozen" in r.message for r in caplog.records)
