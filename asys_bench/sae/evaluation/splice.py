"""A host with one module's output (or first input) replaced by an SAE's reconstruction of it.

    with splice(model.layers[3], sae):
        logits = model(ids)

The hook is gone afterwards, whatever happens inside. Rows are the last dimension, or the channels of an
image (`row_dim`); dtype, device and shape are kept. No gradient flows through the replacement: it is for
measuring. Where an SAE leaves a row alone (its outliers), the module's own output stays, bit for
bit; `keep` says so of other replacements.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from asys_bench.sae.architectures.base import SparseAutoencoder

Reconstruct = Callable[[torch.Tensor], torch.Tensor]
"""Raw rows float32[B, D] -> rows [B, D'] of the width that is replaced. An SAE is one."""


def zero_ablation(rows_BD: torch.Tensor) -> torch.Tensor:
    """Zeros instead of the rows: how much the module matters at all."""
    return torch.zeros_like(rows_BD)


def mean_ablation(mean_D: torch.Tensor) -> Reconstruct:
    """The mean instead of each row: what is lost with everything that varies."""
    return lambda rows_BD: mean_D.to(rows_BD).expand_as(rows_BD)


Keep = Callable[[torch.Tensor], torch.Tensor | None]
"""Raw rows float32[B, D] -> bool[B], the rows that stay as they are; None: no row does."""


@dataclass(frozen=True)
class Place:
    """Where the rows of a hook are in a model.

    at: the module's output, or its first input.
    select: which element of a tuple, list or dict output; None takes the tensor itself or the first
        tensor in it.
    row_dim: the dimension that holds a row: 1 for SAEs of `hooks[].rows: channels`.
    """

    module: torch.nn.Module
    at: Literal["output", "input"] = "output"
    select: int | str | None = None
    row_dim: int = -1


@contextmanager
def splice(
    place: Place | torch.nn.Module,
    reconstruct: Reconstruct,
    *,
    select: int | str | None = None,
    source: Literal["output", "input"] = "output",
    row_dim: int = -1,
    keep: Keep | None = None,
) -> Iterator[None]:
    """Replace what `place` names while inside the `with` block; a module is its output.

    select, row_dim: as of `Place`, where `place` is a module.
    source: what is given to `reconstruct`: what is replaced, or (transcoders) the module's first input.
    keep: rows that stay; None: those that an SAE leaves alone.

    Raises (from the host's call):
        ValueError: there is no such tensor, or the replacement has another shape.
    """
    if isinstance(place, torch.nn.Module):
        place = Place(place, "output", select, row_dim)
    if keep is None and isinstance(reconstruct, SparseAutoencoder):
        keep = reconstruct.outlying
    row_dim = place.row_dim

    @torch.no_grad()
    def replaced(tensor: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        given = given.detach().movedim(row_dim, -1)
        rows_BD = given.reshape(-1, given.shape[-1]).to(torch.float32)
        made = reconstruct(rows_BD).reshape(*given.shape[:-1], -1).movedim(-1, row_dim).to(tensor)
        if keep is not None and made.shape == tensor.shape:
            kept_B = keep(rows_BD)
            if kept_B is not None:
                own = kept_B.reshape(*given.shape[:-1], 1).movedim(-1, row_dim)
                made = torch.where(own, tensor, made)
        if made.shape != tensor.shape:
            raise ValueError(
                f"the reconstruction is {tuple(made.shape)}, the module's {place.at} "
                f"{tuple(tensor.shape)}"
            )
        return made

    def after(_: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        key, tensor = _find(output, place.select)
        given = tensor if source == "output" else _find(inputs, None)[1]
        return _put(output, key, replaced(tensor, given))

    def before(_: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        held: Any = inputs if _holds_tensor(inputs) else named
        key, tensor = _find(held, None)
        changed = _put(held, key, replaced(tensor, tensor))
        return (changed, named) if held is inputs else (inputs, changed)

    module = place.module
    handle = (
        module.register_forward_hook(after)
        if place.at == "output"
        else module.register_forward_pre_hook(before, with_kwargs=True)
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def rows_at(places: dict[str, Place]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Inside the `with` block: the rows of every call at each place, float32[..., D], own memory."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in places}

    def take(name: str, value: Any, place: Place) -> None:
        _, tensor = _find(value, place.select if place.at == "output" else None)
        found[name].append(tensor.detach().movedim(place.row_dim, -1).to(torch.float32, copy=True))

    with ExitStack() as hooks:
        for name, place in places.items():

            def after(
                _: torch.nn.Module, inputs: Any, output: Any, at: tuple[str, Place] = (name, place)
            ) -> None:
                take(at[0], output, at[1])

            def before(
                _: torch.nn.Module, inputs: Any, named: Any, at: tuple[str, Place] = (name, place)
            ) -> None:
                take(at[0], inputs if _holds_tensor(inputs) else named, at[1])

            handle = (
                place.module.register_forward_hook(after)
                if place.at == "output"
                else place.module.register_forward_pre_hook(before, with_kwargs=True)
            )
            hooks.callback(handle.remove)
        yield found


def _holds_tensor(values: tuple[Any, ...]) -> bool:
    return any(isinstance(value, torch.Tensor) for value in values)


def _find(value: Any, select: int | str | None) -> tuple[int | str | None, torch.Tensor]:
    """(key, tensor) inside a module's output; the key is None when `value` is the tensor."""
    if isinstance(value, torch.Tensor) and select in (None, 0):
        return None, value
    if isinstance(value, tuple | list):
        for key, element in enumerate(value):
            if isinstance(element, torch.Tensor) and select in (None, key, key - len(value)):
                return key, element
    if isinstance(value, MutableMapping):
        for name, element in value.items():
            if isinstance(element, torch.Tensor) and select in (None, name):
                return str(name), element
    raise ValueError(
        f"no tensor {'' if select is None else repr(select) + ' '}in a {type(value).__name__}"
    )


def _put(value: Any, key: int | str | None, made: torch.Tensor) -> Any:
    """A copy of `value` with `made` at `key`; what the host holds is not changed."""
    if key is None:
        return made
    if isinstance(value, tuple):
        changed = [made if index == key else element for index, element in enumerate(value)]
        return type(value)(*changed) if hasattr(value, "_fields") else tuple(changed)
    changed_copy = copy.copy(value)
    changed_copy[key] = made
    return changed_copy
