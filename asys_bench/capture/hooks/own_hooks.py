"""Which hooks of a module are ours, and how to keep them out of what others make of the module.

A copy, a pickle and a TorchScript conversion take a module's dictionaries of hooks along. A copy is
another model (an average of weights, a target network, a checkpoint): captured under the same name it
would mix with the original, and detaching would not reach it; TorchScript compiles hooks and fails on
ours. So while hooks are attached (`KeepOut`)

- `torch.nn.Module.__getstate__` leaves our hooks out of what `copy` and `pickle` take;
- a TorchScript conversion finds the modules without them.

The same holds for a method that we put on one module alone (`StandIn`). Replicas that DataParallel makes of a
module have their own forward, and our hook beside it (`ForwardStandIn`).

A class that copies its dictionaries by itself (FX graph modules, parametrised modules) takes our hooks
along. In such a copy they do nothing (`InertHook`), and a pickled one needs nothing of this package to be
loaded.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from asys_bench.contracts.torch_internals import (
    COMPILED_CALL,
    HOOK_DICTIONARIES,
    HOOK_FLAGS,
    REPLICATION,
    SCRIPT_CONVERSION,
    TORCHSCRIPT,
)

take_forward: Callable[[type], None] | None
"""None: it was not compiled."""
try:
    from asys_bench.contracts.native._steps import take_forward
except ImportError:
    take_forward = None


class InertHook:
    """Takes any arguments and returns None, as a hook that changes nothing must."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> InertHook:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # `__exit__` of a null context is a callable of the standard library that does just that.
        return (getattr, (nullcontext(), "__exit__"))


INERT = InertHook()


class LiveHook:
    """Base of our hooks: its copies are inert."""

    def __deepcopy__(self, memo: dict[int, Any]) -> InertHook:
        return INERT

    def __copy__(self) -> InertHook:
        return INERT

    def __reduce__(self) -> tuple[Any, ...]:
        return INERT.__reduce__()


