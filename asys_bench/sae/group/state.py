"""A learner's state, taken apart by features and put together again."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.checkpoint.checkpoint_files import StateDict
from asys_bench.sae.config import SAEConfig

_ALIKE = ("b_dec", "W_skip")
"""Parameters that every rank has whole."""


def feature_axis(name: str) -> int | None:
    """The dimension of a tensor of `Learner.state_dict` that goes over features; None: it is every
    rank's."""
    part, _, rest = name.partition(".")
    if part == "dead":
        return 0
    if part == "lives":
        return {"energy": 1, "window_rows": None, "window_step": None}.get(rest, 0)
    parameter, _, what = rest.partition(".")
    if part not in ("sae", "adam") or parameter in _ALIKE:
        return None
    return 1 if parameter == "W_enc" and what != "row_steps" else 0


def part_of(name: str, tensor: torch.Tensor, features: slice) -> torch.Tensor:
    """What a rank with these features has of a state's tensor (contiguous)."""
    axis = feature_axis(name)
    if axis is None:
        return tensor.contiguous()
    length = features.stop - features.start
    return tensor.narrow(axis, features.start, length).contiguous()


def joined(name: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """A tensor of the whole from those of all ranks; W_enc feature-major, as an SAE has it."""
    axis = feature_axis(name)
    if axis == 1 and name != "lives.energy":
        return torch.cat([part.t() for part in parts]).t()
    return torch.cat(list(parts), axis or 0)


@torch.no_grad()
def whole_of(part: SparseAutoencoder, config: SAEConfig, state: StateDict) -> SparseAutoencoder:
    """The SAE that `part` has some features of, on the CPU.

    config: of the whole. state: a learner's; its tensors are taken over.
    """
    whole = copy.deepcopy(part).cpu()
    whole.zero_grad(set_to_none=True)
    parameters = dict(whole.named_parameters())
    for name, tensor in state.items():
        own = name.removeprefix("sae.")
        if own == name or not isinstance(tensor, torch.Tensor):
            continue
        if own in parameters:
            setattr(whole, own, nn.Parameter(tensor))
        else:
            whole.register_buffer(own, tensor)
    whole.config, whole.d_sae = config, len(whole.W_dec)
    whole.take_part_(0, config, whole.d_sae)
    return whole
