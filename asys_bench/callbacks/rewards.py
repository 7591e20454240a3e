"""Rewards of completions, which TRL's GRPO trainer keeps to itself: kept when a reward function gives them,
and found again for the rows of the training's own forward call, by the tokens of the completion.

A completion of which one generation has several with different rewards (of different prompts) has none here.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

IGNORED = -100
"""Target of a token that is no completion's, as Hugging Face writes it."""
GENERATIONS = 4
"""Whose rewards are kept, for each function: an evaluation may come between a batch and its use."""


class CompletionRewards:
    """See the module. Used from the host's thread, and from TRL's own for asynchronous functions."""

    def __init__(self) -> None:
        self._kept: dict[str, deque[dict[tuple[int, ...], float]]] = {}
        self._lock = threading.Lock()

    def observe(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` with its results kept; it is called and answers as before.

        Raises:
            TypeError: it is a reward model, whose calls do not say which completions they are about.
        """
        if isinstance(function, torch.nn.Module) or not callable(function):
            raise TypeError(
                f"observe_rewards takes reward functions, not {type(function).__name__}; a function that "
                "calls the model gets the completions"
            )
        name = label_of(function)

        @functools.wraps(function)
        def kept(*args: Any, **kwargs: Any) -> Any:
            found = function(*args, **kwargs)
            self._keep(name, kwargs.get("completion_ids"), found)
            return found

        @functools.wraps(function)
        async def kept_later(*args: Any, **kwargs: Any) -> Any:
            found = await function(*args, **kwargs)
            self._keep(name, kwargs.get("completion_ids"), found)
            return found

        return kept_later if inspect.iscoroutinefunction(function) else kept

    def labels_of(self, batch: Any) -> dict[str, Any]:
        """Labels of a forward call: `completion` [B, T], and of each function its reward [B], NaN where it is
        not known. Empty for a call that is not about completions.

        batch: keyword arguments of the call; `labels` says which of `input_ids` are the completion's. They
            are read on the CPU: where they are on a GPU, the host waits for it.
        """
        ids_BT = batch.get("input_ids") if isinstance(batch, Mapping) else None
        target_BT = batch.get("labels") if isinstance(batch, Mapping) else None
        if not isinstance(ids_BT, torch.Tensor) or not isinstance(target_BT, torch.Tensor):
            return {}
        if ids_BT.ndim != 2 or ids_BT.shape != target_BT.shape or not self._kept:
            return {}
        own_BT = (target_BT != IGNORED).cpu()
        ids_BT = ids_BT.cpu()
        keys = [tuple(ids[own].tolist()) for ids, own in zip(ids_BT, own_BT, strict=True)]
        with self._lock:
            found = {
                name: [self._find(generations, key) for key in keys]
                for name, generations in self._kept.items()
            }
        return {"completion": own_BT, **found}

    @staticmethod
    def _find(
        generations: Sequence[Mapping[tuple[int, ...], float]], key: tuple[int, ...]
    ) -> float:
        return next((one[key] for one in reversed(generations) if key in one), math.nan)

    def _keep(self, name: str, completions: Any, rewards: Any) -> None:
        """Nothing where they are not as TRL gives them."""
        if not isinstance(completions, list | tuple) or not isinstance(rewards, list | tuple):
            return
        found: dict[tuple[int, ...], float] = {}
        for ids, reward in zip(completions, rewards, strict=False):
            key, value = tuple(ids), math.nan if reward is None else float(reward)
            found[key] = value if found.get(key, value) == value else math.nan
        with self._lock:
            self._kept.setdefault(name, deque(maxlen=GENERATIONS)).append(found)


def label_of(function: Callable[..., Any]) -> str:
    """The label of a function's rewards: `reward_<its name>`, in letters that labels take."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    return "reward_" + re.sub(r"[^A-Za-z0-9_]", "_", name)[:48]
