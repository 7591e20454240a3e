"""What hooks of a model will not see, as far as the model says so before it is called."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

import torch

from asys_bench.capture.host_state import is_cuda_started
from asys_bench.capture.points.hookpoints import HookPoint
from asys_bench.contracts.packet import Kind

_SHOWN = 4


def out_of_reach(points: Sequence[HookPoint]) -> Iterator[str]:
    """A line for each reason; of hook points of one model."""
    model = next((point.model for point in points if point.model is not None), None)
    if model is None:
        return
    inside = {
        module
        for graphed in model.modules()
        if _is_graphed(graphed)
        for module in graphed.modules()
        if module is not graphed
    }
    lost = [point.name for point in points if point.module in inside]
    if lost:
        yield (
            f"{_hooks(lost)}: inside of a module that torch.cuda.make_graphed_callables has replaced. The "
            "replay of a CUDA graph calls no hooks, so nothing is captured there. Hook the module itself, "
            "or leave it as it was"
        )
    elif _are_graphs_there():
        yield (
            "this process has captured a CUDA graph: what a replay computes calls no hooks and is not "
            "captured"
        )
    lost = [
        point.name
        for point in points
        if point.kind is Kind.PARAMETER_GRADIENT
        and point.parameter is not None
        and point.parameter.is_meta
    ]
    if lost:
        yield (
            f"{_hooks(lost)}: the parameter is on the meta device (offloaded by accelerate, or not "
            "loaded), where no gradient arrives"
        )


def _hooks(names: Sequence[str]) -> str:
    more = f", ... ({len(names)})" if len(names) > _SHOWN else ""
    return f"hook{'s' if len(names) > 1 else ''} {', '.join(names[:_SHOWN])}{more}"


def _is_graphed(module: torch.nn.Module) -> bool:
    forward = vars(module).get("forward")
    return getattr(forward, "__module__", None) == torch.cuda.graphs.__name__


def _are_graphs_there() -> bool:
    if not is_cuda_started():
        return False
    return any(issubclass(type(found), torch.cuda.CUDAGraph) for found in gc.get_objects())
