"""Which tokens of a call are real, read from any of the forms that an attention mask comes in.

- [B, S], integers, booleans or 0.0 and 1.0: 1 is a token. S counts cached tokens too; the last T are
  those of the call.
- [B, S], additive: 0 is a token, a large negative number is padding.
- [B, 1 or H, T, S] or [B, T, S], boolean or additive: which key each query sees. S may be longer than
  what there is (a static cache). A token is real if it sees itself. Libraries open rows of padding
  that would see nothing; such a row sees everything, also what the last query does not see.
- a dict of these, by kind of layer: the one of full attention, or the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from asys_bench.capture.host_state import readable

_BLOCKED = -1e3
"""Additive masks hold the dtype's lowest number or -inf, biases such as ALiBi's stay far above."""


def real_tokens(mask: Any, shape: tuple[int, int], seen: int) -> torch.Tensor | None:
    """bool[B, T], True for tokens; None when the mask cannot be read.

    shape: (B, T) of the call. seen: tokens in the cache before it.
    """
    if isinstance(mask, Mapping):
        values = list(mask.values())
        mask = mask.get("full_attention", values[0] if values else None)
    mask = readable(mask)
    if mask is None or mask.is_complex():
        return None
    mask = mask.detach()
    if mask.ndim == 2:
        return _of_keys(mask, shape)
    if mask.ndim == 4:
        mask = mask[:, 0]
    return _of_queries(mask, shape, seen) if mask.ndim == 3 else None


def _of_keys(mask_BS: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor | None:
    if mask_BS.shape[0] != shape[0] or mask_BS.shape[1] < shape[1]:
        return None
    seen_BS = mask_BS != 0
    if mask_BS.is_floating_point():
        if bool((mask_BS <= _BLOCKED).any()):
            seen_BS = mask_BS > _BLOCKED
        elif not bool((seen_BS == (mask_BS == 1)).all()) or not bool(seen_BS.any()):
            return None  # neither 0 and 1 nor additive
    return seen_BS[:, seen_BS.shape[1] - shape[1] :]


def _of_queries(mask_BTS: torch.Tensor, shape: tuple[int, int], seen: int) -> torch.Tensor | None:
    """See the module docstring."""
    batch, length = shape
    keys = mask_BTS.shape[2]
    if keys < length or mask_BTS.shape[0] not in (1, batch) or mask_BTS.shape[1] not in (1, length):
        return None
    if mask_BTS.dtype is torch.bool:
        open_BTS = mask_BTS
    elif mask_BTS.is_floating_point() and not bool((mask_BTS == 1).any()):
        open_BTS = mask_BTS > _BLOCKED
    else:
        open_BTS = mask_BTS != 0
    open_BTS = open_BTS.expand(batch, length, keys)
    # The last key of all is the call's last token, unless the cache is longer than what is in it.
    is_full = seen + length > keys or bool(open_BTS[:, -1, -1].any())
    first = keys - length if is_full else seen
    own_BTT = open_BTS[:, :, first : first + length]
    sees_itself_BT = own_BTT.diagonal(dim1=1, dim2=2)
    last_sees_BT = own_BTT[:, -1]
    return sees_itself_BT & (last_sees_BT | ~open_BTS.all(2))
