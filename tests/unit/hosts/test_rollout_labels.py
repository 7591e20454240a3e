"""What SB3's rollouts are labelled with: each step once, as it was when it was made, in few packets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from asys_bench.hosts import rollout_labels
from asys_bench.hosts.rollout_labels import (
    HELD_S,
    HELD_STEPS,
    MANY_ENVIRONMENTS,
    MOST_HELD_STEPS,
    RolloutLabels,
)


class Sent:
    """In the place of a clock's `label`: values by name and step, and the calls."""

    def __init__(self):
        self.values, self.calls = {}, []

    def __call__(self, *, step, **labels):
        if not labels:
            return
        self.calls.append((step, tuple(labels)))
        steps = step if isinstance(step, list) else [step]
        for name, value in labels.items():
            rows = value if isinstance(step, list) else [value]
            assert len(rows) == len(steps)
            for one, row in zip(steps, rows, strict=True):
                assert one not in self.values.setdefault(name, {})
                self.values[name][one] = row if isinstance(row, list) else row.tolist()


def seen(rewards, dones, actions=None, infos=()):
    found = {"rewards": rewards, "dones": dones, "infos": infos}
    return found if actions is None else {**found, "actions": actions}


class Buffer:
    def __init__(self, advantages):
        self.rollout_buffer = self
        self.advantages = advantages


def test_environments_that_use_their_memory_again_change_no_label():
    labels = RolloutLabels(sent := Sent(), 10_000)
    rewards, dones, actions = np.zeros(2, np.float32), np.zeros(2, bool), np.zeros(2, np.int64)
    for step in range(5):
        rewards[:], actions[:], dones[:] = step, -step, step == 2
        labels.stepped(2 * step, seen(rewards, dones, actions))
    labels.flush()
    assert sent.values["reward"] == {2 * n: [n, n] for n in range(5)}
    assert sent.values["action"] == {2 * n: [-n, -n] for n in range(5)}
    assert sent.values["done"] == {2 * n: [n == 2] * 2 for n in range(5)}
    assert [sent.values["episode"][2 * n] for n in range(5)] == [[0, 1]] * 3 + [[2, 3]] * 2


@pytest.fixture
def slow(monkeypatch):
    """Each block takes longer than one that grows."""
    clock = itertools.count(0, 2 * HELD_S)
    monkeypatch.setattr(rollout_labels, "monotonic", lambda: next(clock))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(rollout_labels, "monotonic", lambda: 0.0)


def rollout(labels, first, steps, environments=1):
    """Its advantages are its steps' numbers."""
    numbers = range(first, first + steps * environments, environments)
    for step in numbers:
        values = np.full(environments, step, np.float32), np.zeros(environments, bool)
        labels.stepped(step, seen(*values))
    advantages = np.array(numbers, np.float32)[:, None] + np.zeros(environments, np.float32)
    labels.ended(Buffer(advantages))
    advantages[:] = np.nan  # the next rollout writes over them
    return first + steps * environments


def test_blocks_of_a_quick_host_grow_and_those_of_a_slow_one_shrink(quick, monkeypatch):
    labels = RolloutLabels(sent := Sent(), 1 << 20)
    for step in range(2000):
        labels.stepped(step, seen(np.ones(1), np.zeros(1, bool)))
    assert [len(steps) for steps, _ in sent.calls] == [64, 128, 256, 512, 512, 512]
    clock = itertools.count(10, 2 * HELD_S)
    monkeypatch.setattr(rollout_labels, "monotonic", lambda: next(clock))
    for step in range(2000, 4000):
        labels.stepped(step, seen(np.ones(1), np.zeros(1, bool)))
    sizes = [len(steps) for steps, _ in sent.calls[6:]]
    assert sizes[:4] == [512, 256, 128, HELD_STEPS]
    assert set(sizes[4:]) == {HELD_STEPS}
    assert len(sent.values["reward"]) == sum(len(steps) for steps, _ in sent.calls)


def test_blocks_of_many_environments_stay_small(quick):
    labels = RolloutLabels(sent := Sent(), 1 << 20)
    for step in range(0, 400 * 64, 64):
        labels.stepped(step, seen(np.ones(64), np.zeros(64, bool)))
    assert {len(steps) for steps, _ in sent.calls} == {HELD_STEPS}


def test_several_rollouts_are_one_packet_each_with_its_own_advantages(quick):
    labels, at = RolloutLabels(sent := Sent(), 1 << 20), 0
    for _ in range(60):
        at = rollout(labels, at, 32, environments=8)
    labels.flush()
    steps = range(0, 60 * 32 * 8, 8)
    assert sent.values["advantage"] == {step: [float(step)] * 8 for step in steps}
    assert sent.values["reward"] == sent.values["advantage"]
    sizes = [len(steps) for steps, _ in sent.calls]
    assert sizes[:4] == [64, 128, 256, MOST_HELD_STEPS]
    assert all("advantage" in names for _, names in sent.calls)


def test_a_block_that_ends_within_a_rollout_has_the_whole_ones_before_it(quick):
    labels = RolloutLabels(sent := Sent(), 80)  # half of it is 40 steps
    at = rollout(labels, 0, 30)
    at = rollout(labels, at, 30)
    labels.flush()
    assert [(len(steps), "advantage" in names) for steps, names in sent.calls] == [
        (30, True), (10, False), (20, False), (30, True)
    ]  # fmt: skip
    assert sent.values["advantage"] == {step: [float(step)] for step in range(at)}
    assert sent.values["reward"].keys() == set(range(at))


