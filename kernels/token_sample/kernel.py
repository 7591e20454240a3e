"""Some rows (tokens) of each tensor: a share, a fixed number, or every n-th.

A tensor [..., D] of N rows becomes [n, D]: the leading dimensions are flattened, rows stay in order.
Scalars and tensors of one dimension have nothing to choose from and travel whole. The 16 bytes of
encoding parameters hold N, the number of the draw and the tensor's leading dimensions; together with the
rule in the encoding's name they give a consumer the position of each row (`rows`) in them (`grid`), which
archives record. `Encoded.row_rate` is the probability that a row was kept, for weights that keep means
unbiased. Rows are copied (or encoded, in a chain) from where they lie: nothing else is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from pydantic import Field, model_validator

from asys_bench.contracts.encodings.leading import PARAMS, leading_of, pack_leading
from asys_bench.contracts.packet import ActivationPacket, PacketError
from asys_bench.contracts.preprocessor import (
    Encoded,
    KernelOptions,
    KernelPlugin,
    Positions,
    Preprocessor,
    Role,
    RowSampler,
    Selection,
    rows_and_width,
    take_rows,
)
from asys_bench.kernels.identity.kernel import IMPLEMENTATIONS
from asys_bench.kernels.simd import native
from asys_bench.kernels.simd.implementations import TORCH
from asys_bench.kernels.simd.splitmix import draw_key, hash32, hashes32

DEFAULT_FRACTION = 0.25
"""What is kept when none of `fraction`, `rows` and `every` is set."""


class TokenSampleOptions(KernelOptions):
    """Options of the `token_sample` preprocessor: at most one of `fraction`, `rows` and `every`."""

    fraction: float | None = Field(
        default=None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="share of a tensor's rows to keep, drawn anew for every packet; 0.25 when none "
        "of fraction, rows and every is set",
    )
    rows: int | None = Field(
        default=None,
        ge=1,
        le=1 << 24,
        description="number of rows to keep, drawn anew for every packet; smaller tensors travel "
        "whole",
    )
    every: int | None = Field(
        default=None,
        ge=1,
        le=1 << 24,
        description="keep rows 0, every, 2 * every, ... of each tensor; no draw, so it can alias "
        "with sequence lengths",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=1 << 63,
        description="seed of the draws; hooks with the same seed keep the same rows",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in ("fraction", "rows", "every") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are set; keep one of fraction, rows and every")
        return self


def stratified(total: int, count: int, key: int) -> Positions:
    """`count` of `total` rows (total < 2^31), ascending; compiled where that is possible.

    Cuts rows 0..total-1 into `count` strata of equal size (up to one row), takes one row of each and
    rotates all by one random offset. With h(i) of `kernels.simd.splitmix` and
    b(i, n) = h(i) * n >> 32 (Lemire, "Fast random integer generation in an interval", 2019, without the
    rejection: a bias of at most n / 2^32)::

        start(i) = i * total // count;   r = b(1, total)
        row(i)   = (start(i) + b(2 + i, start(i + 1) - start(i)) + r) mod total

    Why this: it takes `count` hashes and no sort, gives every row the probability count / total, and
    spreads the rows over the tensor (lower variance for values that vary slowly along it). Independent
    draws need a sort; a fixed stride aliases with sequence lengths. h(0) is left to the caller.
    """
    module = native.load()
    if module is not None:
        return np.frombuffer(module.sample(total, count, key), dtype=np.int64)
    return stratified_numpy(total, count, key)


def stratified_numpy(total: int, count: int, key: int) -> Positions:
    """The same in numpy: the definition that the compiled one matches."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    start = np.arange(count + 1, dtype=np.int64) * total // count
    size = np.diff(start).astype(np.uint64)
    pick = hashes32(key, np.arange(2, 2 + count, dtype=np.uint64)) * size >> np.uint64(32)
    row = start[:-1] + pick.astype(np.int64) + (hash32(key, 1) * total >> 32)
    row[row >= total] -= total
    return np.roll(row, -int(row.argmin()))


