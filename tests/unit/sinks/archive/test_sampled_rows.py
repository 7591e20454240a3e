"""Rows that a sampler kept are archived under their position in the captured tensor."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from asys_bench.contracts.packet import ActivationPacket, Kind

KEPT = np.array([1, 4, 5, 11])


def packet():
    values = torch.arange(8, dtype=torch.float32).reshape(4, 2)
    return ActivationPacket(
        0, 0, 0, 0, Kind.ACTIVATION, torch.float32, (4, 2), 0, 0, 0, 0, bytes(16), 1.0, 0, 0, 100,
        None, values.numpy().data.cast("B"),
    )  # fmt: skip


def test_a_sampled_row_keeps_its_position_and_is_written_once(rig):
    worker = rig.start()
    worker._context = dataclasses.replace(worker._context, rows=lambda packet: KEPT)
    rig.feed(worker, packet())
    rig.feed(worker, packet())
    worker.close()
    again = rig.start(incarnation=1)
    again._context = dataclasses.replace(again._context, rows=lambda packet: KEPT)
    rig.feed(again, packet())
    again.close()
    (shard,) = rig.shards()
    table = rig.table(shard)
    assert table.column("row").to_pylist() == KEPT.tolist()
    assert table.column("token_position").to_pylist() == (KEPT + 100).tolist()
