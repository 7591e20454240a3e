"""Push and pull of one bus in one process: no reader's speed, no other core, just the calls."""

import pytest
import torch
from plugins import BACKENDS, GROUP, bus_of

from asys_bench.contracts.packet import PacketMeta

FLOATS = {"4KiB": 1024, "64KiB": 16384}
ROUNDS = 400


@pytest.mark.parametrize("size", FLOATS)
@pytest.mark.parametrize("name", BACKENDS)
def test_push(benchmark, name, size):
    payload = torch.randn(FLOATS[size])
    with bus_of(name) as bus, bus.subscribe(GROUP, "reader") as reader:
        producer = bus.producer()
        meta = PacketMeta(bus.intern("hook"), 0, 0, tuple(payload.shape))

        def make_room():
            for _ in range(2):
                with reader.pull_batch(1024, 0.0, 0):
                    pass

        def push():
            assert producer.try_push(meta, payload), producer.last_refusal

        benchmark.pedantic(push, setup=make_room, rounds=ROUNDS, warmup_rounds=20)


@pytest.mark.parametrize("size", FLOATS)
@pytest.mark.parametrize("name", BACKENDS)
def test_pull_of_one_packet(benchmark, name, size):
    payload = torch.randn(FLOATS[size])
    with bus_of(name) as bus, bus.subscribe(GROUP, "reader") as reader:
        producer = bus.producer()
        meta = PacketMeta(bus.intern("hook"), 0, 0, tuple(payload.shape))
        got = 0

        def put_one():
            assert producer.try_push(meta, payload), producer.last_refusal

        def pull():
            nonlocal got
            with reader.pull_batch(1, 1.0) as lease:
                got += len(lease)

        benchmark.pedantic(pull, setup=put_one, rounds=ROUNDS, warmup_rounds=20)
        assert got == ROUNDS + 20
