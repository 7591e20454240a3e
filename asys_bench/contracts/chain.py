"""Chains of preprocessors: `preprocess: [{token_sample: {every: 4}}, {int8: {}}]`.

Every step but the last maps a tensor to a tensor; the last one writes the payload. The interned name
is the steps' names joined by "+" (`token_sample.every4+int8`), so a consumer finds the decoder of
each part. A sampler directly in front of the last step is fused with it: the encoder reads the kept
rows where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch

from asys_bench.contracts.encodings.padding import PADDED, Padded
from asys_bench.contracts.encodings.parts import part_decoder
from asys_bench.contracts.packet import ActivationPacket, PacketError
from asys_bench.contracts.preprocessor import (
    Encoded,
    Positions,
    Preprocessor,
    Role,
    RowSampler,
    Stage,
)

SEPARATOR = "+"


def refusal(steps: Sequence[tuple[str, Role]]) -> tuple[str, str] | None:
    """Why a chain of (name, role) makes no sense, and the fix; None when it does."""
    samplers = [name for name, role in steps if role is Role.SAMPLER]
    encoders = [name for name, role in steps if role is Role.ENCODER]
    if len(encoders) > 1:
        return (
            f"has {len(encoders)} encoders ({', '.join(encoders)}), but an encoder writes the "
            "payload, which the next step cannot read",
            f"keep one of them, as the last step, for example {encoders[-1]}",
        )
    if encoders and steps[-1][1] is not Role.ENCODER:
        behind = ", ".join(
            name for name, _ in steps[steps.index((encoders[0], Role.ENCODER)) + 1 :]
        )
        return (
            f"goes on after the encoder {encoders[0]}, whose payload {behind} cannot read",
            f"move {encoders[0]} to the end"
            if encoders[0] != "identity"
            else "remove identity: stages send their own bytes",
        )
    if len(samplers) > 1:
        return (
            f"samples rows {len(samplers)} times ({', '.join(samplers)}), but a packet records one "
            "selection",
            "keep one sampler and multiply the rates",
        )
    return None


class Chain(Preprocessor):
    """Stages, then one preprocessor that writes the payload."""

    def __init__(self, stages: Sequence[Stage], last: Preprocessor) -> None:
        self._stages, self._last = tuple(stages), last
        self.encoding = SEPARATOR.join(step.encoding for step in (*stages, last))
        steps = (*stages, last)
        self._sampler = next((step for step in steps if isinstance(step, RowSampler)), None)
        self.samples = self._sampler is not None
        self.rows_each = prod(step.rows_each for step in steps)
        behind = steps[steps.index(self._sampler) + 1 :] if self._sampler is not None else ()
        self._behind = prod(step.rows_each for step in behind)
        """Rows that each row that the sampler keeps becomes."""

    def payload_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        for stage in self._stages:
            shape, dtype = stage.staged(shape, dtype)
        return self._last.payload_bytes(shape, dtype)

    def decoded_width(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        for stage in self._stages:
            shape, dtype = stage.staged(shape, dtype)
        return self._last.decoded_width(shape, dtype)

    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        params, row_rate = b"", 1.0
        positions: Positions | None = None
        final = len(self._stages) - 1
        for index, stage in enumerate(self._stages):
            if index == final and isinstance(stage, RowSampler):
                positions, params, row_rate = stage.select(tensor.shape)
            elif stage is self._sampler:
                tensor, params, row_rate = stage.apply(tensor)
            else:
                tensor = stage.apply(tensor).tensor
        if positions is None:
            encoded = self._last.encode(tensor, out)
        else:
            encoded = self._last.encode_rows(tensor, out, positions)
        return encoded._replace(params=params, row_rate=row_rate) if params else encoded

    def decode(self, packet: ActivationPacket) -> torch.Tensor:
        return self._last.decode(packet)

    def target(self, tensor: torch.Tensor, encoded: Encoded) -> torch.Tensor:
        for step in (*self._stages, self._last):
            tensor = step.target(tensor, encoded)
        return tensor

    def max_error(self, target: torch.Tensor) -> torch.Tensor:
        return self._last.max_error(target)

    def rows(self, packet: ActivationPacket) -> Positions | None:
        if self._sampler is None or (sampled := self._sampled(packet)) is None:
            return None
        rows = self._sampler.rows(sampled)
        if rows is None or self._behind == 1:
            return rows
        return (rows[:, None] * self._behind + np.arange(self._behind)).reshape(-1)

    def grid(self, packet: ActivationPacket) -> tuple[int, ...]:
        if self._sampler is None or (sampled := self._sampled(packet)) is None:
            return packet.shape[:-1]
        grid = self._sampler.grid(sampled)
        return (*grid, self._behind) if grid and self._behind > 1 else grid

    def _sampled(self, packet: ActivationPacket) -> ActivationPacket | None:
        """As the sampler has left it; None: it had no rows to choose from."""
        if self._behind == 1:
            return packet
        shape = packet.shape
        if len(shape) != 3 or shape[1] != self._behind:
            return None
        return replace(packet, shape=(shape[0], shape[2]))


def link(steps: Sequence[Preprocessor]) -> Preprocessor:
    """One preprocessor of built steps, in order.

    Raises:
        TypeError: a step other than the last is no stage; `refusal` explains this to users.
    """
    *stages, last = steps
    if not stages:
        return last
    wrong = [step.encoding for step in stages if not isinstance(step, Stage)]
    if wrong:
        raise TypeError(f"{', '.join(wrong)} cannot stand in front of {last.encoding}")
    return Chain([step for step in stages if isinstance(step, Stage)], last)


def chain_decoder(encoding: str, find: Callable[[str], Preprocessor]) -> Preprocessor:
    """The decoder of an interned name; `find` gives the decoder of one part.

    Raises:
        PacketError: whatever `find` raises for a part that no kernel decodes.
    """
    padded = PADDED + SEPARATOR
    if encoding.startswith(padded):
        return Padded(chain_decoder(encoding.removeprefix(padded), find))
    decoder = part_decoder(encoding, lambda inner: chain_decoder(inner, find))
    if decoder is not None:
        return decoder
    try:
        return link([find(part) for part in encoding.split(SEPARATOR)])
    except TypeError as error:
        raise PacketError(f"encoding {encoding!r} is no chain: {error}") from error
