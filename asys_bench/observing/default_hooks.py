"""Which modules are worth looking at when nobody said which."""

from __future__ import annotations

import torch

from asys_bench.pipeline.hookpoints import HookError

MOST = 3
"""Modules hooked by default: each costs a trainer's time."""
MIN_FEATURES = 8
"""Narrower layers (a value head, a classifier of few classes) have nothing to take apart."""


def default_hooks(model: torch.nn.Module) -> list[str]:
    """Globs that name up to `MOST` modules of `model`, spread over its depth.

    The blocks of the deepest stack (a ModuleList or Sequential of equal modules that have parts of
    their own, such as transformer layers); in a model without one, its linear layers.

    Raises:
        HookError: neither is there; lists the modules.
    """
    found = _blocks(model) or _linear_layers(model)
    if not found:
        names = [name for name, _ in model.named_modules() if name]
        shown = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
        raise HookError(
            f"hooks: {type(model).__name__} has no stack of layers and no linear layer of at least "
            f"{MIN_FEATURES} features, so there is no default; pass hooks=['name or glob', ...]. "
            f"Modules: {shown}"
        )
    return [_literal(name) for name in _spread(found)]


def _blocks(model: torch.nn.Module) -> list[str]:
    best: list[str] = []
    weight = 0
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
            continue
        children = list(module.named_children())
        kinds = {type(child) for _, child in children}
        if len(children) < 2 or len(kinds) != 1 or not any(children[0][1].children()):
            continue
        size = sum(parameter.numel() for parameter in module.parameters())
        if size > weight:
            best = [f"{name}.{key}" if name else key for key, _ in children]
            weight = size
    return best


def _linear_layers(model: torch.nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if name and isinstance(module, torch.nn.Linear) and module.out_features >= MIN_FEATURES
    ]


def _spread(names: list[str]) -> list[str]:
    """At most `MOST` of `names`, evenly, first and last only when there is nothing between them."""
    if len(names) <= MOST:
        return names
    return [names[(index + 1) * len(names) // (MOST + 1)] for index in range(MOST)]


def _literal(name: str) -> str:
    """A glob that matches exactly `name`."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
