"""The ranks of a group over `torch.distributed`: NCCL where each has a GPU of its own, gloo otherwise.

A wait for the others is cut into short ones, between which `watch` is asked: a heartbeat is given, and a
rank that has ended or hangs is found by rank 0 (`processes`), in place of a time-out for the whole
operation, which would have to be longer than the slowest step. NCCL's own waits are given to the device;
its time-out is `NCCL_TIMEOUT`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist

from asys_bench.sae.ranks import Collectives, GroupError, Split

Backend = Literal["gloo", "nccl"]
LOOK = timedelta(seconds=0.2)
"""Between two calls of `watch` while this rank waits."""
NCCL_TIMEOUT = timedelta(minutes=10)
EXPLAIN_S = 1.0
_ENDLESS = timedelta(days=365)


class DistributedRanks(Collectives):
    """One rank, connected by `connect`. device: where its tensors are."""

    def __init__(
        self,
        rank: int,
        size: int,
        split: Split,
        *,
        backend: Backend,
        device: torch.device,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(rank, size, split)
        self._backend: Backend = backend
        self._wire_device = device if backend == "nccl" else torch.device("cpu")
        self._watch = watch
        self.connected = False

    def connect(self, store: str) -> None:
        """Meet the others. store: path of an empty file that all of them open.

        Raises:
            GroupError: they cannot be reached, or one has ended.
        """
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # else by the host's name, which may be unknown
        failed: list[BaseException] = []

        def join() -> None:
            try:
                dist.init_process_group(
                    self._backend,
                    store=dist.FileStore(store, self.size),  # type: ignore[attr-defined]
                    rank=self.rank,
                    world_size=self.size,
                    timeout=NCCL_TIMEOUT if self._backend == "nccl" else _ENDLESS,
                )
            except Exception as error:  # noqa: BLE001 - told by whoever waits
                failed.append(error)

        thread = threading.Thread(target=join, name="asys-group", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(LOOK.total_seconds())
            if thread.is_alive():
                self._watch()
        if failed:
            raise GroupError(f"rank {self.rank} cannot join its group: {failed[0]}") from failed[0]
        self.connected = True

    def disconnect(self) -> None:
        """Idempotent."""
        if self.connected:
            self.connected = False
            dist.destroy_process_group()

    def sum_(self, tensor: torch.Tensor) -> None:
        self._in_place(tensor, lambda wire: dist.all_reduce(wire, async_op=True))

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        wire = tensor.detach().to(self._wire_device).contiguous()
        found = [torch.empty_like(wire) for _ in range(self.size)]
        self._wait(lambda: dist.all_gather(found, wire, async_op=True))
        return [one.to(tensor.device) for one in found]

    def broadcast_(self, tensor: torch.Tensor) -> None:
        self._in_place(tensor, lambda wire: dist.broadcast(wire, 0, async_op=True))

    def send(self, tensor: torch.Tensor, to: int) -> None:
        wire = tensor.detach().to(self._wire_device).contiguous()
        if wire.numel():
            self._meet(lambda: dist.isend(wire, to))

    def receive(self, tensor: torch.Tensor, source: int) -> None:
        if tensor.numel():
            tensor = tensor.detach()
            wire = tensor.to(self._wire_device)
            self._meet(lambda: dist.irecv(wire, source))
            if wire is not tensor:
                tensor.copy_(wire)

    def _in_place(self, tensor: torch.Tensor, operation: Callable[[torch.Tensor], Any]) -> None:
        tensor = tensor.detach()
        wire = tensor.to(self._wire_device)
        self._wait(lambda: operation(wire))
        if wire is not tensor:
            tensor.copy_(wire)

    def _explain(self) -> None:
        """A connection is gone before its process is seen to have ended: look for that for a moment."""
        deadline = time.monotonic() + EXPLAIN_S
        while self.rank == 0 and time.monotonic() < deadline:
            self._watch()
            time.sleep(0.01)

    def _meet(self, begin: Callable[[], Any]) -> None:
        """`_wait` for one that sends and one that receives: gloo breaks every connection when a wait for
        such an operation times out, so a thread waits without a limit."""
        if self._backend == "nccl":
            self._wait(begin)
            return
        failed: list[RuntimeError] = []

        def meet() -> None:
            try:
                begin().wait()
            except RuntimeError as error:
                failed.append(error)

        thread = threading.Thread(target=meet, name="asys-group", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(LOOK.total_seconds())
            if thread.is_alive():
                self._watch()
        if failed:
            self._explain()
            raise GroupError(f"rank {self.rank} lost its group: {failed[0]}") from failed[0]

    def _wait(self, begin: Callable[[], Any]) -> None:
        """Begin an operation, and wait for its end.

        Raises:
            GroupError: another rank is gone, which is found when the operation begins or while it runs.
        """
        work: Any = None
        while True:
            try:
                if work is None:
                    work = begin()
                if self._backend == "nccl":
                    work.wait()
                else:
                    work.wait(LOOK)
            except RuntimeError as error:
                if work is None or self._backend == "nccl" or work.is_completed():
                    self._explain()
                    raise GroupError(f"rank {self.rank} lost its group: {error}") from error
                self._watch()
            else:
                return
