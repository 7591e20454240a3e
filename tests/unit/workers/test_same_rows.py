"""Two ranks that send the same are told of, and two that do not are not."""

from __future__ import annotations

import logging

import pytest
import torch

from asys_bench.contracts.launch import WorkerSpec
from asys_bench.contracts.packet import ActivationPacket, Kind, tensor_bytes
from asys_bench.workers.same_rows import ENOUGH, SameRows, watches


def packet(source, step, value, hook=0):
    payload = memoryview(bytearray(tensor_bytes(torch.full((3, 4), float(value)))))
    return ActivationPacket(
        0, source, source, hook, Kind.ACTIVATION, torch.float32, (3, 4), step, 1, 0, 1, bytes(16),
        1.0, 0, 0, -1, None, payload,
    )  # fmt: skip


def said(packets, caplog):
    same = SameRows(["mlp", "attention", "tokens"].__getitem__)
    with caplog.at_level(logging.WARNING):
        for pair in zip(packets[::2], packets[1::2], strict=True):
            same.look(pair)
    return caplog.messages


def test_the_same_rows_of_two_ranks_are_said_once(caplog):
    packets = [packet(rank, step, step) for step in range(3 * ENOUGH) for rank in (0, 1)]
    (message,) = said(packets, caplog)
    assert message.startswith("mlp: ranks 0, 1 send the same rows.")
    assert "hooks[].ranks: [0]" in message


def test_on_a_mesh_the_ranks_of_each_tensor_parallel_group_are_named(caplog):
    """Ranks 0 and 1 share a batch, 2 and 3 another one."""
    packets = [
        packet(rank, step, step + 100 * (rank // 2)) for step in range(9) for rank in range(4)
    ]
    (message,) = said(packets, caplog)
    assert message.startswith("mlp: ranks 0, 1 and 2, 3 send the same rows.")
    assert "hooks[].ranks: [0, 2]" in message


def test_ranks_with_data_of_their_own_are_not(caplog):
    packets = [packet(rank, step, step + rank) for step in range(20) for rank in (0, 1)]
    assert said(packets, caplog) == []


def test_a_batch_that_is_the_same_by_chance_is_not(caplog):
    packets = [packet(rank, step, 0 if step < 2 else rank) for step in range(9) for rank in (0, 1)]
    assert said(packets, caplog) == []


def test_each_hook_by_itself_and_no_side_stream(caplog):
    packets = []
    for step in range(3 * ENOUGH):
        for hook in (0, 1, 2):
            packets += [packet(rank, step, rank if hook == 0 else step, hook) for rank in (0, 1)]
    (message,) = said(packets, caplog)
    assert message.startswith("attention: ")


def test_one_rank_is_never_asked(caplog):
    assert said([packet(0, step // 2, 1) for step in range(40)], caplog) == []


@pytest.mark.parametrize(
    ("name", "partition", "looks"),
    [("archive-0", False, True), ("archive-1", False, False), ("trainer-0", True, False)],
)
def test_one_worker_looks(name, partition, looks):
    workers = [
        WorkerSpec(one, "sink", one.partition("-")[0], {})
        for one in ("trainer-0", "archive-0", "archive-1")
    ]
    spec = next(one for one in workers if one.name == name)
    assert watches(spec, workers, partition=partition) is looks
    trainers = workers[:1]
    assert watches(trainers[0], trainers, partition=True)
