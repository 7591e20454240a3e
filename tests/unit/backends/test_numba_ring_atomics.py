"""The instructions that numba_ring emits, and that they are atomic between processes."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from asys_bench.backends.numba_ring.plugin import plugin

if plugin.unavailable() is not None:
    pytest.skip(str(plugin.unavailable()), allow_module_level=True)

import numba

from asys_bench.backends.numba_ring.core import copy, kernel_calls

WORD = numba.int64


def compiled(function: Callable[..., Any], arguments: int) -> Any:
    return numba.njit(WORD(*(WORD,) * arguments))(function)


def llvm_of(function: Callable[..., Any], arguments: int) -> str:
    (text,) = compiled(function, arguments).inspect_llvm().values()
    return str(text)


def address_of(array: np.ndarray[Any, Any]) -> int:
    return int(array.ctypes.data)


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("load_relaxed", "monotonic"),
        ("load_acquire", "acquire"),
        ("load_seq_cst", "seq_cst"),
    ],
)
def test_a_load_is_atomic_with_the_order_of_its_name(name: str, instruction: str) -> None:
    load = getattr(copy, name)
    text = llvm_of(lambda address: load(address), 1)
    assert any("load atomic i64" in line and instruction in line for line in text.splitlines())


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("store_relaxed", "monotonic"),
        ("store_release", "release"),
        ("store_seq_cst", "seq_cst"),
    ],
)
def test_a_store_is_atomic_with_the_order_of_its_name(name: str, instruction: str) -> None:
    store = getattr(copy, name)

    def use(address: int, value: int) -> int:
        store(address, value)
        return value

    text = llvm_of(use, 2)
    assert any("store atomic i64" in line and instruction in line for line in text.splitlines())


@pytest.mark.parametrize(
    ("name", "orders"), [("cmpxchg", "acq_rel acquire"), ("cmpxchg_seq_cst", "seq_cst seq_cst")]
)
def test_a_compare_and_swap_has_both_of_its_orders(name: str, orders: str) -> None:
    swap = getattr(copy, name)
    text = llvm_of(lambda address, expected, value: swap(address, expected, value), 3)
    assert any("cmpxchg ptr" in line and orders in line for line in text.splitlines())


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("exchange_acq_rel", "atomicrmw xchg acq_rel"),
        ("fetch_add_release", "atomicrmw add release"),
        ("fetch_or_seq_cst", "atomicrmw or seq_cst"),
        ("fetch_and_seq_cst", "atomicrmw and seq_cst"),
    ],
)
def test_a_modification_is_one_instruction_with_the_order_of_its_name(
    name: str, instruction: str
) -> None:
    modify = getattr(copy, name)
    text = llvm_of(lambda address, value: modify(address, value), 2)
    operation, kind, order = instruction.split()
    # Where the machine has no such instruction, LLVM shows the loop that it became.
    forms = (f"{operation} {kind}", "cmpxchg ptr")
    lines = [line for line in text.splitlines() if any(form in line for form in forms)]
    assert lines
    assert all(order in line for line in lines)


def test_each_operation_does_what_it_says() -> None:
    word = np.array([5], np.int64)
    at = address_of(word)
    assert compiled(lambda a: copy.load_acquire(a), 1)(at) == 5
    assert compiled(lambda a, e, v: copy.cmpxchg(a, e, v), 3)(at, 4, 9) == 5
    assert word[0] == 5
    assert compiled(lambda a, e, v: copy.cmpxchg(a, e, v), 3)(at, 5, 9) == 5
    assert word[0] == 9
    assert compiled(lambda a, v: copy.fetch_add_release(a, v), 2)(at, -10) == 9
    assert word[0] == -1
    assert compiled(lambda a, v: copy.fetch_and_seq_cst(a, v), 2)(at, ~1) == -1
    assert compiled(lambda a, v: copy.exchange_acq_rel(a, v), 2)(at, 7) == -2
    assert word[0] == 7


ADDER = """
import mmap, sys
import numba, numpy as np
from asys_bench.backends.numba_ring.core.copy import cmpxchg, fetch_add_release, load_acquire

@numba.njit("int64(int64, int64)")
def add(address, times):
    for _ in range(times):
        fetch_add_release(address, 1)
        seen = load_acquire(address + 64)
        while True:
            found = cmpxchg(address + 64, seen, seen + 1)
            if found == seen:
                break
            seen = found
    return times

with mmap.mmap(int(sys.argv[1]), 4096) as shared:
    page = np.frombuffer(shared, np.int64)
    print("ready", flush=True)
    sys.stdin.readline()
    add(page.ctypes.data, 100_000)
    del page
"""


@pytest.mark.rest
def test_two_processes_that_add_to_one_word_lose_no_addition() -> None:
    fd = os.memfd_create("copy")
    os.ftruncate(fd, 4096)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ADDER, str(fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[fd],
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.communicate(b"\n", timeout=240)
        assert process.returncode == 0
    with mmap.mmap(fd, 4096) as shared:
        assert int.from_bytes(shared[:8], "little") == 200_000
        assert int.from_bytes(shared[64:72], "little") == 200_000
    os.close(fd)


def copy_with(instruction: Callable[[int, int, int], None]) -> Any:
    def use(to: int, source: int, nbytes: int) -> int:
        instruction(to, source, nbytes)
        return nbytes

    return compiled(use, 3)


@pytest.mark.parametrize("instruction", [copy.copy_cached, copy.copy_streaming])
def test_copies_of_any_size_move_exactly_those_bytes(instruction: Any) -> None:
    move = copy_with(instruction)
    source = np.random.default_rng(0).integers(0, 256, 5000, np.uint8)
    room = np.zeros(6000, np.uint8)
    start = -address_of(room) % 64
    for nbytes in (0, 1, 63, 64, 65, 127, 255, 256, 257, 320, 4095, 4096, 4999):
        for shift in (0, 1):
            room[:] = 0
            move(address_of(room) + start, address_of(source) + shift, nbytes)
            assert np.array_equal(room[start : start + nbytes], source[shift : shift + nbytes])
            assert not room[start + nbytes :].any()


def test_a_streaming_copy_bypasses_the_cache_and_ends_with_a_fence() -> None:
    (text,) = copy_with(copy.copy_streaming).inspect_llvm().values()
    assert "!nontemporal" in text
    assert "sfence" in text or "fence seq_cst" in text


def test_a_futex_waits_no_longer_than_its_timeout_and_not_on_another_value() -> None:
    word = np.array([3], np.int64)
    wait = compiled(lambda a, v, t: kernel_calls.futex_wait(a, v, t), 3)
    clock = numba.njit(WORD())(lambda: kernel_calls.monotonic_ns())
    started = clock()
    wait(address_of(word), 3, 20_000_000)
    assert clock() - started >= 20_000_000
    started = clock()
    wait(address_of(word), 4, 60_000_000_000)
    assert clock() - started < 30_000_000_000
