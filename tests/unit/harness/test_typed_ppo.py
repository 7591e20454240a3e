"""PPO as a user types it, observed and not in turn: one small round."""

from __future__ import annotations

import pytest

from asys_bench.harness.plugins import scenario_plugin
from asys_bench.harness.scenarios import alternation

from .conftest import round_of

pytest.importorskip("stable_baselines3")


@pytest.mark.rest
def test_blocks_are_observed_in_turn_and_the_account_is_exact(tmp_path, monkeypatch):
    turns, begin = [], alternation.Alternation.begin

    def noted(self):
        begin(self)
        turns.append(self.is_on)

    monkeypatch.setattr(alternation.Alternation, "begin", noted)
    params = {
        "backend": "mp_queue",
        "n_steps": 64,
        "block_rollouts": 1,
        "warmup_rollouts": 1,
        "max_s": 8,  # four blocks on a busy machine too
    }
    found = round_of("typed_ppo", params, tmp_path)
    assert turns[:4] == [False, True, True, False]
    assert 0.01 < found["paired_rate_ratio"] < 10
    assert found.keys() == scenario_plugin("typed_ppo").metrics.keys()
