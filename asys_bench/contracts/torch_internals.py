"""Every private name of torch that is used here, in one place.

Looked at: torch 2.10, 2.11, 2.12 and 2.13 have all of them (2.10 is the oldest that is allowed). Where a
line says "missing: ..." a torch without the name is served as described. All others are needed:
without them this module, and so every hook, cannot be imported, and the ImportError names the name.

It stands with the contracts because a bus, the SAEs and the hooks use it. Nothing else in
`asys_bench/`, `backends/` and `kernels/` names a private name of torch
(tests/unit/contracts/test_torch_internals.py).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.jit._recursive as _torchscript
from torch import nn
from torch._C import DisableTorchFunction
from torch._C import _current_graph_task_id as current_graph_task_id
from torch._C import _get_tracing_state as get_tracing_state
from torch._C import _is_any_autocast_enabled as is_any_autocast_enabled
from torch._C import _len_torch_dispatch_stack as dispatch_modes
from torch._C import _len_torch_function_stack as function_modes
from torch._C._autograd import _get_sequence_nr as next_sequence_number
from torch._C._dynamo import eval_frame as _eval_frame
from torch._C._functorch import is_functorch_wrapped_tensor, peek_interpreter_stack
from torch._library.effects import EffectType as _EffectType
from torch.utils._python_dispatch import _disable_current_modes as disable_dispatch_modes

__all__ = [
    "DisableTorchFunction", "bag_weights_gradient", "copy_on", "current_graph_task_id",
    "disable_dispatch_modes", "dispatch_modes",
    "function_modes", "get_tracing_state", "is_any_autocast_enabled", "is_functorch_wrapped_tensor",
    "next_sequence_number", "peek_interpreter_stack",
]  # fmt: skip

M = TypeVar("M", bound=nn.Module)

# ---- operators

bag_weights_gradient = torch.ops.aten._embedding_bag_per_sample_weights_backward
"""The gradient of `embedding_bag` by its weights (aten::_embedding_bag_per_sample_weights_backward)."""

# ---- autograd

NO_GRAPH_TASK = -1
"""`current_graph_task_id()` outside of a backward pass (torch._C._current_graph_task_id): the one way
to tell a recomputation of activation checkpointing from the host's own forward call."""

# next_sequence_number (torch._C._autograd._get_sequence_nr): what the next node of this thread gets.


def sequence_number(node: torch.autograd.graph.Node) -> int:
    """When a node of the autograd graph was made (Node._sequence_nr)."""
    return node._sequence_nr()


