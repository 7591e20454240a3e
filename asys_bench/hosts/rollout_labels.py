"""Labels of a stable-baselines3 rollout: reward, done, episode and action as a step is made, the advantage
when the rollout has ended.

Rows of a rollout's forward call are the environments. Calls of the gradient steps see rows of the rollout
again in a random order and are not labelled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

log = logging.getLogger(__name__)
MOST_ACTIONS = 16
"""Numbers of an action that are labels, `action_0` and so on; of a longer one there are none."""


class RolloutLabels:
    """Of one learning; nothing it does raises.

    label: `contracts.host.HostClock.label`. columns: keys of the environments' info that are labels too.
    """

    def __init__(self, label: Callable[..., None], columns: Sequence[str] = ()) -> None:
        self.label, self.columns = label, columns
        self._episodes = np.zeros(0, dtype=np.int64)
        self._next_episode = 0
        self._steps: list[int] = []
        self._failed = False

    def stepped(self, step: int, seen: Mapping[str, Any]) -> None:
        """The environments have made a step, from host step `step` on.

        seen: the locals of SB3's `collect_rollouts`.
        """
        self._tried(self._stepped, step, seen)

    def ended(self, model: Any) -> None:
        """The rollout has ended."""
        self._tried(self._ended, model)

    def state(self) -> dict[str, Any]:
        """Numbers of the episodes that go on, as JSON."""
        return {"episodes": self._episodes.tolist(), "next": self._next_episode}

    def go_on(self, state: Mapping[str, Any] | None, *, same_episodes: bool) -> None:
        """After a resume: no number of an episode comes twice.

        same_episodes: those that went on then go on now.
        """
        if state is None:
            return
        self._next_episode = int(state["next"])
        if same_episodes:
            self._episodes = np.array(state["episodes"], dtype=np.int64)

    def _tried(self, action: Callable[..., None], *arguments: Any) -> None:
        if self._failed:
            return
        try:
            action(*arguments)
        except Exception as error:  # noqa: BLE001 - nothing of ours may reach the host
            self._failed = True
            log.warning(
                "rollouts are not labelled any more, after %s: %s", type(error).__name__, error
            )

    def _stepped(self, step: int, seen: Mapping[str, Any]) -> None:
        done_N = np.asarray(seen["dones"], dtype=bool)
        if len(self._episodes) != len(done_N):
            self._episodes = self._new(len(done_N))
        labels: dict[str, Any] = {
            "reward": np.asarray(seen["rewards"], dtype=np.float32),
            "done": done_N,
            "episode": self._episodes,
        }
        actions = seen.get("actions")
        if actions is not None:
            actions_NA = np.asarray(actions)
            if actions_NA.ndim == 1:
                labels["action"] = actions_NA
            elif actions_NA.ndim == 2 and actions_NA.shape[1] <= MOST_ACTIONS:
                labels |= {f"action_{n}": actions_NA[:, n] for n in range(actions_NA.shape[1])}
        for name in self.columns:
            found = [info.get(name) for info in seen.get("infos", ())]
            if found and all(one is not None for one in found):
                labels[name] = found
        self.label(step=step, **labels)
        self._steps.append(step)
        if True in done_N.tolist():  # cheaper than `any` of a few
            self._episodes = self._episodes.copy()
            self._episodes[done_N] = self._new(int(done_N.sum()))

    def _ended(self, model: Any) -> None:
        steps, self._steps = self._steps, []
        buffer = getattr(model, "rollout_buffer", None)
        advantages_TN = getattr(buffer, "advantages", None)
        if advantages_TN is None or len(advantages_TN) != len(steps):
            return  # of another algorithm
        for step, advantage_N in zip(steps, advantages_TN, strict=True):
            self.label(step=step, advantage=advantage_N)

    def _new(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        first, self._next_episode = self._next_episode, self._next_episode + count
        return np.arange(first, self._next_episode)
