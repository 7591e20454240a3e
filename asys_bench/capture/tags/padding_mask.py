"""Which tokens of a call are real, read from any of the forms that an attention mask comes in.

- [B, S], integers, booleans or 0.0 and 1.0: 1 is a token. S counts cached tokens too; the last T are
  those of the call.
- [B, S], additive: 0 is a token, a large negative number is padding.
- [B, 1 or H, T, S] or [B, T, S], boolean or additive: which key each query sees. S may be longer than
  what there is (a static cache). A token is real if it sees itself. Libraries open rows of padding
  that would see nothing; such a row sees everything, also what the last query does not see.
- a dict of these, by kind of layer: the one of full attention, or the first.

Nothing here asks for a value: where the form depends on values, both readings are computed and one of
them is taken where the mask is. So a mask on a device is read without waiting for it. (`torch.where` of a
number would copy the number to the device, and wait.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from asys_bench.capture.host_state import on_device, readable

_BLOCKED = -1e3
"""Additive masks hold the dtype's lowest number or -inf, biases such as ALiBi's stay far above."""


class RealTokens(NamedTuple):
    """real_BT: bool, True for tokens. is_read: bool, of no dimension: the values are those of a mask;
    where they are not, all are True. None: they cannot be anything else."""

    real_BT: torch.Tensor
    is_read: torch.Tensor | None = None

    @property
    def is_of_a_mask(self) -> bool:
        """False: `is_read` says so, and is there to be asked."""
        return self.is_read is None or not self.is_read.is_cpu or bool(self.is_read)


def real_tokens(mask: Any, shape: tuple[int, int], seen: int | torch.Tensor) -> RealTokens | None:
    """Of a call; None when the mask cannot be read.

    shape: (B, T) of the call. seen: tokens in the cache before it; a number, or of no dimension.
    """
    if isinstance(mask, Mapping):
        values = list(mask.values())
        mask = mask.get("full_attention", values[0] if values else None)
    found = readable(mask)
    if found is None:
        found = on_device(mask)
    if found is None or found.is_complex():
        return None
    found = found.detach()
    if found.ndim == 2:
        return _of_keys(found, shape)
    if found.ndim == 4:
        found = found[:, 0]
    return _of_queries(found, shape, seen) if found.ndim == 3 else None


def _of_keys(mask_BS: torch.Tensor, shape: tuple[int, int]) -> RealTokens | None:
    if mask_BS.shape[0] != shape[0] or mask_BS.shape[1] < shape[1]:
        return None
    first = mask_BS.shape[1] - shape[1]
    seen_BS = mask_BS != 0
    if not mask_BS.is_floating_point():
        return RealTokens(seen_BS[:, first:])
    open_BS = mask_BS > _BLOCKED
    is_additive = (mask_BS <= _BLOCKED).any()
    is_read = is_additive | ((seen_BS == (mask_BS == 1)).all() & seen_BS.any())
    real_BS = torch.where(is_additive, open_BS, seen_BS) | ~is_read
    return RealTokens(real_BS[:, first:], is_read)


def _of_queries(
    mask_BTS: torch.Tensor, shape: tuple[int, int], seen: int | torch.Tensor
) -> RealTokens | None:
    """See the module docstring."""
    batch, length = shape
    keys = mask_BTS.shape[2]
    if keys < length or mask_BTS.shape[0] not in (1, batch) or mask_BTS.shape[1] not in (1, length):
        return None
    open_BTS = mask_BTS if mask_BTS.dtype is torch.bool else mask_BTS != 0
    if mask_BTS.is_floating_point():
        is_additive = ~(mask_BTS == 1).any()
        open_BTS = torch.where(is_additive, mask_BTS > _BLOCKED, open_BTS)
    open_BTS = open_BTS.expand(batch, length, keys)
    # The last key of all is the call's last token, unless the cache is longer than what is in it.
    is_full = open_BTS[:, -1, -1].any() | (seen + length > keys)
    first = (is_full.long() * (keys - length - seen) + seen).clamp(0, keys - length)
    own = first + torch.ones_like(open_BTS[0, 0, :length], dtype=torch.long).cumsum(0) - 1
    own_BTT = open_BTS.index_select(2, own)
    sees_itself_BT = own_BTT.diagonal(dim1=1, dim2=2)
    last_sees_BT = own_BTT[:, -1]
    return RealTokens(sees_itself_BT & (last_sees_BT | ~open_BTS.all(2)))
