"""Labels of a stable-baselines3 rollout: reward, done, episode and action of each step, and the advantage,
which is known when the rollout has ended.

What steps tell is held until then, because a packet costs the host more than what is in it: a rollout of at
most `HELD_STEPS` steps is one packet. Longer ones send what they hold so often, and in any case before
half of `labels.horizon` has passed. A step of a small host is shorter than what it takes to fetch code that
the model has driven out of the caches, so a step does no more than keep copies.

Rows of a rollout's forward call are the environments. Calls of the gradient steps see rows of the rollout
again in a random order and are not labelled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)
MOST_ACTIONS = 16
"""Numbers of an action that are labels, `action_0` and so on; of a longer one there are none."""
HELD_STEPS = 64
"""Of the environments; a host that is killed loses the labels of so many at most."""
Array = npt.NDArray[Any]
Column = Array | list[Any]
_NO_COLUMNS: Mapping[str, Column] = {}


class _Step(NamedTuple):
    """What one step tells of N environments.

    rewards, dones: [N]. actions: [N], [N, actions] or something else. columns: [N], or a list of values of
    several lengths.
    """

    number: int
    rewards: Array
    dones: Array
    actions: Array | None
    columns: Mapping[str, Column]


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
        """As of the first step that is held."""
        self._next_episode = 0
        self._steps: list[int] = []
        """Of this rollout."""
        self._held: list[_Step] = []
        """The last of them, whose labels were not sent."""
        self._failed = False

    def stepped(self, step: int, seen: Mapping[str, Any]) -> None:
        """The environments have made a step, from host step `step` on.

        seen: the locals of SB3's `collect_rollouts`.
        """
        if self._failed or not self.horizon:
            return
        try:
            if len(self._held) == HELD_STEPS:
                self._flush()
            actions, held = seen.get("actions"), self._held
            held.append(
                _Step(  # copies: their memory is the environments'
                    step,
                    np.array(seen["rewards"]),
                    np.array(seen["dones"]),
                    None if actions is None else np.array(actions),
                    self._columns_in(seen) if self.columns else _NO_COLUMNS,
                )
            )
            self._steps.append(step)
            self.label(step=step)
            if step + len(held[0].dones) - held[0].number >= self.horizon // 2:
                self._flush()
        except Exception as error:  # noqa: BLE001 - nothing of ours may reach the host
            self._fail(error)

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
        self._tried(self._flush)
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
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        log.warning("rollouts are not labelled any more, after %s: %s", type(error).__name__, error)

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

    def _flush(self, **more: Array) -> None:
        """Send what is held. more: of all that is held, and sent with it where that is one packet."""
        held, self._held = self._held, []
        blocks = [list(block) for _, block in groupby(held, _shapes)]
        if len(blocks) > 1 and more:
            self.label(step=[one.number for one in held], **more)
            more = {}
        for block in blocks:
            steps = [one.number for one in block]
            self.label(step=steps, **self._labels_of(block), **self._columns_of(block), **more)

    def _labels_of(self, block: Sequence[_Step]) -> dict[str, Array]:
        """[steps, N] each, of steps of one shape."""
        dones_SN = _joined([one.dones for one in block]).astype(bool, copy=False)
        labels: dict[str, Array] = {
            "reward": _joined([one.rewards for one in block]).astype(np.float32, copy=False),
            "done": dones_SN,
            "episode": self._episodes_of(dones_SN),
        }
        if block[0].actions is None:
            return labels
        actions_SNA = _joined([one.actions for one in block if one.actions is not None])
        if actions_SNA.ndim == 2:
            labels["action"] = actions_SNA
        elif actions_SNA.ndim == 3 and actions_SNA.shape[2] <= MOST_ACTIONS:
            labels |= {f"action_{n}": actions_SNA[..., n] for n in range(actions_SNA.shape[2])}
        return labels

    def _columns_in(self, seen: Mapping[str, Any]) -> dict[str, Column]:
        """What the environments themselves say in one step."""
        columns: dict[str, Column] = {}
        for name in self.columns:
            found = [info.get(name) for info in seen.get("infos", ())]
            if found and all(one is not None for one in found):
                try:
                    columns[name] = np.array(found)
                except ValueError:
                    columns[name] = found
        return columns

    def _columns_of(self, block: Sequence[_Step]) -> dict[str, Array]:
        """Those that every step has alike, [steps, N]; others go out step by step."""
        columns = {}
        for name in self.columns:
            found = {one.number: one.columns[name] for one in block if name in one.columns}
            arrays = [value for value in found.values() if isinstance(value, np.ndarray)]
            if len(arrays) == len(block) and len({(one.shape, one.dtype) for one in arrays}) == 1:
                columns[name] = _joined(arrays)
                continue
            for step, value in found.items():  # of several lengths: refused with a reason
                self.label(step=step, **{name: value})
        return columns

    def _episodes_of(self, dones_SN: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Of each step. An environment that is done begins another."""
        environments = dones_SN.shape[1]
        if len(self._episodes) != environments:
            self._episodes = self._new(environments)
        episodes_SN = np.empty(dones_SN.shape, dtype=np.int64)
        episodes_SN[:] = self._episodes
        for step in np.flatnonzero(dones_SN.any(axis=1)).tolist():
            dones_N = dones_SN[step]
            self._episodes = self._episodes.copy()
            self._episodes[dones_N] = self._new(int(dones_N.sum()))
            episodes_SN[step + 1 :] = self._episodes
        return episodes_SN

    def _new(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        first, self._next_episode = self._next_episode, self._next_episode + count
        return np.arange(first, self._next_episode)


def _shapes(step: _Step) -> tuple[Any, ...]:
    """Steps of the same are of one packet."""
    return step.rewards.shape, None if step.actions is None else step.actions.shape


def _joined(arrays: Sequence[Array]) -> Array:
    """As `np.stack`, which takes five times as long for many short ones."""
    return np.concatenate(arrays).reshape(len(arrays), *arrays[0].shape)
