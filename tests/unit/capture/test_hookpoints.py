"""Names of streams: whatever modules are called, each stream has one name of its own."""

from __future__ import annotations

import pytest
import torch

from asys_bench.capture.points.hookpoints import (
    MOST_HOOKS,
    NAME_BYTES,
    SIDE_STREAMS,
    HookError,
    resolve,
)
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.contracts.names import TOKENS
from asys_bench.contracts.packet import Kind


class Named(torch.nn.Module):
    """A module with the given children, whatever their names; none of them is ever called."""

    def __init__(self, names):
        super().__init__()
        for name in names:
            self._modules[name] = torch.nn.Linear(2, 2)


def _points(names, match="*", capture=("activation",)):
    return resolve(Named(names), [HookConfig.model_validate({"match": match, "capture": capture})])


def test_a_colon_in_a_module_name_is_part_of_the_name():
    points = _points(["user:item"], capture=["activation", "input", "parameter_gradient"])
    assert [(p.name, p.path, p.kind) for p in points] == [
        ("user:item", "user:item", Kind.ACTIVATION),
        ("user:item:input", "user:item", Kind.INPUT),
        ("user:item.weight:grad", "user:item", Kind.PARAMETER_GRADIENT),
        ("user:item.bias:grad", "user:item", Kind.PARAMETER_GRADIENT),
    ]


def test_two_streams_that_want_one_name_both_stay_and_the_log_says_which_is_which(caplog):
    points = _points(["x", "x:input"], capture=["activation", "input"])
    assert [(p.name, p.path, p.kind) for p in points] == [
        ("x", "x", Kind.ACTIVATION),
        ("x:input", "x", Kind.INPUT),
        ("x:input~2", "x:input", Kind.ACTIVATION),
        ("x:input:input", "x:input", Kind.INPUT),
    ]
    assert "hook activation of module 'x:input' is called 'x:input~2'" in caplog.text


def test_names_of_streams_print_and_fit_and_differ():
    long = ["n" * 300, "n" * 299 + "m"]
    names = [p.name for p in _points(["new\nline", "tab\t", "\x1b[31mred", "ü" * 150, *long])]
    assert names[:3] == ["new\\nline", "tab\\t", "\\x1b[31mred"]
    assert all(name.isprintable() and len(name.encode()) <= NAME_BYTES for name in names)
    assert len(set(names)) == 6


def test_a_module_called_tokens_is_not_taken_for_the_token_ids():
    assert TOKENS in SIDE_STREAMS
    assert [p.name for p in _points(["tokens"])] == ["tokens~2"]


def test_a_glob_may_be_a_name_as_it_is():
    assert [p.name for p in _points(["[0]", "a"], match="[0]")] == ["[0]"]


def test_too_many_hooks_are_refused_with_the_glob_and_what_it_matches():
    model = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(MOST_HOOKS + 1)))
    hooks = [HookConfig(match=("0",)), HookConfig(match=("*",))]
    with pytest.raises(
        HookError, match=r"match '\*' matches 2049 modules.*2049 hooks.*at most 2048"
    ):
        resolve(model, hooks)
    assert len(resolve(model, [HookConfig(match=("?", "??", "???", "1*"))])) <= MOST_HOOKS


def test_a_parameter_below_a_module_that_the_model_knows_by_another_name_is_found():
    shared = torch.nn.Linear(2, 2)
    model = torch.nn.ModuleDict(
        {"a": torch.nn.Sequential(shared), "b": torch.nn.Sequential(shared)}
    )
    hooks = [HookConfig.model_validate({"match": "b", "capture": "parameter_gradient"})]
    assert [p.name for p in resolve(model, hooks)] == ["b.0.weight:grad", "b.0.bias:grad"]


@pytest.mark.rest
@pytest.mark.parametrize("backend", ["mp_queue", "numba_ring", "cpp_spmc"])
def test_1500_modules_send_a_packet_each_under_their_own_name(rig, backend):
    class Count(torch.nn.Module):
        def forward(self, x):
            return x + 1

    model = torch.nn.Sequential(*(Count() for _ in range(1500)))
    bench = rig(model, {"match": "*"}, backend=backend, capacity_packets=4096)
    model(torch.zeros(1, 1))
    got = {p.name: float(p.tensor) for p in bench.packets()}
    assert got == {str(n): n + 1.0 for n in range(1500)}
    assert sum(bench.value("captured", name) for name in got) == 1500
