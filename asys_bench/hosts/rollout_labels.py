"""Labels of a stable-baselines3 rollout: reward, done, episode and action of each step, and the advantage,
which is known when the rollout has ended.

What steps tell is held, because to send it takes some tenths of a millisecond of the host, however much it
is: a block of at first `HELD_STEPS` steps, which may be of several rollouts and is doubled, up to
`MOST_HELD_STEPS`, while it is over within `HELD_S`. It goes out in any case before half of `labels.horizon`
has passed. A step of a small host is shorter than what it takes to fetch code that the model has driven out
of the caches, so a step does no more than keep the bytes of three arrays; shape and type are those of the
first step of a block, which ends where the number of environments changes.

Rows of a rollout's forward call are the environments. Calls of the gradient steps see rows of the rollout
again in a random order and are not labelled.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

labels_method: Callable[..., Any] | None
"""None: it was not compiled."""
try:
    from asys_bench.contracts.native._steps import labels_method
except ImportError:
    labels_method = None

log = logging.getLogger(__name__)
MOST_ACTIONS = 16
"""Numbers of an action that are labels, `action_0` and so on; of a longer one there are none."""
HELD_STEPS, MOST_HELD_STEPS, MOST_HELD_ROWS = 64, 512, 4096
"""Of the environments; a host that is killed loses the labels of so many at most."""
HELD_S = 0.5
"""A block that took longer is halved, one that took less than half of it doubled."""
MANY_ENVIRONMENTS = 256
"""Labels of fewer rows cost less to send of every call than to tell which calls the hooks have captured."""
Array = npt.NDArray[Any]
Column = Array | list[Any]
_AT_ONCE = -1


class _Form(NamedTuple):
    """What an array of each step is: bytes of a block's steps are [steps, *shape] of it."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: Any) -> _Form | None:
        """None: there is none, or its bytes are no numbers."""
        if array is None:
            return None
        array = np.asarray(array)
        return None if array.dtype.kind == "O" else cls(array.dtype, array.shape)

    def joined(self, held: Sequence[bytes]) -> Array:
        """[steps, *shape]. Raises ValueError: a step's array was another."""
        array: Array = np.frombuffer(bytearray().join(held), self.dtype).reshape(
            len(held), *self.shape
        )
        return array


def _always() -> bool:
    return True


