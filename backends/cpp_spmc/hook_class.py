"""Classes of forward hooks whose calls are compiled (py_hook.cpp)."""

from __future__ import annotations

from typing import Any

from asys_bench.backends.cpp_spmc import native
from asys_bench.contracts.capture_port import HookT

_made: dict[type[Any], type[Any]] = {}


def compiled(hook: type[HookT]) -> type[HookT]:
    """A subclass of `hook` whose instances run compiled code when they are called; `__call__` stays
    what it was, for torch.compile to trace."""
    if hook not in _made:
        base = native.hook_call()

        def initialise(self: Any, *args: Any) -> None:
            hook.__init__(self, *args)
            self.bind(self.direct, self.phase)

        members = {"__init__": initialise, "__module__": hook.__module__, "__doc__": hook.__doc__}
        _made[hook] = type(hook.__name__, (hook, base), members)
        base.take_calls(_made[hook])
    return _made[hook]
