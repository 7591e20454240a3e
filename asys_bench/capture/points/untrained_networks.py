"""Networks inside a model that are not what is being trained: targets, averages, teachers, references.

A *twin* of a network has the same parts with the same shapes under the same names. Of two twins one is
the copy if something says so:

- its name is the other's with a word for a copy in it (`q_net_target`, `ema_encoder`, `policy_old`),
  or it lies in an `AveragedModel`;
- the two stand side by side, and one is frozen, in eval mode or in no optimizer while the other is not.

Equal weights say nothing: clones of one layer start equal, and so do two encoders from one checkpoint.
Layers of one stack (a ModuleList, a Sequential, `layer1` and `layer2`) are no twins: the lower ones may
be frozen, and are still what the model is made of.

Without a twin, a frozen network counts as untrained by its name alone (a `teacher` of another size), and
a metric does whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.optim.swa_utils import AveragedModel

from asys_bench.contracts.torch_internals import name_unwrapped, wrapped_inside

_WITH_MODULE = {
    ("torch", "DistributedDataParallel"), ("torch", "DataParallel"), ("deepspeed", "DeepSpeedEngine"),
}  # fmt: skip
"""(package, class) of wrappers that hold the user's module as `module`; not all need be installed."""


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The user's own module inside DistributedDataParallel, DataParallel, FullyShardedDataParallel,
    activation checkpointing, DeepSpeed's engine and torch.compile, also of a model that Accelerate has
    prepared.

    Hook names are then the same with and without the wrapper.
    """
    while True:
        inside: object = wrapped_inside(model)
        if inside is None and _holds_module(model):
            inside = model.module
        if not isinstance(inside, torch.nn.Module):
            return model
        model = inside


def _holds_module(model: torch.nn.Module) -> bool:
    return any(
        (base.__module__.partition(".")[0], base.__name__) in _WITH_MODULE
        for base in type(model).__mro__
    )


_ALWAYS_COPIES = {
    "averaged", "delayed", "ema", "frozen", "lagged", "momentum", "polyak", "ref", "reference", "shadow",
    "swa", "teacher",
}  # fmt: skip
_COPIES_OF_THEIR_LIKE = {"copy", "old", "slow", "targ", "target", "targets"}
"""Words that also name one of two equals (a source and a target encoder): the other's name must fit."""
_COPIES = _ALWAYS_COPIES | _COPIES_OF_THEIR_LIKE
_ORIGINALS = {
    "behavior", "behaviour", "current", "eval", "live", "local", "main", "model", "net", "online",
    "policy", "q", "student",
}  # fmt: skip
_NOT_TRAINED = _ALWAYS_COPIES | {"loss", "criterion", "metric", "perceptual", "lpips"}

_Modules = Mapping[str, torch.nn.Module]


@dataclass(frozen=True, slots=True)
class Untrained:
    """A network that is not what is being trained, and how that is known."""

    name: str
    why: str


def untrained_networks(
    modules: _Modules, optimizers: Iterable[torch.optim.Optimizer] = ()
) -> list[Untrained]:
    """The outermost ones.

    modules: name -> module, parents first, the model itself as "".
    optimizers: those that are known of; the ones that modules have as attributes are found.
    """
    search = _Search(modules, optimizers)
    found: list[Untrained] = []
    for name in modules:
        inside = any(_holds(entry.name, name) for entry in found)
        why = None if inside or not name else search.why_untrained(name)
        if why is not None:
            found.append(Untrained(name, why))
    return found


