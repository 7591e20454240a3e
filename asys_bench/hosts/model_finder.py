"""Finds the model in a training script that knows nothing of us.

Two things give a model away: it is put in train mode (`model.train()`), or it is called in train mode
with gradients enabled. The outermost module counts, so wrappers such as DistributedDataParallel are
found as a whole. Both are watched without changing what they do, and only until a model is found.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

MOST_EXPLAINED = 5


class ModelFinder:
    """Calls `found(model, called)` for the first module that is meant.

    misfit: why a module cannot be it, or None.
    class_name: its class, as `Net` or `package.module.Net`; None takes any class.
    choose: turns a module that was seen into the one to observe, or None to go on looking.
    """

    def __init__(
        self,
        misfit: Callable[[torch.nn.Module], str | None],
        found: Callable[[torch.nn.Module, bool], None],
        *,
        class_name: str | None = None,
        choose: Callable[[torch.nn.Module], torch.nn.Module | None] | None = None,
    ) -> None:
        self._misfit, self._found, self._pid = misfit, found, os.getpid()
        self._class_name, self._choose = class_name, choose
        self._seen: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
        self._rejected: dict[str, str] = {}
        """Class name -> why, in the order seen."""
        self._depth = threading.local()
        self._original_train: Callable[..., torch.nn.Module] | None = None
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def start(self) -> None:
        """Watch from now on."""
        self._original_train = original = torch.nn.Module.train
        depth, consider = self._depth, self._consider

        def train(module: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
            level = getattr(depth, "level", 0)
            depth.level = level + 1
            try:
                result = original(module, mode)
            finally:
                depth.level = level
            if mode and level == 0:  # it calls itself for every child
                consider(module, False)
            return result

        torch.nn.Module.train = train  # type: ignore[method-assign, assignment]
        self._handle = register_module_forward_pre_hook(self._called)

    def stop(self) -> None:
        """Leave torch as it was. Idempotent."""
        if self._original_train is not None:
            torch.nn.Module.train = self._original_train  # type: ignore[method-assign, assignment]
            self._original_train = None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def explain(self) -> str:
        """Why no model was found, and what to set."""
        if not self._rejected:
            return (
                "no module was put in train mode, and none was called in train mode with gradients "
                "enabled. Name the model's class in host.options.script.model_class, or call "
                "asys_bench.observe(model) in the script"
            )
        shown = list(self._rejected.items())[:MOST_EXPLAINED]
        lines = "".join(f"\n  {name}: {why}" for name, why in shown)
        more = len(self._rejected) - len(shown)
        rest = f"\n  and {more} more classes" if more else ""
        return (
            f"none of the modules that it trained is the one that is meant:{lines}{rest}\n"
            "Correct hooks[].match, or name the model's class in host.options.script.model_class"
        )

    def _called(self, module: torch.nn.Module, args: Any) -> None:
        named = self._class_name is not None
        if named or (module.training and torch.is_grad_enabled()):
            self._consider(module, True)

    def _consider(self, module: torch.nn.Module, called: bool) -> None:
        if self._original_train is None or module in self._seen:
            return
        if os.getpid() != self._pid:  # a forked child's model is not what the run is about
            self.stop()
            return
        self._seen.add(module)
        kind = type(module)
        if self._class_name not in (None, kind.__name__, f"{kind.__module__}.{kind.__qualname__}"):
            return
        model: torch.nn.Module | None = module
        if self._choose is not None:
            model = self._choose(module)
            if model is None:
                return
        assert model is not None
        why = self._misfit(model)
        if why is not None:
            self._rejected.setdefault(type(model).__name__, why)
            return
        self.stop()
        self._found(model, called and model is module)
