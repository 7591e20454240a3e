"""Any user of the machine can connect to the bus's socket: it costs a line a minute, and nobody else."""

from __future__ import annotations

import logging
import socket
import threading

import pytest

from asys_bench.backends.mp_queue import wire
from asys_bench.backends.mp_queue.bus import PythonQueueBus
from asys_bench.backends.mp_queue.strangers import BURST, Strangers
from asys_bench.contracts.bus import BusRequest, GroupSpec

CONNECTIONS = 400


def test_a_flood_of_connections_is_one_warning_and_our_consumers_still_get_in(monkeypatch, caplog):
    genuine, strangers = wire.peer_of, [CONNECTIONS]

    def peer_of(channel):
        if strangers[0] and threading.current_thread().name == "asys-mp-queue-io":
            strangers[0] -= 1
            return 4711, 65534
        return genuine(channel)

    monkeypatch.setattr(wire, "peer_of", peer_of)
    bus = PythonQueueBus(BusRequest(groups=(GroupSpec("g"),)))
    address = bus.handle().params["address"]
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(CONNECTIONS):
                with socket.socket(socket.AF_UNIX) as stranger:
                    stranger.settimeout(60.0)
                    while stranger.connect_ex("\0" + address[1:]):
                        pass  # the backlog is full while nobody is accepted
            subscription = bus.subscribe("g", "ours")
        subscription.close()
    finally:
        bus.close()
    assert strangers[0] == 0
    said = [record.getMessage() for record in caplog.records]
    assert said == ["refused process 4711 of user 65534 (1 connections so far)"]


def test_each_user_is_named_once_a_minute_and_a_burst_pauses_accepting(monkeypatch, caplog):
    now = [1000.0]
    monkeypatch.setattr("asys_bench.backends.mp_queue.strangers.time.monotonic", lambda: now[0])
    strangers = Strangers()
    with caplog.at_level(logging.WARNING):
        for _ in range(BURST - 1):
            strangers.refused(1, 65534)
        assert not strangers.too_many()
        strangers.refused(2, 65533)
        assert strangers.too_many()
        assert strangers.pause_s(1.0) == pytest.approx(0.1)
        assert not strangers.over()
        now[0] += 0.2
        assert strangers.over()
        assert not strangers.over(), "once"
        assert strangers.pause_s(1.0) == 1.0
        now[0] += 60.0
        strangers.refused(1, 65534)
    assert [record.getMessage() for record in caplog.records] == [
        "refused process 1 of user 65534 (1 connections so far)",
        "refused process 2 of user 65533 (1 connections so far)",
        f"refused process 1 of user 65534 ({BURST} connections so far)",
    ]
