"""Our buses as contenders: the public contract, read as a worker reads."""

from __future__ import annotations

from typing import Any

from contender import BATCH, Contender, total


class Ours(Contender):
    """A registered bus through `contracts.bus`: `batch` packets a push, `pull` at most a pull."""

    def __init__(
        self, nbytes: int, backend: str, batch: int = 1, groups: int = 1, pull: int = BATCH,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(nbytes)
        self.backend, self.batch, self.groups, self.pull = backend, batch, groups, pull
        self.options = options

    def open(self):
        from asys_bench.contracts.bus import BusPlugin, BusRequest, GroupSpec
        from asys_bench.registry import registry

        plugin = registry("backend").get(self.backend, BusPlugin)
        groups = tuple(GroupSpec(f"g{index}") for index in range(self.groups))
        options = plugin.options.model_validate(self.options)
        request = BusRequest(groups=groups, capacity_bytes=self.capacity_bytes, options=options)
        self.bus = plugin.build(request)
        self.producer = self.bus.producer(0)
        handle = self.bus.handle()
        return handle.to_dict(), handle.fds

    def payloads(self, rows):
        return list(rows) if self.batch == 1 else [rows]

    def produce(self, payloads, packets):
        from asys_bench.contracts.packet import PacketMeta

        meta = PacketMeta(0, 0, 8, (self.nbytes // 8,))
        (self._one_by_one if self.batch == 1 else self._in_batches)(meta, payloads, packets)

    def _one_by_one(self, meta: Any, payloads: list[Any], packets: int) -> None:
        try_push, push, count = self.producer.try_push, self.producer.push, len(payloads)
        for index in range(packets):
            row = payloads[index % count]
            if not try_push(meta, row):
                while not push(meta, row, 1.0):
                    pass

    def _in_batches(self, meta: Any, payloads: list[Any], packets: int) -> None:
        (rows,) = payloads
        sent, first = 0, 0
        while sent < packets:
            many = min(self.batch, packets - sent, len(rows) - first)
            accepted = self.producer.try_push_many(meta, rows[first : first + many])
            sent, first = sent + accepted, (first + accepted) % len(rows)
            if accepted < many and self.producer.push(meta, rows[first], 1.0):  # waits for room
                sent, first = sent + 1, (first + 1) % len(rows)

    def attach(self, data, fds, group):
        from asys_bench.contracts.bus import BusHandle, BusPlugin
        from asys_bench.registry import registry

        plugin = registry("backend").get(data["backend"], BusPlugin)
        self.client = plugin.attach(BusHandle.from_dict(data, fds))
        self.subscription = self.client.subscribe(f"g{group}", "consumer")

    def consume(self, packets):
        got = 0
        while got < packets:
            with self.subscription.pull_batch(self.pull, 1.0) as lease:
                for packet in lease:  # as every sink reads one
                    total(packet.payload)
                got += len(lease)
                packet = None  # its view would keep the lease
        return got

    def close(self):
        self.bus.close()
