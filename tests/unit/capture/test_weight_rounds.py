"""Parameters and their updates: every so many steps, a little at each, and nothing that the host notices."""

from __future__ import annotations

import itertools

import pytest
import torch

from asys_bench.capture.points.hookpoints import HookError
from asys_bench.contracts.packet import Kind
from asys_bench.sinks.decoding import Decoder


def mlp():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))


def rows_by_step(observed, name):
    """host step -> {row of the parameter: values}, of what is on the bus."""
    decode = Decoder(observed.bus.name_of)
    found: dict[int, dict[int, torch.Tensor]] = {}
    while True:
        with observed.bus.pull_batch("g", 64, timeout_s=0.1) as lease:
            if not len(lease):
                return found
            for packet in lease:
                if observed.bus.name_of(packet.hook_id) != name:
                    continue
                values = decode(packet).clone()
                rows = decode.rows(packet)
                for row, value in zip(rows.tolist(), values, strict=True):
                    assert row not in found.setdefault(packet.host_step, {})
                    found[packet.host_step][row] = value


def train(model, observed, steps):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    weights = [model[0].weight.detach().clone()]
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((4, 8), 0.1 * step + 0.1)).square().mean().backward()
        optimizer.step()
        if observed is not None:
            observed.clock.step()
        weights.append(model[0].weight.detach().clone())
    return weights


def test_a_round_holds_every_row_as_it_was_at_its_step(rig):
    model = mlp()
    observed = rig(model, {"match": "0", "capture": "parameter", "every": 3})
    weights = train(model, observed, 7)
    found = rows_by_step(observed, "0.weight:value")
    assert sorted(found) == [0, 3, 6]
    for step, rows in found.items():
        assert torch.equal(torch.stack([rows[row] for row in range(32)]), weights[step])


def test_updates_are_the_change_over_a_round(rig):
    model = mlp()
    observed = rig(model, {"match": "0", "capture": ["parameter", "update"], "every": 2})
    weights = train(model, observed, 6)
    found = rows_by_step(observed, "0.weight:update")
    assert sorted(found) == [2, 4, 6], "of the first round nothing is known"
    for step, rows in found.items():
        update = torch.stack([rows[row] for row in range(32)])
        assert torch.equal(update, weights[step] - weights[step - 2])


def test_a_step_copies_no_more_than_it_may(rig):
    model = mlp()
    mib = 8 * 8 * 4 / (1 << 20)  # eight rows of the first weight
    rule = {"match": "0", "capture": "parameter", "every": 5, "mib_per_step": mib}
    observed = rig(model, rule)
    weights = train(model, observed, 4)
    found = rows_by_step(observed, "0.weight:value")
    assert [len(found[step]) for step in range(4)] == [8, 8, 8, 8]
    for step in range(4):
        for row, value in found[step].items():
            assert torch.equal(value, weights[step][row])


def test_a_round_that_takes_longer_than_every_is_followed_by_the_next(rig):
    model = mlp()
    mib = 8 * 8 * 4 / (1 << 20)
    rule = {"match": "0", "capture": "parameter", "every": 1, "mib_per_step": mib}
    observed = rig(model, rule)
    train(model, observed, 10)
    found = rows_by_step(observed, "0.weight:value")
    assert sorted(found[0]) == list(range(8))
    steps = sorted(step for step, rows in found.items() if 0 in rows)
    assert steps[0] == 0
    assert all(later - earlier >= 4 for earlier, later in itertools.pairwise(steps))


def test_a_convolution_is_sent_channel_by_channel(rig):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 2))
    mib = 2 * 12 * 4 / (1 << 20)
    observed = rig(model, {"match": "0", "capture": "parameter", "mib_per_step": mib})
    for _ in range(6):
        observed.clock.step()
    found = rows_by_step(observed, "0.weight:value")
    rows = {row: value for step in found.values() for row, value in step.items()}
    whole = model[0].weight.detach().movedim(1, -1).reshape(-1, 3)
    assert torch.equal(torch.stack([rows[row] for row in range(20)]), whole)


def test_the_training_is_bit_identical(rig):
    alone = mlp()
    train(alone, None, 8)
    watched = mlp()
    capture = ["parameter", "update", "parameter_gradient", "activation"]
    observed = rig(watched, {"match": "[02]", "capture": capture, "every": 2})
    train(watched, observed, 8)
    for one, other in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)
        assert other.grad is not None


def test_every_call_is_accounted_for(rig):
    model = mlp()
    observed = rig(model, {"match": "0", "capture": ["parameter", "update"], "every": 2})
    train(model, observed, 6)
    for name in ("0.weight:value", "0.weight:update", "0.bias:value", "0.bias:update"):
        assert observed.is_accounted_for(name)
        assert observed.value("captured", name) == (4 if name.endswith("value") else 3)


def test_streams_say_what_they_are(rig):
    observed = rig(mlp(), {"match": "0", "capture": ["parameter", "update"]})
    kinds = {point.name: point.kind for point in observed.points}
    assert kinds["0.weight:value"] is Kind.PARAMETER
    assert kinds["0.weight:update"] is Kind.UPDATE
    assert {p.encoding for p in observed.packets()} == {"part+identity"}


def test_rows_that_a_sampler_would_choose_are_refused(rig):
    rule = {"match": "0", "capture": "parameter", "preprocess": "token_sample"}
    with pytest.raises(HookError, match="take token_sample out"):
        rig(mlp(), rule)


def test_an_encoder_may_follow(rig):
    model = mlp()
    observed = rig(model, {"match": "0", "capture": "parameter", "preprocess": "int8"})
    found = rows_by_step(observed, "0.weight:value")
    whole = torch.stack([found[0][row] for row in range(32)])
    assert torch.allclose(whole, model[0].weight.detach(), atol=0.01)


def test_nothing_is_captured_after_the_hooks_are_gone(rig):
    model = mlp()
    observed = rig(model, {"match": "0", "capture": "parameter", "every": 1})
    observed.hooker.detach()
    observed.packets()
    train(model, observed, 3)
    assert observed.packets() == []
