"""Tensors that several ranks hold together (DTensor): what of one is in this rank's memory.

An activation is captured as this rank's own rows: the whole tensor where it is replicated, some of its rows
where it is split along another dimension than the last. Where it is split along the last one no rank has a
whole row, and a pending sum (Partial) is no value yet: neither is captured, and why is said.

A parameter and its gradient are captured as this rank's shard, whatever its dimensions are; `part_of` says
which part of the whole that is (`contracts.encodings.parts`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import torch

from asys_bench.contracts.encodings.parts import Columns, Part
from asys_bench.contracts.torch_internals import arrived, dtensor_type, shard_at

_PLAIN = (torch.Tensor, torch.nn.Parameter)
PARTIAL = "a DTensor whose sum over the ranks is still to come (Partial) has its values on no rank"
SPLIT_ROWS = (
    "a DTensor that is split along its last dimension has no whole rows on any rank: hook the module behind "
    "it that has (of a RowwiseParallel pair the second), or let the module return its local part "
    "(use_local_output=True)"
)


def is_distributed(tensor: object) -> bool:
    """Whether it is a DTensor."""
    kind = dtensor_type()
    return kind is not None and isinstance(tensor, kind)


def local(tensor: torch.Tensor, *, any_part: bool = False) -> torch.Tensor:
    """This rank's part of `tensor`; `tensor` itself where it is no tensor of several ranks, or where
    `why_not_local` has a reason. any_part: parts of rows too."""
    if type(tensor) in _PLAIN:
        return tensor
    if is_distributed(tensor):
        if why_not_local(tensor, any_part=any_part) is not None:
            return tensor
        with torch.no_grad():  # no node in the host's graph
            tensor = tensor.to_local()  # type: ignore[attr-defined]
    return arrived(tensor)


def why_not_local(tensor: Any, *, any_part: bool = False) -> str | None:
    """Why this rank has nothing to capture of a DTensor; None where it has."""
    if any(one.is_partial() for one in tensor.placements):
        return PARTIAL
    if not any_part and any(one.dim in (-1, tensor.ndim - 1) for one in _split(tensor)):
        return SPLIT_ROWS
    return None


def part_of(parameter: torch.Tensor, axis: int) -> Part | None:
    """What this rank holds of a parameter that is split among ranks; None: all of it, or none.

    axis: the dimension that holds a row (`points.rows`), which is captured as the last one.
    """
    if not is_distributed(parameter) or not list(_split(parameter)):
        return None
    coordinate = parameter.device_mesh.get_coordinate()  # type: ignore[attr-defined]
    return None if coordinate is None else _part(parameter, axis, coordinate)


def columns_of(parameter: Any, axis: int, ranks: Sequence[int]) -> set[Columns]:
    """The columns that these ranks of the job hold, where they have parts of rows."""
    mesh = parameter.device_mesh
    found = set()
    for coordinate in product(*map(range, mesh.shape)):
        if int(mesh.mesh[coordinate]) in ranks:
            part = _part(parameter, axis, coordinate)
            if part is not None and part.columns is not None:
                found.add(part.columns)
    return found


def mesh_places(model: torch.nn.Module) -> dict[str, int]:
    """Name of a dimension of a device mesh -> this rank's place along it, of the meshes that the model's
    parameters are spread over."""
    found: dict[str, int] = {}
    for parameter in model.parameters():
        if is_distributed(parameter):
            mesh: Any = parameter.device_mesh  # type: ignore[attr-defined]
            places = mesh.get_coordinate()
            for name, place in zip(mesh.mesh_dim_names or (), places or (), strict=False):
                found.setdefault(name, int(place))
    return found


def _split(tensor: Any) -> Iterator[Any]:
    """Its placements that split a dimension, over more than one rank."""
    for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
        if not placement.is_replicate() and not placement.is_partial() and size > 1:
            yield placement


def _part(parameter: Any, axis: int, coordinate: Sequence[int]) -> Part | None:
    found = shard_at(parameter, coordinate)
    if found is None:
        return Part(None, (), None)
    axis %= max(1, parameter.ndim)
    order = [dim for dim in range(parameter.ndim) if dim != axis] + [axis]
    whole = [int(parameter.shape[dim]) for dim in order]
    shape, offset = ([int(sizes[dim]) for dim in order] for sizes in found)
    columns = None
    if shape[-1] != whole[-1]:
        columns = (offset[-1], offset[-1] + shape[-1], whole[-1])
    leading = tuple(whole[:-1])
    # The rows are one run of the whole tensor's where no dimension but the first is split.
    run = shape[1:-1] == whole[1:-1] or not leading
    first = offset[0] * prod(leading[1:]) if leading else 0
    return Part(columns, leading, first if run else None)
