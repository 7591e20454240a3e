"""The steps of one tensor on the device: one encoder, or a chain of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from asys_bench.capture.gpu.encoder import DeviceEncoder
from asys_bench.contracts.packet import NO_PARAMS
from asys_bench.contracts.preprocessor import Encoded, Positions, RowSampler


class Hop(NamedTuple):
    """One launch. positions: rows of its input that it reads; None for all."""

    encoder: DeviceEncoder
    positions: Positions | None
    encoded: Encoded


class Plan(NamedTuple):
    """What will be written for one tensor, and how; decided on the host before anything is issued."""

    encoded: Encoded
    hops: tuple[Hop, ...] = ()


def plan_hops(
    steps: Sequence[DeviceEncoder | RowSampler],
    last: DeviceEncoder,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> Plan:
    """Walk `steps` and then `last` for a tensor of `shape` and `dtype`.

    A sampler launches nothing: the step behind it reads the rows that it chose where they lie.

    Raises:
        PacketError: a step cannot carry what reaches it.
    """
    hops: list[Hop] = []
    positions: Positions | None = None
    params, row_rate = NO_PARAMS, 1.0
    for step in (*steps, last):
        if isinstance(step, RowSampler):
            positions, params, row_rate = step.select(shape)
            if positions is not None:
                shape = (len(positions), shape[-1])
            continue
        encoded = step.plan(shape, dtype)
        hops.append(Hop(step, positions, encoded))
        positions, shape, dtype = None, tuple(encoded.shape), encoded.dtype
    final = hops[-1].encoded._replace(shape=shape, params=params, row_rate=row_rate)
    return Plan(final, tuple(hops))


def launch_hops(tensor: torch.Tensor, out: torch.Tensor, hops: Sequence[Hop]) -> None:
    """Issue all hops to the current stream; what lies between two of them is a temporary there."""
    for index, (encoder, positions, encoded) in enumerate(hops):
        final = index == len(hops) - 1
        target = out if final else out.new_empty(encoded.nbytes)
        if encoded.nbytes:
            encoder.launch(tensor, target, positions)
        if not final:
            tensor = target.view(encoded.dtype).view(encoded.shape)
