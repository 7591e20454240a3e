"""Options of a ring (`bus.options.cpp_spmc` and `bus.options.numba_ring` in YAML)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from asys_bench.contracts.bus import BusOptions
from asys_bench.contracts.text_form import TextForm

SegmentName = Annotated[
    str,
    TextForm(
        r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$",
        "a name for a file",
        "use letters, digits, `_`, `.` and `-`, none of the last two first, at most 100",
    ),
]


class RingOptions(BusOptions):
    """Every default is what measured best over the machines in cpp_spmc/README.md."""

    name: SegmentName | None = Field(
        default=None,
        description="Publish the segment as /dev/shm/asys-<name> so that processes attach by name "
        "(same user only). Default: anonymous memory, passed on by file descriptor.",
    )
    spin_us: int = Field(
        default=20,
        ge=0,
        le=1_000_000,
        description="Microseconds that an idle consumer spins before it sleeps. More lowers latency "
        "and burns that much of a core per wait.",
    )
    poll_us: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="0: a consumer that sleeps is woken by the producer, within microseconds, at the "
        "price of a system call in the host (5 to 60 us on a virtual machine). Otherwise it looks "
        "every so many microseconds, up to eight times less often while nothing comes, and the host "
        "never pays; workers that read in batches lose nothing by it.",
    )
    streaming_threshold_bytes: int = Field(
        default=16 << 10,
        ge=0,
        lt=1 << 62,
        description="Payloads of at least this many bytes are copied with streaming stores, which "
        "pass by the cache: better when the reader's core is far or the payload is large. cpp_spmc "
        "takes cached ones for them, too, while readers on near cores keep up.",
    )
    window_bytes: int = Field(
        default=4 << 20,
        ge=4096,
        lt=1 << 62,
        description="Bytes of the arena that are reused while consumers keep up, so that they stay "
        "in cache; the rest is used when they fall behind, and by streaming stores.",
    )
    initial_seq: int = Field(
        default=0,
        ge=0,
        lt=1 << 64,
        description="First sequence number of every shard; tests of wraparound set it.",
    )


PASSED_ON = ("spin_us", "poll_us", "streaming_threshold_bytes", "window_bytes")
"""Options that a process that attaches needs, too."""
