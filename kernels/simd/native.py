"""The compiled module `_simd`, loaded on first use; its functions take an instruction set by number."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch

from asys_bench.contracts.packet import PacketError


@cache
def load() -> ModuleType | None:
    """The module, or None where it was not compiled (then numba or torch stand in)."""
    try:
        from asys_bench.kernels.simd import _simd
    except ImportError:
        return None
    _simd.setup(PacketError, torch.Tensor)
    return _simd


@cache
def instruction_sets() -> dict[str, int]:
    """Name -> number of every instruction set this processor has code for, best first."""
    module = load()
    if module is None:
        return {}
    names: tuple[str, ...] = module.levels()
    return {name: number for number, name in reversed(list(enumerate(names)))}
