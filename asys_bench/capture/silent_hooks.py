"""Hooks that never fire, and why: one line in the log instead of an empty archive.

A function that torch.compile has compiled keeps the hooks that its modules had at its first call, and
it says nothing when others are attached later. No code of ours runs in that case but the step clock,
which calls `SilentHooks.check` a few times while the host steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from asys_bench.capture.hook_stream import HookStream
from asys_bench.capture.notices import Notices
from asys_bench.capture.points.hookpoints import IN_ROUNDS
from asys_bench.contracts.packet import Kind
from asys_bench.contracts.torch_internals import (
    has_compiled_anything,
    has_compiled_code,
    is_compiled_function,
    is_compiled_in_place,
)

CHECK_AFTER_STEPS = (5, 100, 1000)
"""Check after this many host steps. The last check reports silence without a known cause too."""


class SilentHooks:
    """Watches streams of one model; `check` is an alarm of the step clock."""

    def __init__(
        self,
        model: torch.nn.Module,
        streams: Sequence[HookStream],
        start: int,
        notices: Notices,
    ) -> None:
        self._model, self._notices = model, notices
        self._compiled: set[HookStream] = set()
        self._said: set[HookStream] = set()
        self._streams = {stream: _fired(stream) for stream in streams}
        self._start = start
        self._checks = [start + step for step in CHECK_AFTER_STEPS]

    @property
    def first_check(self) -> int:
        return self._checks[0]

    def check(self, host_step: int) -> int | None:
        """Report silent hooks; returns the step of the next check."""
        while self._checks and self._checks[0] <= host_step:
            self._checks.pop(0)
        silent = [s for s, before in self._streams.items() if not s.off and _fired(s) == before]
        compiled: dict[str, list[HookStream]] = {}
        unexplained = []
        all_are = len(silent) == len(self._streams)
        somewhere = (
            "torch.compile is at work in this process"
            if all_are and has_compiled_anything()
            else None
        )
        for stream in silent:
            reason = compiled_by(self._model, stream.point.module) or somewhere
            if reason is not None and stream.phase is None:
                compiled.setdefault(reason, []).append(stream)
            else:
                unexplained.append(stream)
        for reason, streams in compiled.items():
            self._notices.say(_explanation(reason, streams, host_step - self._start))
            self._compiled.update(streams)
        self._streams = {stream: _fired(stream) for stream in unexplained}
        if not self._checks:
            self._say_unused(unexplained, host_step)
        return self._checks[0] if self._checks and self._streams else None

    def review(self, streams: Sequence[HookStream], host_step: int) -> None:
        """The host has ended: report which of `streams` have captured nothing, and why."""
        self._checks.clear()
        self.check(host_step)
        self._say_unused([s for s in streams if s not in self._compiled], host_step)

    def _say_unused(self, streams: Sequence[HookStream], host_step: int) -> None:
        """One message per cause for those of `streams` that have captured nothing.

        What is explained elsewhere is left out: a hook that failed, calls that the bus refused or
        whose `select` found nothing.
        """
        causes: dict[str, list[HookStream]] = {}
        for stream in streams:
            if stream in self._said or stream.captured.value or stream.sampled_out.value:
                continue
            cause = _cause(self._model, stream)
            if cause is not None:
                causes.setdefault(cause, []).append(stream)
                self._said.add(stream)
        for cause, group in causes.items():
            self._notices.say(
                f"{'hook' if len(group) == 1 else 'hooks'} {_names(group)}: nothing was captured in "
                f"{host_step - self._start} host steps: {cause}"
            )


def _cause(model: torch.nn.Module, stream: HookStream) -> str | None:
    point = stream.point
    if stream.failures.value:
        return None
    if point.kind in IN_ROUNDS:
        return (
            None
            if stream.calls.value
            else f"its first capture of every {point.config.every} steps did not come"
        )
    of_gradient = point.kind not in (Kind.ACTIVATION, Kind.INPUT)
    if stream.needs_no_gradient:
        if point.parameter is not None:
            return "the parameter is frozen and gets no gradient"
        what = "input" if point.kind is Kind.INPUT_GRADIENT else "output"
        return f"the module's {what} needs no gradient, so that none arrives"
    if stream.dropped.value or (stream.skipped.value and stream.shape is not None):
        return None
    if stream.skipped.value:
        phase = point.config.phase.value
        return f"the module was never called in the phase {phase!r}" if phase != "any" else None
    if stream.calls.value:
        return None
    parent = next(
        (outer for _, outer in _around(model, point.module) if outer is not point.module), None
    )
    if isinstance(parent, torch.nn.MultiheadAttention):
        return (
            "torch.nn.MultiheadAttention uses this module's weights and never calls it; hook the "
            "attention itself (`select: 0` is its output)"
        )
    if of_gradient and stream.shape is not None:
        return "the module was called and no gradient came back"
    if of_gradient:
        return "no backward pass has reached it"
    return (
        "the module is not called (a parent may use its weights or call its `forward` directly, or "
        "the path of the model that has it was not taken)"
    )


def compiled_by(model: torch.nn.Module, module: torch.nn.Module) -> str | None:
    """How `module` came to run inside compiled code, or None when that is not known."""
    for name, outer in _around(model, module):
        what = f"{name!r} ({type(outer).__name__})" if name else type(outer).__name__
        if type(outer).__name__ == "OptimizedModule" and outer is not module:
            return f"{what} is a module of torch.compile"
        if is_compiled_in_place(outer):
            return f"{what} was compiled by its method compile()"
        if is_compiled_function(vars(outer).get("forward")):
            return f"the forward of {what} was compiled"
        if has_compiled_code(outer):
            return f"torch.compile has compiled the forward of {what}"
    return None


def _around(
    model: torch.nn.Module, module: torch.nn.Module
) -> Iterator[tuple[str, torch.nn.Module]]:
    """`module` and the modules that hold it, innermost first, with their names."""
    path = next((name for name, found in model.named_modules() if found is module), None)
    parts = path.split(".") if path else []
    for length in range(len(parts), -1, -1):
        name = ".".join(parts[:length])
        yield name, model.get_submodule(name)


def _fired(stream: HookStream) -> int:
    return stream.calls.value + stream.recomputed.value


def _explanation(reason: str, streams: Sequence[HookStream], host_steps: int) -> str:
    text = (
        f"hooks {_names(streams)} have not fired in {host_steps} host steps: {reason}, and compiled "
        "code keeps the hooks that it saw at its first call. Attach before that call, or call "
        "torch.compiler.reset() once now: the next call compiles again, with the hooks in its graph"
    )
    if any(stream.point.kind is Kind.INPUT_GRADIENT for stream in streams):
        text += (
            ". input_gradient is not captured inside compiled code at all: capture `gradient` of "
            "the module before it"
        )
    return text


def _names(streams: Sequence[HookStream]) -> str:
    names = [stream.name for stream in streams]
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