class _Search:
    def __init__(self, modules: _Modules, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self._modules = modules
        self._optimized = _optimized(modules.values(), optimizers)
        self._signatures = {name: _signature(module) for name, module in modules.items()}
        self._twins: dict[tuple[object, ...], list[str]] = {}
        self._children: dict[str, list[str]] = {}
        for name in modules:
            self._twins.setdefault(self._signatures[name], []).append(name)
            if name:
                self._children.setdefault(_parent(name), []).append(name)

    def why_untrained(self, name: str) -> str | None:
        module = self._modules[name]
        if _is_metric(module):
            return "a metric"
        if not any(True for _ in module.parameters()):
            return None
        if isinstance(module, AveragedModel):
            original = self._first_twin(f"{name}.module")
            if original is not None:
                return f"the average of {original}"
        words = _words(name)
        if words & _COPIES:
            for twin in self._twins_of(name):
                if _is_named_after(words, _words(twin)):
                    return f"a copy of {twin}, by its name"
        if _words(_last(name)) & _NOT_TRAINED and _is_frozen(module):
            return "frozen, and no part of the trained network by its name"
        return self._why_beside(name) if _is_network(module) else None

    def _why_beside(self, name: str) -> str | None:
        """By comparison with a twin that stands beside it, where that is trained."""
        module = self._modules[name]
        for twin in self._beside(name):
            if self._signatures[twin] != self._signatures[name]:
                continue
            other = self._modules[twin]
            if _is_frozen(module) and not _is_frozen(other):
                return f"the same layers as {twin}, and frozen"
            if self._is_optimized(other) and not self._is_optimized(module):
                return f"the same layers as {twin}, and in no optimizer"
            if other.training and not module.training:
                return f"the same layers as {twin}, and in eval mode"
        return None

    def _beside(self, name: str) -> Iterator[str]:
        """Siblings and their children; as well those of the parent."""
        own = name
        for _ in range(2):
            parent = _parent(own)
            if not own or _is_stack(self._modules[parent]):
                return
            for sibling in self._children[parent]:
                if sibling != own and not _are_numbered(_last(own), _last(sibling)):
                    yield sibling
                    if not _is_stack(self._modules[sibling]):
                        yield from self._children.get(sibling, ())
            own = parent

    def _twins_of(self, name: str) -> Iterator[str]:
        for twin in self._twins[self._signatures[name]]:
            if twin and not (_holds(name, twin) or _holds(twin, name)):
                yield twin

    def _first_twin(self, name: str) -> str | None:
        outside = _parent(name)
        twins = self._twins_of(name) if name in self._modules else iter(())
        return next((twin for twin in twins if not _holds(outside, twin)), None)

    def _is_optimized(self, module: torch.nn.Module) -> bool:
        return any(id(parameter) in self._optimized for parameter in module.parameters())


def _signature(module: torch.nn.Module) -> tuple[object, ...]:
    """What twins have in common, be a part of them compiled or not."""
    parts: list[object] = []
    for name, part in module.named_modules():
        if unwrap(part) is part:
            own = ((key, p.shape) for key, p in part.named_parameters(recurse=False))
            parts.append((name_unwrapped(name), type(part), *own))
    return tuple(parts)


def _is_frozen(module: torch.nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())


def _is_network(module: torch.nn.Module) -> bool:
    """At least two modules in it have weights of their own."""
    return sum(1 for part in module.modules() if list(part.parameters(recurse=False))) >= 2


def _is_stack(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.ModuleList | torch.nn.Sequential)


def _are_numbered(first: str, second: str) -> bool:
    return re.sub(r"\d+", "", first) == re.sub(r"\d+", "", second)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _holds(outer: str, name: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def _words(name: str) -> frozenset[str]:
    """Of snake_case and camelCase, without digits."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return frozenset(word.lower() for word in found)


def _is_named_after(words: frozenset[str], original: frozenset[str]) -> bool:
    added = (words - original) & _COPIES
    if added & _ALWAYS_COPIES:
        return True
    return bool(added) and words - added <= original and original - words <= _ORIGINALS


def _optimized(
    modules: Iterable[torch.nn.Module], optimizers: Iterable[torch.optim.Optimizer]
) -> frozenset[int]:
    """Identities of the parameters that some optimizer has."""
    known = [*optimizers]
    for module in modules:
        known += [v for v in vars(module).values() if isinstance(v, torch.optim.Optimizer)]
    groups = [group for optimizer in known for group in optimizer.param_groups]
    return frozenset(id(parameter) for group in groups for parameter in group["params"])


def _is_metric(module: torch.nn.Module) -> bool:
    """Of torchmetrics, which need not be installed: some hold whole networks."""
    return any(
        base.__name__ in ("Metric", "MetricCollection")
        and base.__module__.partition(".")[0] == "torchmetrics"
        for base in type(module).__mro__
    )
