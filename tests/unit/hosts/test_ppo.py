"""The PPO host: what it promises about its model's calls."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from asys_bench.hosts.ppo import PPOHostProcess, PPOOptions


class CallsPerStep:
    """A clock that notes how often the model was called before each step."""

    should_stop = False

    def __init__(self, model):
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

    def label(self, **labels):
        self.labels.append(labels)


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


def test_each_step_is_labelled_and_its_advantage_follows_when_the_rollout_has_ended():
    options = PPOOptions(total_timesteps=256, n_envs=2, n_steps=64, batch_size=128, n_epochs=1)
    host = PPOHostProcess(options, 0)
    clock = CallsPerStep(host.build())
    host.run(clock)
    buffer = host._model.rollout_buffer
    at_once = [one for one in clock.labels if "reward" in one]
    late = [one for one in clock.labels if "advantage" in one]
    assert [one["step"] for one in at_once] == [one["step"] for one in late] == [*range(0, 256, 2)]
    newest = at_once[64:]

    def flat(label, of):  # as the buffer is once its rows were drawn
        return np.stack([one[label] for one in of]).swapaxes(0, 1).reshape(-1)

    np.testing.assert_array_equal(np.stack([one["reward"] for one in newest]), buffer.rewards)
    np.testing.assert_array_equal(flat("action", newest), buffer.actions.reshape(-1))
    np.testing.assert_array_equal(flat("advantage", late[64:]), buffer.advantages.reshape(-1))
    begins = np.stack([one["done"] for one in newest])[:-1]
    np.testing.assert_array_equal(begins, buffer.episode_starts[1:])
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
        for one in clock.labels:
            for env, episode in enumerate(one.get("episode", ())):
                seen.setdefault(int(episode), []).append((one["step"], env))
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
