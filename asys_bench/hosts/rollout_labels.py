"""Labels of a stable-baselines3 rollout: reward, done, episode and action of each step, and the advantage,
which is known when the rollout has ended.

What steps tell is held until then, because a packet costs the host more than what is in it: a rollout of at
most `HELD_STEPS` steps is one packet. Longer ones send what they hold so often, and in any case before
half of `labels.horizon` has passed.

Rows of a rollout's forward call are the environments. Calls of the gradient steps see rows of the rollout
again in a random order and are not labelled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)
MOST_ACTIONS = 16
"""Numbers of an action that are labels, `action_0` and so on; of a longer one there are none."""
HELD_STEPS = 64
"""Of the environments; a host that is killed loses the labels of so many at most."""


class RolloutLabels:
    """Of one learning; nothing it does raises.

    label: `contracts.host.HostClock.label`. horizon: `HostClock.label_horizon`.
    columns: keys of the environments' info that are labels too.
    """

    def __init__(
        self, label: Callable[..., None], horizon: int, columns: Sequence[str] = ()
    ) -> None:
        self.label, self.horizon, self.columns = label, horizon, columns
        self._episodes = np.zeros(0, dtype=np.int64)
        self._next_episode = 0
        self._steps: list[int] = []
        """Of this rollout."""
        self._held: list[int] = []
        """The last of them, whose labels were not sent."""
        self._values: dict[str, npt.NDArray[Any]] = {}
        """[HELD_STEPS, environments]: the labels of those."""
        self._failed = False

    def stepped(self, step: int, seen: Mapping[str, Any]) -> None:
        """The environments have made a step, from host step `step` on.

        seen: the locals of SB3's `collect_rollouts`.
        """
        if self.horizon:
            self._tried(self._stepped, step, seen)

    def ended(self, model: Any) -> None:
        """The rollout has ended."""
        if self.horizon:
            self._tried(self._ended, model)

    def flush(self) -> None:
        """The learning ends, perhaps within a rollout. Idempotent."""
        self._tried(self._flush)
        self._steps = []

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
        labels: dict[str, npt.NDArray[Any]] = {
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
                try:
                    labels[name] = np.asarray(found)
                except ValueError:  # of several lengths: refused with a reason
                    self.label(step=step, **{name: found})
        self._hold(step, labels)
        if True in done_N.tolist():  # cheaper than `any` of a few
            self._episodes = self._episodes.copy()
            self._episodes[done_N] = self._new(int(done_N.sum()))

    def _hold(self, step: int, labels: Mapping[str, npt.NDArray[Any]]) -> None:
        values = self._values
        if len(self._held) == HELD_STEPS:
            self._flush()
        if len(values) != len(labels) or not all(
            name in values
            and values[name].dtype == value.dtype
            and values[name].shape[1:] == value.shape
            for name, value in labels.items()
        ):
            self._flush()
            values = self._values = {
                name: np.empty((HELD_STEPS, *value.shape), value.dtype)
                for name, value in labels.items()
            }
        place = len(self._held)
        for name, value in labels.items():
            values[name][place] = value
        self._held.append(step)
        self._steps.append(step)
        self.label(step=step)
        if step + len(labels["done"]) - self._held[0] >= self.horizon // 2:
            self._flush()

    def _ended(self, model: Any) -> None:
        steps, self._steps = self._steps, []
        buffer = getattr(model, "rollout_buffer", None)
        advantages_TN = getattr(buffer, "advantages", None)
        if advantages_TN is None or len(advantages_TN) != len(steps):  # of another algorithm
            self._flush()
        elif len(self._held) == len(steps):
            self._flush(advantage=advantages_TN)
        else:
            self._flush()
            self.label(step=steps, advantage=advantages_TN)

    def _flush(self, **more: npt.NDArray[Any]) -> None:
        steps, self._held = self._held, []
        if steps:
            labels = {name: values[: len(steps)] for name, values in self._values.items()}
            self.label(step=steps, **labels, **more)

    def _new(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        first, self._next_episode = self._next_episode, self._next_episode + count
        return np.arange(first, self._next_episode)
