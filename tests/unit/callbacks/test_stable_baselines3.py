"""The SB3 callback: `num_timesteps`, evaluations left out wherever they are made, one `learn` at a time."""

from __future__ import annotations

import pytest

sb3 = pytest.importorskip("stable_baselines3")

from stable_baselines3.common.callbacks import (  # noqa: E402
    BaseCallback,
    CallbackList,
    EvalCallback,
)
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402
from stable_baselines3.common.monitor import Monitor  # noqa: E402

from asys_bench.callbacks.stable_baselines3 import ObserveCallback  # noqa: E402

gymnasium = pytest.importorskip("gymnasium")
HOOK = "mlp_extractor.policy_net"


def ppo(**options):
    settings = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "seed": 0, "device": "cpu"}
    return sb3.PPO("MlpPolicy", "CartPole-v1", **{**settings, **options})


def environment():
    return Monitor(gymnasium.make("CartPole-v1"))


class Evaluates(BaseCallback):
    """What people write instead of an `EvalCallback`."""

    def _evaluate(self):
        evaluate_policy(self.model, environment(), n_eval_episodes=1, warn=False)

    def _on_rollout_start(self):
        self._evaluate()

    def _on_rollout_end(self):
        self._evaluate()

    def _on_step(self):
        return True


class Fails(BaseCallback):
    def _on_step(self):
        if self.n_calls == 5:
            raise RuntimeError("simulator crashed")
        return True


def steps(observation):
    return [row[0] for row in observation.seen]


def test_learning_goes_on_at_the_models_own_timestep(observations):
    model = ppo()
    callback = ObserveCallback(hooks=HOOK)
    model.learn(8, callback=callback)
    model.learn(8, callback=callback, reset_num_timesteps=False)
    model.learn(8, callback=callback)
    assert [one.first for one in observations] == [0, 8, 0]
    # eight rollout rows, each at the number of steps made before it, and one batch of the gradient step
    assert [steps(one) for one in observations] == [
        [*range(8), 8],
        [*range(8, 16), 16],
        [*range(8), 8],
    ]
    assert observations[1].steps == 16


def test_steps_are_summed_over_environments(observations):
    model = sb3.PPO(
        "MlpPolicy",
        sb3.common.vec_env.DummyVecEnv([environment] * 2),
        n_steps=4,
        batch_size=8,
        n_epochs=1,
        device="cpu",
    )
    model.learn(8, callback=ObserveCallback(hooks=HOOK))
    assert observations[0].seen == [(0, 0, 2), (2, 0, 2), (4, 0, 2), (6, 0, 2), (8, 0, 8)]


def test_rows_of_an_evaluation_before_or_after_the_callback_are_left_out(observations):
    evaluations = [
        EvalCallback(environment(), n_eval_episodes=1, eval_freq=4, verbose=0, warn=False)
        for _ in range(2)
    ]
    callback = ObserveCallback(hooks=HOOK)
    ppo().learn(8, callback=[evaluations[0], callback, evaluations[1], Evaluates()])
    (one,) = observations
    assert one.seen == [(step, 0, 1) for step in range(8)] + [(8, 0, 8)]
    calls, captured, skipped = one.counted
    assert captured == 9
    assert skipped == calls - 9 > 5 * 8  # five and more episodes of eight steps and more


@pytest.mark.parametrize("others", [[], [Evaluates()]], ids=["alone", "beside others"])
def test_rollouts_are_labelled_with_what_the_environments_said(observations, others):
    model = ppo(n_steps=32, batch_size=32)
    callback = ObserveCallback(hooks=HOOK)
    model.learn(32, callback=[*others, callback] if others else callback)
    found = {}
    for step, _, name, values in observations[0].labels:
        found.setdefault(name, {})[step] = values.tolist()
    assert found.keys() == {"reward", "done", "episode", "action", "advantage"}
    buffer = model.rollout_buffer
    for name, expected in (
        ("reward", buffer.rewards), ("advantage", buffer.advantages),
        ("action", buffer.actions),
    ):  # fmt: skip
        assert [found[name][step][0] for step in range(32)] == [*expected.flat]
    assert [step for step in range(32) if found["done"][step] == [1.0]] == [
        step - 1 for step in range(1, 32) if found["episode"][step] != found["episode"][step - 1]
    ]


