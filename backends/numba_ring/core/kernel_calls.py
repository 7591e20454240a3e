"""Clock, futex and spinning, for compiled functions only: they wait without the GIL.

libc's `clock_gettime` and `syscall` are called by their symbols, so the code can be cached.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils

from asys_bench.backends.numba_ring.core.compiled import instruction

cgutils: Any = _cgutils  # it has no types

SYS_FUTEX = {"x86_64": 202, "aarch64": 98}
"""By `platform.machine()`: the machines that this backend runs on."""

_FUTEX_WAIT, _FUTEX_WAKE = 0, 1  # shared, not private: waiter and waker are different processes
_EVERYBODY = 2**31 - 1
_CLOCK_MONOTONIC = 1
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_I64_POINTER = _I64.as_pointer()
_BILLION = ir.Constant(_I64, 1_000_000_000)


def _timespec(builder: Any) -> tuple[Any, Any, Any]:
    """(pointer to both, to the seconds, to the nanoseconds) of one on the stack."""
    both = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))
    zero = ir.Constant(_I32, 0)
    seconds = builder.gep(both, [zero, zero])
    nanoseconds = builder.gep(both, [zero, ir.Constant(_I32, 1)])
    return seconds, seconds, nanoseconds


def _futex(builder: Any, address: Any, operation: int, value: Any, timeout: Any) -> Any:
    number = SYS_FUTEX[platform.machine()]
    signature = ir.FunctionType(_I64, [_I64] * 7)
    function = cgutils.get_or_insert_function(builder.module, signature, "syscall")
    zero = ir.Constant(_I64, 0)
    constants = (ir.Constant(_I64, number), address, ir.Constant(_I64, operation))
    return builder.call(function, [*constants, value, timeout, zero, zero])


def _monotonic_ns(typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, seconds, nanoseconds = _timespec(builder)
        clock = ir.FunctionType(_I32, [_I32, _I64_POINTER])
        function = cgutils.get_or_insert_function(builder.module, clock, "clock_gettime")
        builder.call(function, [ir.Constant(_I32, _CLOCK_MONOTONIC), pointer])
        return builder.add(builder.mul(builder.load(seconds), _BILLION), builder.load(nanoseconds))

    return types.int64(), codegen


def _futex_wait(typingctx: Any, address: Any, value: Any, timeout_ns: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, seconds, nanoseconds = _timespec(builder)
        builder.store(builder.udiv(args[2], _BILLION), seconds)
        builder.store(builder.urem(args[2], _BILLION), nanoseconds)
        timeout = builder.ptrtoint(pointer, _I64)
        return _futex(builder, args[0], _FUTEX_WAIT, args[1], timeout)

    return types.int64(types.int64, types.int64, types.int64), codegen


def _futex_wake(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        everybody, zero = ir.Constant(_I64, _EVERYBODY), ir.Constant(_I64, 0)
        return _futex(builder, args[0], _FUTEX_WAKE, everybody, zero)

    return types.int64(types.int64), codegen


def _relax(typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if platform.machine() == "x86_64":
            fnty = ir.FunctionType(ir.VoidType(), [])
            hint = builder.module.declare_intrinsic("llvm.x86.sse2.pause", fnty=fnty)
            builder.call(hint, [])
        else:
            fnty = ir.FunctionType(ir.VoidType(), [_I32])
            hint = builder.module.declare_intrinsic("llvm.aarch64.hint", fnty=fnty)
            builder.call(hint, [ir.Constant(_I32, 1)])
        return context.get_dummy_value()

    return types.void(), codegen


monotonic_ns: Callable[[], int] = instruction(_monotonic_ns)
"""() -> nanoseconds of CLOCK_MONOTONIC, as `time.monotonic_ns`."""
futex_wait: Callable[[int, int, int], int] = instruction(_futex_wait)
"""(address, value, timeout_ns): sleep while the 32 bits at `address` are `value`."""
futex_wake: Callable[[int], int] = instruction(_futex_wake)
"""(address): wake everybody who sleeps on it."""
relax: Callable[[], None] = instruction(_relax)
"""() one turn of a spinning loop."""