def view_base(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor whose memory `tensor` is a view of (Tensor._is_view, Tensor._base); None: no view."""
    return tensor._base if tensor._is_view() else None


is_zerotensor = torch.Tensor._is_zerotensor
"""Whether it is a zero without memory, as forward-mode autograd makes them."""


def has_accumulate_hooks(parameter: torch.Tensor) -> bool:
    """Whether `register_post_accumulate_grad_hook` has left a dictionary (empty or not) on it."""
    return parameter._post_accumulate_grad_hooks is not None


def drop_empty_accumulate_hooks(parameter: torch.Tensor) -> None:
    """Take that dictionary away if no hook is left in it: the parameter is as it was."""
    if not parameter._post_accumulate_grad_hooks:
        parameter._post_accumulate_grad_hooks = None  # type: ignore[assignment]


# ---- modes and transforms of the host (`capture.host_state`)
#
# is_any_autocast_enabled (torch._C._is_any_autocast_enabled): autocast on any type of device.
# function_modes, dispatch_modes (torch._C._len_torch_{function,dispatch}_stack): how many modes are on.
# DisableTorchFunction (torch._C): a context without function modes and `__torch_function__`.
# disable_dispatch_modes (torch.utils._python_dispatch._disable_current_modes): none in the context.
# is_functorch_wrapped_tensor, peek_interpreter_stack (torch._C._functorch): of vmap, grad and jvp.
# get_tracing_state (torch._C._get_tracing_state): not None inside of torch.jit.trace.


def set_tracing_state(state: Any) -> None:
    """Stop torch.jit.trace (None), or go on (torch._C._set_tracing_state)."""
    torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


# ---- modules

HOOK_DICTIONARIES = ("_forward_hooks", "_forward_pre_hooks")
HOOK_FLAGS = (
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)
"""Attributes of a torch.nn.Module that hold its hooks by number, and flags by the same numbers.
Missing: our hooks stay in copies, where they do nothing."""


def copy_on(module: M, device: torch.device) -> M:
    """A copy of a module without submodules, its tensors on `device` and without gradients
    (Module._parameters, _buffers). `Module.to` would move the module itself, `deepcopy` copy its tensors
    where they are."""
    made = copy.copy(module)
    made._parameters = {
        name: None if parameter is None else nn.Parameter(parameter.detach().to(device))
        for name, parameter in module._parameters.items()
    }
    made._buffers = {
        name: None if buffer is None else buffer.to(device)
        for name, buffer in module._buffers.items()
    }
    return made


CALL_CODE = nn.Module._call_impl.__code__
"""The frame that a call of any module runs (Module._call_impl), with `self`, `args` and `kwargs`."""

AnyConvolution = nn.modules.conv._ConvNd
"""Base of all convolutions, transposed ones too."""
AnyBatchNorm = nn.modules.batchnorm._BatchNorm
"""Base of all batch norms."""

COMPILED_CALL = "_compiled_call_impl"
"""Attribute of a module that `compile()` was called on; None before. Missing: taken for not compiled."""

REPLICATION = "_replicate_for_data_parallel"
"""Name of the method of a module that makes a replica of it, with a dictionary like its own.
Missing: DataParallel has none, and nothing is replaced."""

TORCHSCRIPT, SCRIPT_CONVERSION = _torchscript, "create_script_module"
"""Module and name of the function that converts a module to TorchScript (torch.jit._recursive).
Missing: `torch.jit.script` of a hooked model fails on our hooks, as on any Python hook."""

# ---- wrappers of modules


_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names under which a module holds the user's module: that of torch.compile (OptimizedModule), of
FullyShardedDataParallel and of activation checkpointing (CheckpointWrapper).
Missing: hook names have one part more with the wrapper than without."""


def wrapped_inside(module: nn.Module) -> nn.Module | None:
    """The module that `module` is a wrapper of torch's own around; None: it is none."""
    return next((module._modules[name] for name in _INSIDE if name in module._modules), None)


def name_unwrapped(name: str) -> str:
    """The name that a module or a parameter had before torch.compile and those wrappers."""
    return ".".join(part for part in name.split(".") if part not in _INSIDE)


# ---- tensors of several ranks

_DTENSOR, _COLLECTIVES = "torch.distributed.tensor", "torch.distributed._functional_collectives"


def dtensor_type() -> type | None:
    """DTensor; None while nobody in this process can have made one."""
    return getattr(sys.modules.get(_DTENSOR), "DTensor", None)


def arrived(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, or what it stands for once a collective has brought it
    (torch.distributed._functional_collectives.AsyncCollectiveTensor): waits as its next reader would.
    Missing: such outputs of tensor-parallel modules are not captured."""
    kind = getattr(sys.modules.get(_COLLECTIVES), "AsyncCollectiveTensor", None)
    if kind is None or type(tensor) is not kind:
        return tensor
    done: torch.Tensor = tensor.trigger_wait()  # type: ignore[attr-defined]
    return done


def shard_at(tensor: Any, coordinate: Sequence[int]) -> tuple[Sequence[int], Sequence[int]] | None:
    """(shape, offset) of the part of a DTensor that the rank at `coordinate` of its mesh holds
    (torch.distributed.tensor._utils._compute_local_shape_and_global_offset).
    Missing: None, and nobody says where in the whole tensor a rank's part is."""
    try:
        from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset as place
    except ImportError:
        return None
    mesh = tensor.device_mesh
    found: tuple[Sequence[int], Sequence[int]] = place(
        tuple(tensor.shape), tuple(mesh.shape), list(coordinate), tensor.placements
    )
    return found


# ---- torch.compile

DYNAMO = "torch._dynamo"
"""The package of torch.compile: a worker that compiles is forked from a process that has it."""


def is_compiled_in_place(module: nn.Module) -> bool:
    """`module.compile()` was called (Module._compiled_call_impl): hooks on the module itself become part
    of the graph. Missing: False, the cause of a silent hook stays unknown."""
    return getattr(module, "_compiled_call_impl", None) is not None


def is_compiled_function(function: object) -> bool:
    """torch.compile made it (the mark `_torchdynamo_orig_callable`). Missing: False, as above."""
    return hasattr(function, "_torchdynamo_orig_callable")


def has_compiled_code(module: nn.Module) -> bool:
    """Whether torch.compile holds code for the forward of a module of this type
    (torch._C._dynamo.eval_frame._debug_get_cache_entry_list). Missing: False, as above."""
    code = getattr(type(module).forward, "__code__", None)
    if code is None or DYNAMO not in sys.modules:
        return False
    try:
        return bool(_eval_frame._debug_get_cache_entry_list(code))
    except Exception:  # noqa: BLE001 - an interface for debugging
        return False


def has_compiled_anything() -> bool:
    """Whether torch.compile has compiled a frame in this process
    (torch._dynamo.convert_frame.output_codes). Missing: False, as above."""
    frames = sys.modules.get("torch._dynamo.convert_frame")
    return bool(getattr(getattr(frames, "output_codes", None), "seen", ()))


def skip_frame(function: Callable[..., Any]) -> None:
    """torch.compile runs a frame of `function` that it is handed by itself as it is, and all that it
    calls (torch._C._dynamo.eval_frame.set_code_exec_strategy)."""
    skip = _eval_frame._FrameAction.SKIP
    strategy = _eval_frame._FrameExecStrategy(skip, skip)
    _eval_frame.set_code_exec_strategy(function.__code__, strategy)


def keeps_order(operator: str, library: torch.library.Library) -> None:
    """Declare that calls of a custom operator have an effect, in their order
    (torch.library._register_effectful_op, torch._library.effects.EffectType.ORDERED)."""
    torch.library._register_effectful_op(operator, _EffectType.ORDERED, lib=library)


def inductor_fuses_roundings() -> bool:
    """Whether inductor is at work and keeps intermediate results of bfloat16 models in float32
    (torch._inductor.config.emulate_precision_casts). Missing: False, nothing is explained."""
    config = sys.modules.get("torch._inductor.config")
    return config is not None and not getattr(config, "emulate_precision_casts", True)


# ---- memory and machine


def tensor_probes() -> tuple[tuple[torch.Tensor, int, int], ...]:
    """(tensor, address of its C++ object, its dispatch keys) for a plain tensor, one that requires a
    gradient, and one whose memory holds negated values (torch._neg_view, Tensor._cdata,
    torch._C._dispatch_keys). Missing: empty, the compiled hook path takes no call."""
    plain = torch.ones(3)
    try:
        tensors = (plain, plain.clone().requires_grad_(), torch._neg_view(plain))
        return tuple(
            (tensor, tensor._cdata, torch._C._dispatch_keys(tensor).raw_repr())
            for tensor in tensors
        )
    except AttributeError:
        return ()


def cpu_multiplies_bfloat16() -> bool:
    """Whether bfloat16 matrix products run on AMX tiles or on AVX512_BF16, which multiplies two pairs at a
    time (torch.cpu._is_amx_tile_supported, torch.cpu._is_avx512_bf16_supported)."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


NLL_LOSS = ("NllLossBackward0", "NllLoss2DBackward0")
"""Names of autograd's nodes that a cross entropy ends in."""


def saved_of_nll_loss(node: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(log-probabilities, targets, the target that is ignored) that such a node keeps for its backward pass.

    missing: AttributeError, and rows have no loss.
    """
    ignored = int(node._saved_ignore_index)
    if ignored >= 1 << 63:  # as it is kept without its sign
        ignored -= 1 << 64
    return node._saved_self.detach(), node._saved_target.detach(), ignored
