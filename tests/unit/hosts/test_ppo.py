"""The PPO host: what it promises about its model's calls."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from asys_bench.hosts import rollout_labels
from asys_bench.hosts.ppo import PPOHostProcess, PPOOptions


class CallsPerStep:
    """A clock that notes how often the model was called before each step."""

    def __init__(self, model, label_horizon=16384, stop_after=None):
        self.label_horizon, self.stop_after = label_horizon, stop_after
        self.calls, self.found, self.updates, self.labels = 0, [], 0, []
        model.register_forward_pre_hook(self._called)

    def _called(self, *_):
        self.calls += 1

    def step(self, n=1):
        self.found.append(self.calls)
        self.calls = 0

    def weights_updated(self):
        self.updates += 1

    def report(self, name, value):
        return None

    @property
    def should_stop(self):
        return self.stop_after is not None and len(self.found) >= self.stop_after

    def label(self, **labels):
        """Values are copied, as they are on their way to the bus."""
        self.labels.append({n: np.array(v) if n != "step" else v for n, v in labels.items()})

    def by_step(self):
        """Step -> label -> values, in the order of the steps."""
        found = {}
        for one in self.labels:
            for name, values_C in one.items():
                if name != "step":
                    for step, value in zip(one["step"], values_C, strict=True):
                        found.setdefault(step, {})[name] = value
        return dict(sorted(found.items()))


def test_the_policy_is_called_once_per_step_as_the_host_says():
    options = PPOOptions(total_timesteps=64, n_envs=2, n_steps=8, batch_size=8, n_epochs=2)
    host = PPOHostProcess(options, 0)
    clock = CallsPerStep(host.build())
    host.run(clock)
    host.close()
    assert PPOHostProcess.one_call_per_step
    assert set(clock.found) == {1}
    assert len(clock.found) == 32
    assert clock.updates == 16
    assert clock.calls == 0, "training does not call the policy as a whole"


@pytest.mark.parametrize(("n_steps", "horizon", "packets"), [
    (64, 16384, [(64, True)] * 2),
    (32, 16384, [(64, True)] * 2),
    (128, 16384, [(64, False), (64, False), (128, True)]),
    (64, 100, [(25, False)] * 2 + [(14, False), (64, True)] + [(25, False)] * 2 + [(14, False), (64, True)]),
])  # fmt: skip
def test_rollouts_are_labelled_in_one_packet_as_long_as_what_is_held_is_no_longer(
    n_steps, horizon, packets, monkeypatch
):
    """(Steps of each, whether it has the advantages); longer ones send earlier, and never too late."""
    seconds = itertools.count()  # blocks do not grow
    monkeypatch.setattr(rollout_labels, "monotonic", lambda: next(seconds))
    options = PPOOptions(total_timesteps=256, n_envs=2, n_steps=n_steps, batch_size=64, n_epochs=1)
    host = PPOHostProcess(options, 0)
    clock = CallsPerStep(host.build(), horizon)
    host.run(clock)
    buffer = host._model.rollout_buffer
    sent = [one for one in clock.labels if len(one) > 1]
    assert [(len(one["step"]), "advantage" in one) for one in sent] == packets
    found = clock.by_step()
    assert [*found] == [*range(0, 256, 2)]
    newest = [found[step] for step in range(256 - 2 * n_steps, 256, 2)]

    def flat(label):  # as the buffer is once its rows were drawn
        return np.stack([one[label] for one in newest]).swapaxes(0, 1).reshape(-1)

    np.testing.assert_array_equal(np.stack([one["reward"] for one in newest]), buffer.rewards)
    np.testing.assert_array_equal(flat("action"), buffer.actions.reshape(-1))
    np.testing.assert_array_equal(flat("advantage"), buffer.advantages.reshape(-1))
    begins = np.stack([one["done"] for one in newest])[:-1]
    np.testing.assert_array_equal(begins, buffer.episode_starts[1:])
    asked = [one["step"] for one in clock.labels if len(one) == 1]
    assert asked == [], "labels of so few rows are sent of every call"
    host.close()


def test_labels_of_a_rollout_that_a_stop_ends_are_sent():
    options = PPOOptions(total_timesteps=256, n_envs=2, n_steps=64, batch_size=64, n_epochs=1)
    host = PPOHostProcess(options, 0)
    clock = CallsPerStep(host.build(), stop_after=10)
    host.run(clock)
    assert [*clock.by_step()] == [*range(0, 20, 2)]
    host.close()


def test_nothing_is_held_where_nobody_wants_labels():
    options = PPOOptions(total_timesteps=32, n_envs=2, n_steps=8, batch_size=8, n_epochs=1)
    host = PPOHostProcess(options, 0)
    clock = CallsPerStep(host.build(), 0)
    host.run(clock)
    assert clock.labels == []
    host.close()


def test_no_two_episodes_have_one_number_also_after_a_resume(tmp_path):
    options = PPOOptions(total_timesteps=256, n_envs=2, n_steps=64, batch_size=128, n_epochs=1)
    seen, folder = {}, tmp_path / "state"
    for attempt in range(2):
        host = PPOHostProcess(
            options.model_copy(update={"total_timesteps": 256 + 256 * attempt}), 0
        )
        clock = CallsPerStep(host.build())
        if attempt:
            assert host.load(folder) == 256
        host.run(clock)
        for step, one in clock.by_step().items():
            for env, episode in enumerate(one["episode"]):
                seen.setdefault(int(episode), []).append((step, env))
        if not attempt:
            folder.mkdir()
            host.save(folder)
        host.close()
    assert len(seen) > 10
    assert sorted(seen) == [*range(len(seen))]
    for rows in seen.values():
        steps, envs = zip(*rows, strict=True)
        assert len(set(envs)) == 1
        assert [*steps] == [*range(steps[0], steps[0] + 2 * len(steps), 2)], "one run of steps"
