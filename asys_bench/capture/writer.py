"""Writer: the bus's side of the hooks. All hooks of a host process share one shard and one lock."""

from __future__ import annotations

import threading

from asys_bench.contracts.bus import BaseDataBus

_CONTENTION_S = 0.05


class Writer:
    """The producer of shard 0, and the lock of everybody who writes to it or counts for a hook.

    A host may call its model from several threads (or DataParallel may): a shard has one writer.

    lock: held for as long as a packet is copied.
    patience_s: how long a thread waits for it before it drops its packet. It is never reached but by
        a signal handler that runs the model in the middle of one of our captures.
    block_timeout_s: longest wait for room (`on_full: block`); 0.0 never waits.
    adapts: the sampling rate follows the bus (`on_full: sample`).
    """

    def __init__(self, bus: BaseDataBus, on_full: str, block_timeout_s: float) -> None:
        self.bus = bus
        self.producer = bus.producer(0)
        self.lock = threading.Lock()
        self.block_timeout_s = block_timeout_s if on_full == "block" else 0.0
        self.adapts = on_full == "sample"
        self.patience_s = _CONTENTION_S + self.block_timeout_s
