"""Hooks that never fire, and why: one line in the log instead of an empty archive.

A function that torch.compile has compiled keeps the hooks that its modules had at its first call, and
it says nothing when others are attached later. No code of ours runs in that case but the step clock,
which asks here a few times while the host steps.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence

import torch

from asys_bench.contracts.packet import Kind
from asys_bench.pipeline.hook_stream import HookStream

log = logging.getLogger(__name__)

LOOKS = (5, 100, 1000)
"""Host steps after which is looked. At the last one, silence is reported without a known cause too."""


class SilentHooks:
    """Watches streams of one model; `look` is an alarm of the step clock."""

    def __init__(self, model: torch.nn.Module, streams: Sequence[HookStream], start: int) -> None:
        self._model = model
        self._streams = {stream: _fired(stream) for stream in streams}
        self._looks = [start + step for step in LOOKS]

    @property
    def first_look(self) -> int:
        return self._looks[0]

    def look(self, host_step: int) -> int | None:
        """Report silent hooks; returns the step of the next look."""
        while self._looks and self._looks[0] <= host_step:
            self._looks.pop(0)
        silent = [s for s, before in self._streams.items() if not s.off and _fired(s) == before]
        compiled: dict[str, list[HookStream]] = {}
        unexplained = []
        all_are = len(silent) == len(self._streams)
        somewhere = (
            "torch.compile is at work in this process" if all_are and _compiles_anything() else None
        )
        for stream in silent:
            reason = compiled_by(self._model, stream.point.module) or somewhere
            if reason is not None and stream.phase is None:
                compiled.setdefault(reason, []).append(stream)
            else:
                unexplained.append(stream)
        for reason, streams in compiled.items():
            log.warning("%s", _explanation(reason, streams, host_step))
        if not self._looks and unexplained:
            log.warning(
                "hooks %s have not fired in %d host steps: their modules are not called (a parent "
                "may call their `forward` directly), or not in the phase that is asked for",
                _names(unexplained),
                host_step,
            )
        self._streams = {stream: _fired(stream) for stream in unexplained}
        return self._looks[0] if self._looks and self._streams else None


def compiled_by(model: torch.nn.Module, module: torch.nn.Module) -> str | None:
    """How `module` came to run inside compiled code, or None when that is not known."""
    for name, outer in _around(model, module):
        what = f"{name!r} ({type(outer).__name__})" if name else type(outer).__name__
        if type(outer).__name__ == "OptimizedModule" and outer is not module:
            return f"{what} is a module of torch.compile"
        if getattr(outer, "_compiled_call_impl", None) is not None:
            return f"{what} was compiled by its method compile()"
        if hasattr(vars(outer).get("forward"), "_torchdynamo_orig_callable"):
            return f"the forward of {what} was compiled"
        if _has_compiled_code(outer):
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


def _has_compiled_code(module: torch.nn.Module) -> bool:
    code = getattr(type(module).forward, "__code__", None)
    if code is None or "torch._dynamo" not in sys.modules:
        return False
    try:
        entries = torch._C._dynamo.eval_frame._debug_get_cache_entry_list(code)
    except Exception:  # noqa: BLE001 - an interface for debugging: without it the cause stays unknown
        return False
    return bool(entries)


def _compiles_anything() -> bool:
    """A class of torch's (Sequential) is compiled through a frame that does not know its module."""
    frames = sys.modules.get("torch._dynamo.convert_frame")
    return bool(getattr(getattr(frames, "output_codes", None), "seen", ()))


def _fired(stream: HookStream) -> int:
    return stream.calls.value + stream.recomputed.value


def _explanation(reason: str, streams: Sequence[HookStream], host_step: int) -> str:
    text = (
        f"hooks {_names(streams)} have not fired in {host_step} host steps: {reason}, and compiled "
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