class RolloutLabels:
    """Of one learning; nothing it does raises.

    label: `contracts.host.HostClock.label`. horizon: `HostClock.label_horizon`.
    columns: keys of the environments' info that are labels too.
    notes_calls: whether `label` without labels has to be called at each step (as `StepClock.notes_calls`);
        asked once per block.

    `stepped` is compiled where that can be (`contracts/native/steps_module.cpp`).
    """

    __slots__ = (
        "_advantages", "_asks", "_began", "_columns", "_environments", "_episodes", "_failed", "_forms",
        "_full_at", "_held", "_late_at", "_next_episode", "_notes", "_size", "_steps", "_until", "_whole",
        "columns", "horizon", "label",
    )  # fmt: skip

    def __init__(
        self,
        label: Callable[..., None],
        horizon: int,
        columns: Sequence[str] = (),
        notes_calls: Callable[[], bool] = _always,
    ) -> None:
        self.label, self.horizon, self.columns = label, horizon, columns
        self._asks, self._notes = notes_calls, True
        self._episodes = np.zeros(0, dtype=np.int64)
        """As of the first step that is held."""
        self._next_episode = 0
        self._steps: list[int] = []
        """Of this rollout, whose labels were sent."""
        self._held: list[tuple[int, bytes, bytes, bytes]] = []
        """Those that were not, of whole rollouts before it and of it: step, rewards, dones, actions."""
        self._advantages: list[Array] = []
        self._whole = 0
        """Of the rollouts that the first so many of these are of."""
        self._size, self._began = HELD_STEPS, math.nan
        """Steps of a block, and when this one began, in seconds; NaN: there was none."""
        self._columns: dict[int, Mapping[str, Column]] = {}
        self._forms: tuple[_Form | None, ...] = ()
        self._environments = 0
        self._full_at = self._late_at = _AT_ONCE
        """Steps from which a block is full, and from which it is sent at once."""
        self._until = _AT_ONCE
        """Steps below it are kept and nothing else."""
        self._failed = False

    def stepped(self, step: int, seen: Mapping[str, Any]) -> None:
        """The environments have made a step, from host step `step` on.

        seen: the locals of SB3's `collect_rollouts`.
        """
        self._stepped(step, seen)

    def _stepped(self, step: int, seen: Mapping[str, Any]) -> None:
        if self._failed or not self.horizon:
            return
        try:
            rewards, dones, actions = seen["rewards"], seen["dones"], seen.get("actions")
            if step >= self._full_at or len(dones) != self._environments:
                self._begin(step, rewards, dones, actions)
            kept = b"" if actions is None else actions.tobytes()
            self._held.append(
                (step, rewards.tobytes(), dones.tobytes(), kept)
            )  # copies: it is theirs
            if self.columns:
                self._columns[step] = self._columns_in(seen)
            if self._notes:
                self.label(step=step)
            if step >= self._late_at:
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
        self._failed, self._until = True, _AT_ONCE
        log.warning("rollouts are not labelled any more, after %s: %s", type(error).__name__, error)

    def _begin(self, step: int, rewards: Any, dones: Any, actions: Any) -> None:
        """A block begins, with the arrays of its first step."""
        self._flush()
        now = monotonic()
        if now - self._began < HELD_S / 2:
            self._size = min(MOST_HELD_STEPS, 2 * self._size)
        elif now - self._began > HELD_S:
            self._size = max(HELD_STEPS, self._size // 2)
        self._began = now
        self._environments = environments = len(dones)
        self._forms = _Form.of(rewards), _Form.of(dones), _Form.of(actions)
        self._full_at = step + self._steps_of_a_block * environments
        self._late_at = step + self.horizon // 2 - environments
        self._notes = environments >= MANY_ENVIRONMENTS and self._asks()
        is_more = self._notes or self.columns or actions is None
        self._until = _AT_ONCE if is_more else min(self._full_at, self._late_at)

    @property
    def _steps_of_a_block(self) -> int:
        return max(HELD_STEPS, min(self._size, MOST_HELD_ROWS // max(1, self._environments)))

    def _ended(self, model: Any) -> None:
        own = len(self._held) - self._whole
        steps = [*self._steps, *(one[0] for one in self._held[self._whole :])]
        buffer = getattr(model, "rollout_buffer", None)
        advantages_TN = getattr(buffer, "advantages", None)
        if advantages_TN is None:  # of another algorithm, whose rollouts may be of one step
            pass
        elif len(advantages_TN) != len(steps):
            self._flush()
        elif own and not self._steps:
            self._advantages.append(np.array(advantages_TN))  # the next rollout writes over them
            self._whole = len(self._held)
            if self._whole + own > self._steps_of_a_block:
                self._flush()
        else:
            self._flush()
            self.label(step=steps, advantage=advantages_TN)
        self._steps = []

    def _flush(self) -> None:
        """Send what is held: whole rollouts with their advantages, and what there is of this one."""
        held, self._held, whole, self._whole = self._held, [], self._whole, 0
        advantages, self._advantages = self._advantages, []
        columns, self._columns = self._columns, {}
        self._full_at = self._until = _AT_ONCE
        if whole:
            self._send(held[:whole], columns, advantage=np.concatenate(advantages))
        if held[whole:]:
            self._steps += self._send(held[whole:], columns)

    def _send(
        self,
        held: Sequence[tuple[int, bytes, bytes, bytes]],
        columns: Mapping[int, Mapping[str, Column]],
        **more: Array,
    ) -> list[int]:
        """The steps that were sent. more: [steps, N] each, sent with them."""
        steps = [one[0] for one in held]
        told = {step: columns[step] for step in steps if step in columns}
        self.label(step=steps, **self._labels_of(held), **self._columns_of(steps, told), **more)
        return steps

    def _labels_of(self, held: Sequence[tuple[int, bytes, bytes, bytes]]) -> dict[str, Array]:
        """[steps, N] each, of a block."""
        rewards, dones, actions = self._forms
        if rewards is None or dones is None:
            raise TypeError("rewards or dones are no numbers")
        dones_SN = dones.joined([one[2] for one in held]).astype(bool, copy=False)
        labels: dict[str, Array] = {
            "reward": rewards.joined([one[1] for one in held]).astype(np.float32, copy=False),
            "done": dones_SN,
            "episode": self._episodes_of(dones_SN),
        }
        if actions is None:
            return labels
        actions_SNA = actions.joined([one[3] for one in held])
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

    def _columns_of(
        self, steps: Sequence[int], columns: Mapping[int, Mapping[str, Column]]
    ) -> dict[str, Array]:
        """Those that every step has alike, [steps, N]; others go out step by step."""
        alike = {}
        for name in self.columns:
            found = {step: one[name] for step, one in columns.items() if name in one}
            arrays = [value for value in found.values() if isinstance(value, np.ndarray)]
            if len(arrays) == len(steps) and len({(one.shape, one.dtype) for one in arrays}) == 1:
                alike[name] = np.stack(arrays)
                continue
            for step, value in found.items():  # of several lengths: refused with a reason
                self.label(step=step, **{name: value})
        return alike

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


IN_PYTHON = RolloutLabels.stepped
"""What the compiled method must do."""
if labels_method is not None:
    RolloutLabels.stepped = labels_method(RolloutLabels)  # type: ignore[method-assign]
