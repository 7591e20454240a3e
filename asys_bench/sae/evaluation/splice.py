"""A host with one module's output replaced by an SAE's reconstruction of it.

    with splice(model.layers[3], sae):
        logits = model(ids)

The hook is gone afterwards, whatever happens inside. Rows are the last dimension, or the channels of an
image (`row_dim`); dtype, device and shape are kept. No gradient flows through the replacement: it is for
measuring. Where an SAE leaves a row alone (its outliers), the module's own output stays, bit for
bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
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


@contextmanager
def splice(
    module: torch.nn.Module,
    reconstruct: Reconstruct,
    *,
    select: int | str | None = None,
    source: Literal["output", "input"] = "output",
    row_dim: int = -1,
) -> Iterator[None]:
    """Replace `module`'s output tensor while inside the `with` block.

    select: which element of a tuple, list or dict output; None takes the tensor itself or the first
        tensor in it.
    source: what is given to `reconstruct`: the output itself, or (transcoders) the first input.
    row_dim: the dimension that holds a row: 1 for SAEs of `hooks[].rows: channels`.

    Raises (from the host's call):
        ValueError: there is no such tensor, or the replacement has another shape.
    """

    @torch.no_grad()
    def replace(_: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        key, tensor = _find(output, select)
        given = tensor if source == "output" else _find(inputs, None)[1]
        given = given.detach().movedim(row_dim, -1)
        rows_BD = given.reshape(-1, given.shape[-1]).to(torch.float32)
        made = reconstruct(rows_BD).reshape(*given.shape[:-1], -1).movedim(-1, row_dim).to(tensor)
        if isinstance(reconstruct, SparseAutoencoder) and made.shape == tensor.shape:
            outlying_B = reconstruct.outlying(rows_BD)
            if outlying_B is not None:
                own = outlying_B.reshape(*given.shape[:-1], 1).movedim(-1, row_dim)
                made = torch.where(own, tensor, made)
        if made.shape != tensor.shape:
            raise ValueError(
                f"the reconstruction is {tuple(made.shape)}, the module's output "
                f"{tuple(tensor.shape)}"
            )
        return _put(output, key, made)

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


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
