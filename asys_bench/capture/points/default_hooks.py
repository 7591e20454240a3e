"""Which modules are worth looking at when nobody said which."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch

from asys_bench.capture.points.hookpoints import HookError, modules_by_name
from asys_bench.capture.points.untrained_networks import Untrained, untrained_networks, unwrap

log = logging.getLogger(__name__)

MOST = 3
"""Modules hooked by default: each costs a trainer's time."""
MIN_FEATURES = 8
"""Narrower layers (a value head, a classifier of few classes) have nothing to take apart."""

_Modules = dict[str, torch.nn.Module]


def default_hooks(
    model: torch.nn.Module, optimizers: Iterable[torch.optim.Optimizer] = ()
) -> list[str]:
    """Globs that name up to `MOST` modules of `model`, spread over its depth.

    The blocks of the largest stack (a ModuleList or Sequential of equal modules that have parts of
    their own, such as transformer layers); in a model without one, its linear layers. Networks that
    are not what is trained (`untrained_networks`) have no say, and the log says which ones those are.

    optimizers: of the training, where they are known.

    Raises:
        HookError: neither is there; lists the modules.
    """
    modules = modules_by_name(model)
    untrained = untrained_networks({"": model, **modules}, optimizers)
    trained = {
        name: module
        for name, module in modules.items()
        if not any(name == u.name or name.startswith(f"{u.name}.") for u in untrained)
    }
    linear = _linear_layers(trained)
    found = _blocks(model, trained, linear) or linear
    if not found:
        raise HookError(_nothing(model, list(modules), untrained))
    chosen = _spread(found)
    if untrained:
        log.warning(
            "no hooks were named: observing %s, and not %s", ", ".join(chosen), _shown(untrained)
        )
    return [_literal(name) for name in chosen]


def _blocks(model: torch.nn.Module, modules: _Modules, linear: list[str]) -> list[str]:
    """Names of the blocks of the largest stack; [] without one.

    A block that occurs several times (layers that share their weights) is one. A stack of one block
    must hold most of the linear layers: it may be a list of heads.
    """
    names = {id(module): name for name, module in modules.items()}
    best: list[str] = []
    largest = 0
    for module in (model, *modules.values()):
        stack = unwrap(module)
        if not isinstance(stack, torch.nn.ModuleList | torch.nn.Sequential):
            continue
        blocks = [names[id(child)] for child in stack.children() if id(child) in names]
        inside = [unwrap(modules[block]) for block in blocks]
        if len({type(block) for block in inside}) != 1 or not any(inside[0].children()):
            continue
        if len(stack) == 1 and not _holds_most(blocks[0], linear):
            continue
        size = sum(parameter.numel() for parameter in stack.parameters())
        if size > largest:
            best, largest = blocks, size
    return best


def _holds_most(name: str, linear: list[str]) -> bool:
    return 2 * sum(1 for layer in linear if layer.startswith(f"{name}.")) > len(linear)


def _linear_layers(modules: _Modules) -> list[str]:
    return [
        name
        for name, module in modules.items()
        if isinstance(layer := unwrap(module), torch.nn.Linear)
        and layer.out_features >= MIN_FEATURES
    ]


def _nothing(model: torch.nn.Module, names: list[str], untrained: list[Untrained]) -> str:
    shown = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
    aside = f" beside {_shown(untrained)}" if untrained else ""
    return (
        f"hooks: {type(model).__name__} has no stack of layers and no linear layer of at least "
        f"{MIN_FEATURES} features{aside}, so there is no default; pass hooks=['name or glob', ...]. "
        f"Modules: {shown}"
    )


def _shown(untrained: list[Untrained]) -> str:
    named = [f"{entry.name} ({entry.why})" for entry in untrained[:4]]
    return ", ".join(named) + (f" and {len(untrained) - 4} more" if len(untrained) > 4 else "")


def _spread(names: list[str]) -> list[str]:
    """At most `MOST` of `names`, evenly, first and last only when there is nothing between them."""
    if len(names) <= MOST:
        return names
    return [names[(index + 1) * len(names) // (MOST + 1)] for index in range(MOST)]


def _literal(name: str) -> str:
    """A glob that matches exactly `name`."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
