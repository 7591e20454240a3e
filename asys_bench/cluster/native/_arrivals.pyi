"""Types of the compiled module (arrivals_module.cpp)."""

from collections.abc import Mapping

from asys_bench.cluster.arrivals import Writer

def take(
    data: memoryview,
    hooks: Mapping[int, int],
    encodings: Mapping[int, int],
    writers: Mapping[tuple[int, int], Writer],
    max_packet: int,
    clock_ns: int,
    offset_ns: int | None,
    dtypes: int,
    kinds: int,
    /,
) -> (
    tuple[int, bytes, list[int], list[tuple[Writer, int, int, int, bool]], int, int | None] | None
): ...