def test_rollouts_without_advantages_do_not_end_a_block():
    labels = RolloutLabels(sent := Sent(), 1 << 20)
    for step in range(HELD_STEPS):
        labels.stepped(step, seen(np.ones(1), np.zeros(1, bool)))
        if step % 4 == 3:
            labels.ended(object())
    assert sent.calls == []
    labels.flush()
    assert [len(steps) for steps, _ in sent.calls] == [HELD_STEPS]


@pytest.mark.parametrize(("steps", "packets"), [(HELD_STEPS, 1), (HELD_STEPS + 1, 3), (200, 5)])
def test_a_rollout_is_few_packets_and_its_advantages_come_with_it(slow, steps, packets):
    labels = RolloutLabels(sent := Sent(), 10_000)
    for step in range(steps):
        labels.stepped(step, seen(np.ones(1), np.zeros(1, bool), np.zeros(1)))
    labels.ended(Buffer(np.arange(steps, dtype=np.float32)[:, None]))
    assert len(sent.calls) == packets
    assert sent.values["advantage"] == {n: [n] for n in range(steps)}
    assert sent.values["reward"].keys() == set(range(steps))


@pytest.mark.parametrize("horizon", [1, 2, 7, 50])
def test_no_label_is_sent_after_half_of_the_horizon(horizon):
    now = 0
    late = []

    def label(*, step, **values):
        if values:
            late.extend(now - one for one in step)

    labels = RolloutLabels(label, horizon)
    for step in range(0, 400, 4):  # four environments
        now = step
        labels.stepped(step, seen(np.ones(4), np.zeros(4, bool)))
    labels.flush()
    assert len(late) == 100
    assert max(late) <= horizon // 2


def test_steps_of_several_shapes_are_several_packets():
    labels = RolloutLabels(sent := Sent(), 10_000)
    for step in range(6):
        width = 2 if step < 3 else 3
        labels.stepped(step, seen(np.full(width, step), np.zeros(width, bool)))
    labels.ended(Buffer(np.arange(6.0)))
    assert [len(step) for step, _ in sent.calls] == [3, 3, 6]
    assert sent.values["advantage"][4] == 4.0
    assert sent.values["reward"] == {n: [n] * (2 if n < 3 else 3) for n in range(6)}
    two, three = [0, 1], [2, 3, 4]
    assert sent.values["episode"] == {n: two if n < 3 else three for n in range(6)}


@pytest.mark.parametrize("width", [3, 17])
def test_actions_of_several_numbers_are_labels_each_unless_they_are_many(width):
    labels = RolloutLabels(sent := Sent(), 10_000)
    for step in range(3):
        labels.stepped(step, seen(np.ones(1), np.zeros(1, bool), np.arange(width)[None] + step))
    labels.flush()
    names = {f"action_{n}" for n in range(width)} if width < 17 else set()
    assert set(sent.values) == {"reward", "done", "episode"} | names
    for n in range(len(names)):
        assert sent.values[f"action_{n}"] == {step: [n + step] for step in range(3)}


def test_columns_of_the_infos_are_labels_where_every_environment_says_them():
    labels = RolloutLabels(sent := Sent(), 10_000, columns=["won", "path"])
    info = {"won": 0.0}
    for step in range(4):
        info["won"] = float(step)  # an environment that uses its dictionary again
        other = {"won": 1.0, "path": "ab"} if step != 2 else {}
        labels.stepped(step, seen(np.ones(2), np.zeros(2, bool), infos=[info, other]))
    labels.flush()
    assert sent.values["won"] == {0: [0.0, 1.0], 1: [1.0, 1.0], 3: [3.0, 1.0]}
    assert "path" not in sent.values


def test_a_column_of_several_lengths_goes_out_as_it_is_and_is_refused_there():
    labels = RolloutLabels(sent := Sent(), 10_000, columns=["path"])
    infos = [{"path": [1.0]}, {"path": [1.0, 2.0]}]
    labels.stepped(7, seen(np.ones(2), np.zeros(2, bool), infos=infos))
    labels.flush()
    assert (7, ("path",)) in sent.calls
    assert sent.values["reward"] == {7: [1.0, 1.0]}


def test_numbers_of_episodes_go_on_after_a_resume():
    first = RolloutLabels(Sent(), 10_000)
    for step in range(3):
        first.stepped(step, seen(np.ones(2), np.array([step == 1, False])))
    state = first.state()
    assert state == {"episodes": [2, 1], "next": 3}
    again = RolloutLabels(sent := Sent(), 10_000)
    again.go_on(state, same_episodes=True)
    again.stepped(3, seen(np.ones(2), np.array([True, False])))
    again.stepped(4, seen(np.ones(2), np.zeros(2, bool)))
    again.flush()
    assert sent.values["episode"] == {3: [2, 1], 4: [3, 1]}


def test_an_error_ends_the_labels_and_nothing_else(caplog):
    labels = RolloutLabels(sent := Sent(), 10_000)
    labels.stepped(0, {"rewards": np.ones(1)})
    labels.stepped(1, seen(np.ones(1), np.zeros(1, bool)))
    labels.ended(object())
    labels.flush()
    assert sent.calls == []
    assert "rollouts are not labelled any more, after KeyError" in caplog.text


@pytest.mark.parametrize(
    ("environments", "wanted", "noted"),
    [(MANY_ENVIRONMENTS, True, 3), (MANY_ENVIRONMENTS, False, 0), (MANY_ENVIRONMENTS - 1, True, 0)],
)
def test_calls_of_many_rows_are_noted_where_hooks_leave_many_out(environments, wanted, noted):
    asked = []

    def label(*, step, **values):
        if not values:
            asked.append(step)

    labels = RolloutLabels(label, 1 << 20, notes_calls=lambda: wanted)
    for step in range(3):
        values = np.zeros(environments), np.zeros(environments, bool)
        labels.stepped(step * environments, seen(*values))
    assert asked == [step * environments for step in range(noted)]
