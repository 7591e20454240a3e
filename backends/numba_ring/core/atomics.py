"""Atomic operations on 64-bit words at raw addresses, for compiled functions only.

Each emits the LLVM instruction of its name. Words are signed here: two's complement makes addition
and comparison for equality the same, and mixing numba's int64 and uint64 would make floats.
Python code uses `words` instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from asys_bench.backends.numba_ring.core.compiled import instruction

_I64 = ir.IntType(64)
_ALIGN = 8


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I64.as_pointer())


def _loader(ordering: str) -> Callable[[int], int]:
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load_atomic(_pointer(builder, args[0]), ordering, _ALIGN)

        return types.int64(types.int64), codegen

    loader: Callable[[int], int] = instruction(load)
    return loader


def _storer(ordering: str) -> Callable[[int, int], None]:
    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.store_atomic(args[1], _pointer(builder, args[0]), ordering, _ALIGN)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    storer: Callable[[int, int], None] = instruction(store)
    return storer


def _swapper(ordering: str, on_failure: str) -> Callable[[int, int, int], int]:
    def swap(typingctx: Any, address: Any, expected: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _pointer(builder, args[0])
            pair = builder.cmpxchg(pointer, args[1], args[2], ordering, on_failure)
            return builder.extract_value(pair, 0)

        return types.int64(types.int64, types.int64, types.int64), codegen

    swapper: Callable[[int, int, int], int] = instruction(swap)
    return swapper


def _modifier(operation: str, ordering: str) -> Callable[[int, int], int]:
    def modify(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.atomic_rmw(operation, _pointer(builder, args[0]), args[1], ordering)

        return types.int64(types.int64, types.int64), codegen

    modifier: Callable[[int, int], int] = instruction(modify)
    return modifier


load_relaxed = _loader("monotonic")
load_acquire = _loader("acquire")
load_seq_cst = _loader("seq_cst")
store_relaxed = _storer("monotonic")
store_release = _storer("release")
store_seq_cst = _storer("seq_cst")

cmpxchg = _swapper("acq_rel", "acquire")
"""Returns what was there: the swap happened if that is `expected`."""
cmpxchg_seq_cst = _swapper("seq_cst", "seq_cst")

exchange_acq_rel = _modifier("xchg", "acq_rel")
fetch_add_release = _modifier("add", "release")
fetch_or_seq_cst = _modifier("or", "seq_cst")
fetch_and_seq_cst = _modifier("and", "seq_cst")
