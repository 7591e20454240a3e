"""What is hooked when nobody says."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
import torch

from asys_bench.observing.default_hooks import default_hooks
from asys_bench.pipeline.hookpoints import HookError


class Block(torch.nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.linear = torch.nn.Linear(width, width)


class Transformer(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.embed = torch.nn.Embedding(10, 8)
        self.layers = torch.nn.ModuleList(Block() for _ in range(layers))
        self.adapters = torch.nn.ModuleList(Block(1) for _ in range(12))
        self.head = torch.nn.Linear(8, 10)


def test_a_stack_of_layers_is_hooked_at_quarters_of_its_depth():
    assert default_hooks(Transformer(12)) == ["layers.3", "layers.6", "layers.9"]


def test_a_short_stack_is_hooked_whole():
    assert default_hooks(Transformer(2)) == ["layers.0", "layers.1"]


def test_without_a_stack_it_is_the_wide_linear_layers():
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 32), torch.nn.Linear(32, 1)
    )
    assert default_hooks(model) == ["0", "2"]


def test_a_stack_at_the_root_is_a_stack():
    model = torch.nn.Sequential(Block(), Block(), Block(), Block())
    assert default_hooks(model) == ["1", "2", "3"]


def test_names_that_look_like_globs_match_themselves_alone():
    model = torch.nn.Module()
    model.add_module("a[1]*", torch.nn.Linear(8, 8))
    model.add_module("a1x", torch.nn.Linear(8, 8))
    first, second = default_hooks(model)
    assert fnmatchcase("a[1]*", first)
    assert not fnmatchcase("a1x", first)
    assert second == "a1x"


def test_a_model_with_nothing_suitable_is_refused_with_its_modules():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3), torch.nn.ReLU())
    with pytest.raises(HookError, match=r"pass hooks=.*Modules: 0, 1"):
        default_hooks(model)
