"""Decorators that compile for this process: typed for mypy, timed, and cached where that is safe.

Entry points are compiled when their module is imported, which a bus does while it is constructed and
never on the first push. The machine code is kept in a private directory (see `code_cache`), because
numba's default, a folder beside the source, does not notice a change in a module that is inlined.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numba
import numba.extending

from asys_bench.backends.numba_ring.core.code_cache import cache_in_private_directory

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class CompileLog:
    """What compiling cost this process."""

    seconds: float = 0.0
    functions: int = 0
    from_cache: int = 0

    def __str__(self) -> str:
        return (
            f"{self.functions} functions ready in {self.seconds:.2f} s, "
            f"{self.from_cache} of them from the cache"
        )


log = CompileLog()
_dispatchers: list[Any] = []
"""What numba forgets goes with its machine code."""


def inner(function: F) -> F:
    """A function that only compiled functions call; it becomes part of theirs."""
    return cast(F, numba.njit(error_model="numpy")(function))


def entry(arguments: int, *, nogil: bool = False) -> Callable[[F], F]:
    """A function that Python calls with that many 64-bit integers; it returns another.

    Words are passed as signed numbers (the cheapest to unbox): `signed` and `unsigned` convert. Python gets
    the compiled function itself: there is one signature, so a dispatcher has nothing to choose and costs
    0.09 us a call.
    """
    signature = numba.int64(*(numba.int64,) * arguments)

    def decorate(function: F) -> F:
        started = time.perf_counter()
        dispatcher = numba.njit(error_model="numpy", nogil=nogil)(function)
        cache_in_private_directory(dispatcher)
        function_of_c = dispatcher.compile(signature)
        _dispatchers.append(dispatcher)
        log.seconds += time.perf_counter() - started
        log.functions += 1
        log.from_cache += sum(dispatcher.stats.cache_hits.values())
        return cast(F, function_of_c)

    return decorate


def instruction(function: Callable[..., Any]) -> Any:
    """A function that emits LLVM instructions itself: `(typing context, *types) -> (sig, codegen)`."""
    return numba.extending.intrinsic(function)
