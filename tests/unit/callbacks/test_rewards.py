"""Rewards of completions: kept as reward functions give them, found by tokens, absent where not clear."""

from __future__ import annotations

import asyncio
import functools
import math

import pytest
import torch

from asys_bench.callbacks.rewards import CompletionRewards, label_of


def short(completion_ids, **_):
    return [float(len(ids)) for ids in completion_ids]


def batch(*rows):
    """(prompt, completion) pairs as TRL calls the model: padded, with targets for the completion alone."""
    width = max(len(prompt) + len(own) for prompt, own in rows)
    ids, targets = (
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.full((len(rows), width), -100),
    )
    for index, (prompt, own) in enumerate(rows):
        end = len(prompt) + len(own)
        ids[index, :end] = torch.tensor([*prompt, *own])
        targets[index, len(prompt) : end] = torch.tensor(own)
    return {"input_ids": ids, "labels": targets}


def test_a_completion_has_its_reward_in_whatever_order_and_whatever_prompt():
    rewards = CompletionRewards()
    kept = rewards.observe(short)
    assert kept(prompts=["a", "b"], completion_ids=[[5, 6, 7], [5]]) == [3.0, 1.0]
    assert kept.__name__ == "short"
    found = rewards.labels_of(batch(([9, 9], [5]), ([8], [5, 6, 7]), ([8], [1])))
    assert found["reward_short"][:2] == [1.0, 3.0]
    assert math.isnan(found["reward_short"][2])
    assert found["completion"].tolist() == [
        [False, False, True, False], [False, True, True, True], [False, True, False, False]
    ]  # fmt: skip


def test_one_completion_with_two_rewards_has_none_and_the_newest_generation_counts():
    rewards = CompletionRewards()
    answers = [[1.0, 2.0, None], [7.0, 7.0, None]]
    kept = rewards.observe(lambda completion_ids, **_: answers.pop(0))
    kept(completion_ids=[[5], [5], [6]])
    (name,) = [key for key in rewards.labels_of(batch(([1], [5]))) if key != "completion"]
    assert math.isnan(rewards.labels_of(batch(([1], [5])))[name][0])
    kept(completion_ids=[[5], [5], [6]])
    assert rewards.labels_of(batch(([1], [5])))[name] == [7.0]
    assert math.isnan(rewards.labels_of(batch(([1], [6])))[name][0])


def test_asynchronous_functions_are_awaited_and_errors_pass():
    rewards = CompletionRewards()

    async def later(completion_ids, **_):
        return short(completion_ids)

    kept = rewards.observe(later)
    assert asyncio.iscoroutinefunction(kept)
    assert asyncio.run(kept(completion_ids=[[4, 4]])) == [2.0]
    assert rewards.labels_of(batch(([1], [4, 4])))["reward_later"] == [2.0]

    def broken(**_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rewards.observe(broken)(completion_ids=[[1]])


@pytest.mark.parametrize(
    "call", [None, {}, {"input_ids": torch.zeros(2, 3)}, {"input_ids": [1], "labels": [1]}]
)
def test_other_calls_have_no_labels(call):
    rewards = CompletionRewards()
    rewards.observe(short)(completion_ids=[[1]])
    assert rewards.labels_of(call) == {}
    assert CompletionRewards().labels_of(batch(([1], [2]))) == {}


def test_reward_models_are_refused_and_names_are_labels():
    with pytest.raises(TypeError, match="takes reward functions, not Linear"):
        CompletionRewards().observe(torch.nn.Linear(1, 1))
    assert label_of(functools.partial(short)) == "reward_short"
    assert label_of(lambda **_: []) == "reward__lambda_"
