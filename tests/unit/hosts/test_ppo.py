"""The PPO host: what it promises about its model's calls."""

from __future__ import annotations

import pytest

pytest.importorskip("stable_baselines3")

from asys_bench.hosts.ppo import PPOHostProcess, PPOOptions


class CallsPerStep:
    """A clock that notes how often the model was called before each step."""

    should_stop = False

    def __init__(self, model):
        self.calls, self.found, self.updates = 0, [], 0
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