@pytest.mark.parametrize("archive", [True, False])
def test_rollouts_are_read_where_some_sink_takes_labels_alone(observations, monkeypatch, archive):
    read = []
    for name in ("stepped", "ended", "flush"):
        monkeypatch.setattr(
            f"asys_bench.callbacks.stable_baselines3.RolloutLabels.{name}",
            lambda *arguments, name=name: read.append(name),
        )
    ppo().learn(8, callback=ObserveCallback(hooks=HOOK, archive=archive))
    assert read == (["stepped"] * 8 + ["ended", "flush"] if archive else [])
    assert steps(observations[0]) == [*range(8), 8]


def test_an_evaluation_is_captured_when_asked_for(observations):
    """And one observation of each kind leaves nothing behind in the callbacks that it shares."""
    watching = [ObserveCallback(hooks=HOOK, during=d) for d in ("training", "validation", "all")]
    together = CallbackList([*watching, Evaluates()])
    ppo().learn(8, callback=together)
    training, validation, everything = (one.counted for one in observations)
    calls = everything[0]
    assert calls > 9 + 2 * 8  # two episodes and more of eight steps and more
    assert everything == (calls, calls, 0)
    assert training == (calls, 9, calls - 9)
    assert validation == (calls, calls - 9, 9)
    assert not [name for name in vars(together) if name.startswith(("on_", "_asys"))]


def test_learning_is_the_same_with_and_without_it(observations):
    plain = ppo()
    plain.learn(16, callback=Evaluates())
    watched = ppo()
    watched.learn(16, callback=[Evaluates(), ObserveCallback(hooks=HOOK)])
    assert len(observations) == 1
    for ours, theirs in zip(watched.policy.parameters(), plain.policy.parameters(), strict=True):
        assert ours.equal(theirs)


def test_off_policy_learning_counts_its_own_steps(observations):
    model = sb3.DQN(
        "MlpPolicy",
        "CartPole-v1",
        learning_starts=0,
        train_freq=4,
        batch_size=8,
        buffer_size=64,
        exploration_initial_eps=0.0,
        exploration_final_eps=0.0,
        device="cpu",
    )
    model.learn(4, callback=[Evaluates(), ObserveCallback(hooks="q_net.q_net.0")])
    assert [row for row in observations[0].seen if row[2] == 1] == [(s, 0, 1) for s in range(4)]
    assert {row[0] for row in observations[0].seen if row[2] == 8} == {4}


def test_a_callback_that_is_used_again_after_a_failure_observes_the_new_policy(observations):
    """The case that was archived under the old policy: nothing after the first failure came."""
    callback = ObserveCallback(hooks=HOOK)
    together = CallbackList([callback, Evaluates(), Fails()])
    first, second = ppo(), ppo()
    with pytest.raises(RuntimeError, match="simulator crashed"):
        first.learn(16, callback=together)
    assert not observations[0].closed, "nobody has told it yet"
    second.learn(8, callback=callback)
    assert observations[0].closed
    assert not first.policy.get_submodule(HOOK)._forward_hooks
    assert callback.observation is observations[1]
    assert callback.observation._model is second.policy
    assert steps(observations[1]) == [*range(8), 8]
    assert "on_step" not in vars(together)


def test_a_learn_within_a_learn_takes_the_callback_with_it(observations, caplog):
    callback = ObserveCallback(hooks=HOOK)
    inner = ppo()

    class Nested(BaseCallback):
        def _on_step(self):
            if self.n_calls == 3:
                inner.learn(8, callback=callback)
            return True

    outer = ppo()
    outer.learn(16, callback=[callback, Nested()])
    outside, inside = observations
    assert outside.closed
    assert inside.closed
    assert steps(outside) == [0, 1, 2]
    assert inside._model is inner.policy
    assert steps(inside) == [*range(8), 8]
    assert "now observes another training" in caplog.text


def test_an_observation_that_somebody_closes_ends_alone(observations):
    class Closes(BaseCallback):
        def _on_step(self):
            if self.n_calls == 5:
                callback.observation.close()
            return True

    callback = ObserveCallback(hooks=HOOK)
    model = ppo()
    model.learn(16, callback=[callback, Closes()])
    assert model.num_timesteps == 16
    assert steps(observations[0]) == [*range(5)]