class StandIn:
    """A method of ours in a module's own dictionary; copies of the module have what was there before."""

    __slots__ = ("__dict__", "__weakref__", "_before", "_call")

    def __init__(self, module: torch.nn.Module, name: str, call: Callable[..., Any]) -> None:
        """`call` is what it does in the place of `module.name`."""
        self._before, self._call = vars(module).get(name), call
        functools.update_wrapper(self, call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def leave(self, state: dict[str, Any], name: str) -> None:
        """Put into `state` what stood under `name` before."""
        if self._before is None:
            del state[name]
        else:
            state[name] = self._before


class ForwardStandIn(StandIn):
    """Calls a forward hook of ours from the module's own `forward`: torch takes a longer way to a module that
    has a hook, which costs a small one more than what the hook does.

    Calls are compiled where that can be (`contracts/native/steps_module.cpp`); `__call__` stays what it was,
    for torch.compile to trace.
    """

    __slots__ = ("hook", "module")

    def __init__(self, module: torch.nn.Module, hook: Callable[..., None]) -> None:
        super().__init__(module, "forward", module.forward)
        self.module, self.hook = module, hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._call(*args, **kwargs)
        self.hook(self.module, args, output)
        return output

    @staticmethod
    def fits(module: torch.nn.Module) -> bool:
        """Whether nobody else has put anything between a call of `module` and its class's forward."""
        kind, own = type(module), vars(module)
        return (
            kind.__call__ is torch.nn.Module.__call__
            and not isinstance(module, torch.jit.ScriptModule)
            and "forward" not in own
            and own.get(COMPILED_CALL) is None
            and not any(own.get(name) for name in HOOK_DICTIONARIES)
        )

    def attach(self) -> Callable[[], None]:
        """Take the place of the module's forward; returns what undoes it."""
        vars(self.module)["forward"] = self

        def undo() -> None:
            if vars(self.module).get("forward") is self:  # else somebody has wrapped it meanwhile
                del vars(self.module)["forward"]

        return undo

    def leave_replica(self, replica: torch.nn.Module) -> None:
        """A replica of the module computes with parameters of its own."""
        self.leave(vars(replica), "forward")
        name = HOOK_DICTIONARIES[0]
        theirs = vars(replica)[name]  # the module's, too
        vars(replica)[name] = type(theirs)([*theirs.items(), (id(self), self.hook)])


if take_forward is not None:
    take_forward(ForwardStandIn)


def is_ours(hook: object) -> bool:
    """Whether a hook is one of ours, alive or in a copy."""
    return isinstance(hook, LiveHook | InertHook)


def remove_hooks(model: torch.nn.Module, is_meant: Callable[[object], bool]) -> None:
    """Take the hooks that are meant off every module of `model`, wherever others have moved them."""
    for module in model.modules():
        for numbers in [
            _numbers_of(vars(module).get(name), is_meant) for name in HOOK_DICTIONARIES
        ]:
            for name in (*HOOK_DICTIONARIES, *HOOK_FLAGS) if numbers else ():
                held = vars(module).get(name)
                if isinstance(held, dict):
                    for number in numbers:
                        held.pop(number, None)


class KeepOut:
    """Keeps our hooks out of copies and TorchScript while at least one hooker is attached."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._undo: list[Callable[[], None]] = []

    def begin(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._undo = [
                    replace(torch.nn.Module, "__getstate__", _state_without),
                    replace(torch.nn.Module, REPLICATION, _replicate_without),
                    replace(TORCHSCRIPT, SCRIPT_CONVERSION, _convert_without),
                ]

    def end(self) -> None:
        """Once per `begin`."""
        with self._lock:
            self._users -= 1
            while self._users == 0 and self._undo:
                self._undo.pop()()


def replace(owner: Any, name: str, make: Callable[[Callable[..., Any]], Any]) -> Callable[[], None]:
    """Put `make(what is there)` in the place of `owner.name`; returns what undoes it."""
    had_its_own = name in vars(owner)
    original = getattr(owner, name, None)
    if original is None:  # another version of torch
        return lambda: None
    ours = make(original)
    setattr(owner, name, ours)

    def undo() -> None:
        if (
            vars(owner).get(name) is not ours
        ):  # somebody wrapped it meanwhile: it calls the original
            return
        if had_its_own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)

    return undo


def _state_without(original: Callable[..., Any]) -> Callable[..., Any]:
    def __getstate__(module: torch.nn.Module) -> Any:  # noqa: N807 - it is Module's from here on
        state = original(module)
        if isinstance(state, dict):
            return _without_ours(state)
        if isinstance(state, tuple) and state and isinstance(state[0], dict):  # it has slots
            return (_without_ours(state[0]), *state[1:])
        return state

    return __getstate__


def _replicate_without(original: Callable[..., Any]) -> Callable[..., Any]:
    def _replicate_for_data_parallel(module: torch.nn.Module) -> torch.nn.Module:
        replica: torch.nn.Module = original(module)
        forward = vars(replica).get("forward")
        if isinstance(forward, ForwardStandIn):
            forward.leave_replica(replica)
        return replica

    return _replicate_for_data_parallel


def _without_ours(state: dict[str, Any]) -> dict[str, Any]:
    """`state` itself when nothing of ours is in it."""
    for name in [name for name, value in state.items() if isinstance(value, StandIn)]:
        state = dict(state)
        state[name].leave(state, name)
    for name in HOOK_DICTIONARIES:
        numbers = _numbers_of(state.get(name), is_ours)
        if not numbers:
            continue
        state = dict(state)
        for held_in in (name, *HOOK_FLAGS):
            held = state.get(held_in)
            if isinstance(held, dict):
                kept = [(number, hook) for number, hook in held.items() if number not in numbers]
                state[held_in] = type(held)(kept)
    return state


def _convert_without(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_script_module(nn_module: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(nn_module, torch.nn.Module):
            return original(nn_module, *args, **kwargs)
        with _hidden(nn_module):
            return original(nn_module, *args, **kwargs)

    return create_script_module


@contextmanager
def _hidden(model: torch.nn.Module) -> Iterator[None]:
    """The modules of `model` without our hooks; afterwards they are where they were, in their order."""
    hidden: list[tuple[dict[int, Any], dict[int, Any]]] = []
    methods: list[tuple[dict[str, Any], str, StandIn]] = []
    for module in model.modules():
        own = vars(module)
        for name in [name for name, value in own.items() if isinstance(value, StandIn)]:
            methods.append((own, name, own[name]))
            own[name].leave(own, name)
        for name in HOOK_DICTIONARIES:
            held = vars(module).get(name)
            numbers = _numbers_of(held, is_ours)
            if numbers and held is not None:
                hidden.append((held, dict(held)))
                for number in numbers:
                    del held[number]
    try:
        yield
    finally:
        for held, before in hidden:
            added = {number: hook for number, hook in held.items() if number not in before}
            held.clear()
            held.update(before)
            held.update(added)
        for own, name, method in methods:
            own[name] = method


def _numbers_of(held: Any, is_meant: Callable[[object], bool]) -> list[int]:
    if not isinstance(held, dict):
        return []
    return [number for number, hook in list(held.items()) if is_meant(hook)]


keep_out = KeepOut()
