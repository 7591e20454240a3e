"""The loss of each row of a batch, as torch's cross entropy has it anyway.

A training hands its callbacks one mean. The operator that made the mean keeps each row's log-probabilities
for its backward pass; one number per row is read there, and nothing is computed again. A loss that is made
otherwise (fused kernels, a compiled model, label smoothing by hand) has no rows here.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from asys_bench.contracts.torch_internals import NLL_LOSS, saved_of_nll_loss

log = logging.getLogger(__name__)

_MOST_NODES = 16
"""Of autograd's graph, from the loss back: divisions and sums lie between it and its operator."""


def loss_rows(loss: Any) -> torch.Tensor | None:
    """float[N], NaN where the row's target is ignored; None: it is no cross entropy, or several.

    Does not wait for a device.
    """
    if not isinstance(loss, torch.Tensor) or loss.grad_fn is None:
        return None
    found = _operators(loss.grad_fn)
    if len(found) != 1:
        return None
    (node,) = found
    with torch.no_grad():
        log_NV, target_N, ignored = saved_of_nll_loss(node)
        if log_NV.ndim < 2 or target_N.ndim != log_NV.ndim - 1:
            return None
        ignored_N = target_N == ignored
        picked_N = log_NV.gather(1, target_N.masked_fill(ignored_N, 0).unsqueeze(1)).squeeze(1)
        rows: torch.Tensor = (-picked_N).masked_fill(ignored_N, torch.nan)
    return rows.squeeze(1) if rows.ndim == 3 and rows.shape[1] == 1 else rows


def loss_rows_or_none(loss: Any) -> torch.Tensor | None:
    """`loss_rows`; None too where they cannot be read."""
    try:
        return loss_rows(loss)
    except Exception as error:  # noqa: BLE001 - nothing of ours may reach the host
        log.debug("the rows of a loss cannot be read: %s", error)
        return None


def rows_of_tokens(rows_N: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """[B, T] where the rows are the tokens of logits [B, T, V], or all but the last of each sequence."""
    if len(shape) != 3 or rows_N.ndim != 1:
        return rows_N
    batch, length = shape[:2]
    if len(rows_N) == batch * length:
        return rows_N.view(batch, length)
    if len(rows_N) == batch * (length - 1):
        rows_BT = rows_N.new_full((batch, length), torch.nan)
        rows_BT[:, :-1] = rows_N.view(batch, length - 1)
        return rows_BT
    return rows_N


def _operators(node: Any) -> list[Any]:
    found, left, seen = [], [node], 0
    while left and seen < _MOST_NODES:
        node, seen = left.pop(), seen + 1
        if node.name() in NLL_LOSS:
            found.append(node)
        else:
            left += [before for before, _ in node.next_functions if before is not None]
    return found