MAX_ROWS = 1 << 31
"""Positions are computed in 64 bits from products of two row counts."""
_NAME = re.compile(
    r"(?:fraction([0-9.e-]{1,24})|rows([1-9][0-9]*)|every([1-9][0-9]*))\.seed([0-9]+)"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One of `fraction`, `count` and `every` is set."""

    seed: int
    fraction: float | None = None
    count: int | None = None
    every: int | None = None

    @property
    def name(self) -> str:
        """For example `rows16.seed0`; `rule_of_name` reads it back."""
        if self.every is not None:
            return f"every{self.every}.seed{self.seed}"
        if self.count is not None:
            return f"rows{self.count}.seed{self.seed}"
        return f"fraction{self.fraction!r}.seed{self.seed}"

    def most(self, total: int) -> int:
        """The most rows kept of `total`."""
        if self.every is not None:
            return -(-total // self.every)
        if self.count is not None:
            return min(self.count, total)
        assert self.fraction is not None
        return min(int(self.fraction * total) + 1, total)

    def rate(self, total: int) -> float:
        """Probability that a given row of `total` is kept (for `every`: the share that is)."""
        if total == 0:
            return 1.0
        if self.fraction is not None:
            return self.fraction
        return self.most(total) / total

    def positions(self, total: int, draw: int) -> Positions:
        """The rows that draw number `draw` keeps of `total`.

        `fraction` keeps floor(fraction * total + u) rows, u = h(0) / 2^32, so that every row is kept
        with probability `fraction`, also where fraction * total is not whole.

        Raises:
            PacketError: `total` is 2^31 or more.
        """
        if not 0 <= total < MAX_ROWS:
            raise PacketError(f"token_sample numbers fewer than 2^31 rows, got {total}")
        if self.every is not None:
            return np.arange(0, total, self.every, dtype=np.int64)
        key = draw_key(self.seed, draw)
        if self.count is not None:
            count = self.count
        else:
            assert self.fraction is not None
            count = int(self.fraction * total + hash32(key, 0) / (1 << 32))
        return stratified(total, min(count, self.most(total)), key)


def rule_of(options: TokenSampleOptions) -> Rule:
    """The rule that options ask for."""
    fraction = options.fraction
    if fraction is None and options.rows is None and options.every is None:
        fraction = DEFAULT_FRACTION
    return Rule(options.seed, fraction, options.rows, options.every)


def rule_of_name(name: str) -> Rule | None:
    """The rule that `Rule.name` names; None when it names none."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    fraction, count, every, seed = found.groups()
    try:
        options = TokenSampleOptions(
            fraction=float(fraction) if fraction else None,
            rows=int(count) if count else None,
            every=int(every) if every else None,
            seed=int(seed),
        )
    except ValueError:
        return None
    rule = rule_of(options)
    return rule if rule.name == name else None


class TokenSamplePreprocessor(RowSampler):
    """Keeps the rows that `rule` chooses; `implementation` None takes the best one here."""

    def __init__(self, rule: Rule, implementation: str | None = None) -> None:
        self.encoding = f"token_sample.{rule.name}"
        self._rule = rule
        self._draw = 0
        self._same: tuple[tuple[int, ...], Selection] | None = None
        """Shape and selection of the last call, where every draw is the same."""
        self._write = IMPLEMENTATIONS.writer(implementation)

    def staged(
        self, shape: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[tuple[int, ...], torch.dtype]:
        if len(shape) < 2:
            return shape, dtype
        rows, width = rows_and_width(shape)
        return (self._rule.most(rows), width), dtype

    def select(self, shape: tuple[int, ...]) -> Selection:
        if len(shape) < 2:
            return Selection(None)
        total = rows_and_width(shape)[0]
        if self._same is not None and self._same[0] == shape:
            return self._same[1]
        rule, draw = self._rule, self._draw
        selection = Selection(
            rule.positions(total, draw),
            pack_leading(tuple(shape[:-1]), total, draw),
            rule.rate(total),
        )
        if rule.every is None:
            self._draw = (draw + 1) & 0xFFFFFFFF
        else:
            self._same = tuple(shape), selection
        return selection

    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        positions, params, row_rate = self.select(tensor.shape)
        nbytes = self._write(tensor, out, positions)
        shape = tuple(tensor.shape)
        if positions is not None:
            shape = (len(positions), shape[-1])
        return Encoded(nbytes, tensor.dtype, shape, params, row_rate)

    def target(self, tensor: torch.Tensor, encoded: Encoded) -> torch.Tensor:
        if tensor.dim() < 2:
            return tensor
        total, draw, *_ = PARAMS.unpack(encoded.params)
        return take_rows(tensor, self._rule.positions(total, draw))

    def rows(self, packet: ActivationPacket) -> Positions | None:
        if len(packet.shape) != 2 or packet.shape[1] == 0:
            return None
        total, draw, *_ = PARAMS.unpack(packet.params)
        kept = packet.shape[0]
        if total < MAX_ROWS and kept <= packet.payload.nbytes:  # untrusted: it sizes an array
            if not self._rule.most(total) - 1 <= kept <= self._rule.most(total):
                raise PacketError(f"{self.encoding} does not keep {kept} of {total} rows")
            positions = self._rule.positions(total, draw)
            if len(positions) == kept:
                return positions
        raise PacketError(
            f"{self.encoding}: {kept} rows in {packet.payload.nbytes} bytes are not draw {draw} of "
            f"{total} rows"
        )

    def grid(self, packet: ActivationPacket) -> tuple[int, ...]:
        return packet.shape[:-1] if self.rows(packet) is None else leading_of(packet.params)


def _build(options: TokenSampleOptions) -> Preprocessor:
    return TokenSamplePreprocessor(rule_of(options))


def _decoder(encoding: str) -> Preprocessor | None:
    prefix, _, name = encoding.partition(".")
    rule = rule_of_name(name) if prefix == "token_sample" else None
    return TokenSamplePreprocessor(rule, TORCH) if rule is not None else None


plugin = KernelPlugin(
    name="token_sample",
    summary="some rows of each tensor: a share, a number or every n-th",
    options=TokenSampleOptions,
    build=_build,
    decoder=_decoder,
    role=Role.SAMPLER,
)
