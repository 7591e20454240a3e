"""Private names of torch are in `contracts/torch_internals.py` and nowhere else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from asys_bench.contracts import torch_internals

ROOT = Path(__file__).parents[3]
FOLDERS = ("asys_bench", "backends", "kernels")
PRIVATE = re.compile(r"_(?!_)\w+")
DOTTED = re.compile(r"torch(\.\w+)*\._(?!_)\w+(\.\w+)*")


class _Subject(torch.nn.Linear):
    """An instance has every attribute that torch gives modules."""


ATTRIBUTES = {
    name
    for subject in (
        torch.Tensor, torch.nn.Parameter(torch.ones(1)), _Subject(1, 1), torch.optim.Optimizer,
        torch.autograd.graph.Node,
    )
    for name in dir(subject)
    if PRIVATE.fullmatch(name)
} | {"_orig_mod", "_torchdynamo_orig_callable"}  # fmt: skip
"""Private attributes of torch's objects."""


def private_names(text: str) -> Iterator[str]:
    """Private names of torch in a module's text: imported, reached by dots, or asked for by name."""
    tree = ast.parse(text)
    ours = {"self", "cls"}
    torchs = {"torch"}
    slots = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__"
        for name in ast.walk(node.value)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "torch":
                    torchs.add(alias.asname or "torch")
                    if DOTTED.fullmatch(alias.name):
                        yield alias.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            for alias in node.names:
                torchs.add(alias.asname or alias.name)
                full = f"{node.module}.{alias.name}"
                if DOTTED.fullmatch(full):
                    yield full
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr):
            start = node.value
            while isinstance(start, ast.Attribute):
                start = start.value
            owner = start.id if isinstance(start, ast.Name) else None
            is_own = isinstance(node.value, ast.Name) and owner in ours
            if owner in torchs or (node.attr in ATTRIBUTES and not is_own):
                yield ast.unparse(node)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node not in slots
            and (node.value in ATTRIBUTES or DOTTED.fullmatch(node.value))
        ):
            yield repr(node.value)


def test_no_other_module_names_a_private_name_of_torch():
    found = {
        str(path.relative_to(ROOT)): names
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.is_relative_to(ROOT / "asys_bench" / "_data")
        if path != Path(torch_internals.__file__)
        if (names := sorted(set(private_names(path.read_text()))))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import torch._dynamo", "torch._dynamo"),
        ("import torch.jit._recursive as recursive", "torch.jit._recursive"),
        ("from torch._C import thing", "torch._C.thing"),
        ("from torch.optim.optimizer import _params_t", "torch.optim.optimizer._params_t"),
        ("import torch\nn = torch._C._len_torch_function_stack()", "torch._C._len_torch_function_stack"),
        ("from torch import nn\nx = nn.modules.conv._ConvNd", "nn.modules.conv._ConvNd"),
        ("def f(tensor):\n    return tensor._base", "tensor._base"),
        ("def f(module):\n    return module.layer._forward_hooks", "module.layer._forward_hooks"),
        ("def f(module):\n    return getattr(module, '_compiled_call_impl', None)", "'_compiled_call_impl'"),
        ("import sys\nx = sys.modules.get('torch._inductor.config')", "'torch._inductor.config'"),
    ],
)  # fmt: skip
def test_a_planted_private_name_is_seen(text, name):
    assert name in set(private_names(text))


@pytest.mark.parametrize(
    "text",
    [
        "import torch\nx = torch.ones(1).detach()",
        "import torch\nx = torch.Tensor.__torch_dispatch__",
        "class A:\n    def __init__(self):\n        self._base = self._version = 0",
        "class A:\n    __slots__ = ('_base', '_values')",
        "text = 'set torch._inductor.config.emulate_precision_casts = True'",
        "def f(reader):\n    return reader._own",
    ],
)
def test_names_of_our_own_and_public_ones_are_fine(text):
    assert set(private_names(text)) == set()


def test_a_view_has_a_base_and_nothing_else_has_one():
    whole = torch.ones(6)
    assert torch_internals.view_base(whole.view(2, 3)) is whole
    assert torch_internals.view_base(whole) is None


def test_names_lose_the_parts_that_wrappers_add():
    assert torch_internals.name_unwrapped("net._orig_mod.0.weight") == "net.0.weight"
    assert torch_internals.name_unwrapped("_orig_mod") == ""
    assert torch_internals.name_unwrapped("net.0") == "net.0"
    name = "0._fsdp_wrapped_module.1._checkpoint_wrapped_module.weight"
    assert torch_internals.name_unwrapped(name) == "0.1.weight"


def test_a_parameter_is_as_it_was_after_its_last_accumulate_hook():
    parameter = torch.nn.Parameter(torch.ones(1))
    assert not torch_internals.has_accumulate_hooks(parameter)
    handle = parameter.register_post_accumulate_grad_hook(lambda p: None)
    torch_internals.drop_empty_accumulate_hooks(parameter)
    assert torch_internals.has_accumulate_hooks(parameter), "one is in use"
    handle.remove()
    assert torch_internals.has_accumulate_hooks(parameter), "torch leaves an empty dictionary"
    torch_internals.drop_empty_accumulate_hooks(parameter)
    assert not torch_internals.has_accumulate_hooks(parameter)
