"""Which code writes a kernel's payload on this machine: compiled for an instruction set, numba, torch.

All of them write the same bytes (`tests/unit/kernels/test_implementations.py`), so the choice only
costs or saves time. It is made when the encoder is built, never in a hook.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import torch

from asys_bench.contracts.preprocessor import Positions
from asys_bench.kernels.simd import native

TORCH = "torch"
"""The plain-torch reference: always there, and what decoders are built with."""
NUMBA = "numba"


class Writer(Protocol):
    """Writes the payload of `tensor`, or of its rows at `positions`, into `out`; returns its bytes."""

    def __call__(
        self, tensor: torch.Tensor, out: memoryview, positions: Positions | None = None, *more: Any
    ) -> int: ...


@dataclass(frozen=True)
class Implementations:
    """The implementations of one kernel.

    function: its name in the compiled module. twin: module whose `write(tensor, out, positions,
    *options)` is the numba version; None where torch is as fast. reference: the torch version, with
    the same arguments.
    """

    function: str
    twin: str | None
    reference: Callable[..., int]

    def names(self) -> list[str]:
        """Those that can run here, best first."""
        numba = [NUMBA] if self.twin is not None and find_spec("numba") is not None else []
        return [*native.instruction_sets(), *numba, TORCH]

    def writer(self, name: str | None, *options: Any) -> Writer:
        """The implementation `name` (None: the best one here), with the kernel's own options bound.

        Raises:
            ValueError: it cannot run here; lists those that can.
        """
        name = name or self.names()[0]
        if name not in self.names():
            raise ValueError(f"{self.function}: {name!r} cannot run here; valid: {self.names()}")
        if name == TORCH:
            return _bound(self.reference, options)
        if name == NUMBA:
            assert self.twin is not None
            return _bound(importlib.import_module(self.twin).write, options)
        function = getattr(native.load(), self.function)
        return _compiled(function, native.instruction_sets()[name], self.reference, options)


def _bound(function: Callable[..., int], options: tuple[Any, ...]) -> Writer:
    def write(
        tensor: torch.Tensor, out: memoryview, positions: Positions | None = None, *more: Any
    ) -> int:
        return function(tensor, out, positions, *options, *more)

    return write


def _compiled(
    function: Callable[..., int | None],
    isa: int,
    reference: Callable[..., int],
    options: tuple[Any, ...],
) -> Writer:
    def write(
        tensor: torch.Tensor, out: memoryview, positions: Positions | None = None, *more: Any
    ) -> int:
        nbytes = function(tensor, out, isa, positions, *options, *more)
        if nbytes is None and tensor.is_cpu and not tensor.is_contiguous():
            dense = tensor.detach().contiguous()  # its last dimension has a stride
            nbytes = function(dense, out, isa, positions, *options, *more)
        return reference(tensor, out, positions, *options, *more) if nbytes is None else nbytes

    return write
