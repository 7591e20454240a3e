"""Moving payload bytes, for compiled functions only: cached copies, streaming copies, plain words.

Streaming stores bypass the cache, so the writer does not first fetch lines that the reader's core
holds. No release store orders them: `copy_streaming` ends with the fence that does.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from asys_bench.backends.numba_ring.core.compiled import instruction

_I64 = ir.IntType(64)
_I8_POINTER = ir.IntType(8).as_pointer()
_LINE = ir.VectorType(_I64, 8)
_LINE_BYTES = 64
_UNROLL = 4
_PREFETCH_BYTES = 1024
_IS_X86 = platform.machine() == "x86_64"


def _memcpy(builder: Any, to: Any, source: Any, nbytes: Any) -> None:
    bit = ir.IntType(1)
    function = builder.module.declare_intrinsic("llvm.memcpy", [_I8_POINTER, _I8_POINTER, _I64])
    builder.call(
        function,
        (
            builder.inttoptr(to, _I8_POINTER),
            builder.inttoptr(source, _I8_POINTER),
            nbytes,
            ir.Constant(bit, 0),
        ),
    )


def _stream_lines(builder: Any, to: Any, source: Any, lines: Any, unroll: int) -> tuple[Any, ...]:
    """A loop that moves `unroll` lines a turn while that many are left; what it did not move."""
    function = builder.function
    before = builder.block
    head = function.append_basic_block("stream.head")
    body = function.append_basic_block("stream.body")
    done = function.append_basic_block("stream.done")
    builder.branch(head)
    builder.position_at_end(head)
    phis = []
    for start in (to, source, lines):
        phi = builder.phi(_I64)
        phi.add_incoming(start, before)
        phis.append(phi)
    at, origin, left = phis
    more = builder.icmp_unsigned(">=", left, ir.Constant(_I64, unroll))
    builder.cbranch(more, body, done)
    builder.position_at_end(body)
    if unroll > 1:
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch",
            fnty=ir.FunctionType(ir.VoidType(), [_I8_POINTER, *[ir.IntType(32)] * 3]),
        )
        ahead = builder.inttoptr(
            builder.add(origin, ir.Constant(_I64, _PREFETCH_BYTES)), _I8_POINTER
        )
        read_keep_data = [ir.Constant(ir.IntType(32), n) for n in (0, 3, 1)]
        builder.call(prefetch, [ahead, *read_keep_data])
    offsets = [ir.Constant(_I64, i * _LINE_BYTES) for i in range(unroll)]
    values = [
        builder.load(builder.inttoptr(builder.add(origin, offset), _LINE.as_pointer()), align=1)
        for offset in offsets
    ]
    once = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
    for offset, value in zip(offsets, values, strict=True):
        pointer = builder.inttoptr(builder.add(at, offset), _LINE.as_pointer())
        builder.store(value, pointer, align=_LINE_BYTES).set_metadata("nontemporal", once)
    step = ir.Constant(_I64, unroll * _LINE_BYTES)
    for phi, value in (
        (at, builder.add(at, step)),
        (origin, builder.add(origin, step)),
        (left, builder.sub(left, ir.Constant(_I64, unroll))),
    ):
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(done)
    return at, origin, left


def _copy_cached(typingctx: Any, to: Any, source: Any, nbytes: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _memcpy(builder, *args)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def _copy_streaming(typingctx: Any, to: Any, source: Any, nbytes: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, origin, nbytes = args
        lines = builder.lshr(nbytes, ir.Constant(_I64, 6))
        at, origin, lines = _stream_lines(builder, at, origin, lines, _UNROLL)
        at, origin, _ = _stream_lines(builder, at, origin, lines, 1)
        _memcpy(builder, at, origin, builder.and_(nbytes, ir.Constant(_I64, _LINE_BYTES - 1)))
        if _IS_X86:
            sfence = builder.module.declare_intrinsic(
                "llvm.x86.sse.sfence", fnty=ir.FunctionType(ir.VoidType(), [])
            )
            builder.call(sfence, [])
        else:
            builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def _get(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], _I64.as_pointer()), align=1)

    return types.int64(types.int64), codegen


def _put(typingctx: Any, address: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], _I64.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _put_u32(typingctx: Any, address: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        half = builder.trunc(args[1], ir.IntType(32))
        builder.store(half, builder.inttoptr(args[0], half.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _prefetch(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = builder.module.declare_intrinsic(
            "llvm.prefetch",
            fnty=ir.FunctionType(ir.VoidType(), [_I8_POINTER, *[ir.IntType(32)] * 3]),
        )
        write_keep_data = [ir.Constant(ir.IntType(32), n) for n in (1, 3, 1)]
        builder.call(function, [builder.inttoptr(args[0], _I8_POINTER), *write_keep_data])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


copy_cached: Callable[[int, int, int], None] = instruction(_copy_cached)
"""(to, source, nbytes): the bytes pass through the writer's cache."""
copy_streaming: Callable[[int, int, int], None] = instruction(_copy_streaming)
"""(to, source, nbytes): they do not. `to` must be 64-byte aligned."""
get: Callable[[int], int] = instruction(_get)
"""(address) -> word: an ordinary load, for memory of this process or published before."""
put: Callable[[int, int], None] = instruction(_put)
"""(address, word): an ordinary store, made visible by the next release store."""
put_u32: Callable[[int, int], None] = instruction(_put_u32)
"""(address, value): its low half."""
prefetch: Callable[[int], None] = instruction(_prefetch)
"""(address): ask for the line, to write it."""


# Atomic operations on 64-bit words at raw addresses, for compiled functions only.
#
# Each emits the LLVM instruction of its name. Words are signed here: two's complement makes addition
# and comparison for equality the same, and mixing numba's int64 and uint64 would make floats.
# Python code uses `words` instead.

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
