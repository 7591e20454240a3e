"""What a text model is being fed: which rows are padding, and which token and position each row is.

Hugging Face models take `input_ids` [B, T] and `attention_mask` [B, S >= T] in their root forward
call. A pre-hook there reads both, before any module inside runs:

- rows of padding are left out of every [B, T, D] capture (`RealRows`), so that no SAE learns them;
- the stream `tokens` carries int32 rows (token id, position), one per row of the captures of the same
  forward call and in the same order, so that an archived activation can be traced to its token.

With a key-value cache T is the new tokens alone and S counts the cached ones; positions go on. On an
accelerator none of this is read, because that would stall the host: there, padding stays in.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import numpy as np
import torch

from asys_bench.config.hooks import HookConfig
from asys_bench.contracts.packet import ActivationPacket, Kind
from asys_bench.contracts.preprocessor import Encoded, Positions, Preprocessor
from asys_bench.pipeline.clock import StepClock
from asys_bench.pipeline.hookpoints import HookPoint
from asys_bench.pipeline.root_hook import RootHook

log = logging.getLogger(__name__)

TOKENS = "tokens"
"""Name of the stream of (token id, position) rows."""


class RealRows:
    """The rows of a [B, T, D] activation that are tokens, as of the last root forward call."""

    def __init__(self) -> None:
        self._shape: tuple[int, int] = (0, 0)
        self.positions: Positions | None = None
        """Rows to keep of B * T; None: all of them."""

    def set(self, mask_BT: torch.Tensor | None) -> None:
        """mask_BT: bool on the CPU; None: no padding."""
        if mask_BT is None or bool(mask_BT.all()):
            self.positions = None
            return
        self._shape = (mask_BT.shape[0], mask_BT.shape[1])
        self.positions = np.flatnonzero(mask_BT.numpy()).astype(np.int64)

    def of(self, tensor: torch.Tensor) -> Positions | None:
        """The rows to keep of `tensor`; None when it is not [B, T, D] of this call, or all are kept."""
        if self.positions is None or tensor.ndim != 3 or tuple(tensor.shape[:2]) != self._shape:
            return None
        return self.positions


class RealRowsPreprocessor(Preprocessor):
    """`inner`, applied to the rows that are tokens: what is sent is [n, D] instead of [B, T, D]."""

    def __init__(self, inner: Preprocessor, rows: RealRows) -> None:
        self._inner, self._rows = inner, rows
        self.encoding = inner.encoding

    def payload_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return self._inner.payload_bytes(shape, dtype)

    def decoded_width(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return self._inner.decoded_width(shape, dtype)

    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        positions = self._rows.of(tensor)
        if positions is None:
            return self._inner.encode(tensor, out)
        return self._inner.encode_rows(tensor, out, positions)

    def encode_rows(self, tensor: torch.Tensor, out: memoryview, positions: Positions) -> Encoded:
        return self._inner.encode_rows(tensor, out, positions)

    def decode(self, packet: ActivationPacket) -> torch.Tensor:
        return self._inner.decode(packet)


class _Tap(torch.nn.Module):
    """Gives its input back; the hook on it is what sends the token rows."""

    def forward(self, rows_N2: torch.Tensor) -> torch.Tensor:
        return rows_N2


class TextInputs:
    """Reads a model's text arguments; `attach` it while the hooks are attached."""

    def __init__(self, called: torch.nn.Module, names: list[str]) -> None:
        """called: the module that the user calls; names: parameters of the model's `forward`."""
        self.rows = RealRows()
        self._root = called
        self._index = {name: index for index, name in enumerate(names)}
        self._tap = _Tap()
        self._handle: torch.utils.hooks.RemovableHandle | None = None
        self._clock: StepClock | None = None
        self._failed = False
        self.sends_tokens = "input_ids" in self._index

    @classmethod
    def of(cls, model: torch.nn.Module, root: torch.nn.Module | None = None) -> TextInputs | None:
        """None when `model` takes no text, or when two sequences (encoder and decoder) share it.

        root: what the user calls, where that is a wrapper which passes its arguments on to `model`.
        """
        try:
            names = list(inspect.signature(model.forward).parameters)
        except (TypeError, ValueError):
            return None
        takes_text = "input_ids" in names or "attention_mask" in names
        if not takes_text or "decoder_input_ids" in names:
            return None
        if not all(parameter.is_cpu for parameter in model.parameters()):
            log.warning(
                "the model is not on the CPU: rows of padding are captured like any other, and token "
                "ids are not recorded; feed it sequences without padding"
            )
            return None
        return cls(root if root is not None else model, names)

    @property
    def points(self) -> list[HookPoint]:
        """The stream of token rows as a hook point."""
        config = HookConfig(match=(TOKENS,))
        return [HookPoint(TOKENS, self._tap, Kind.ACTIVATION, config)] if self.sends_tokens else []

    def attach(self, clock: StepClock) -> None:
        """Register the pre-hook; a second call changes nothing.

        clock: told the position of the first token where one sequence is fed at a time.
        """
        self._clock = clock
        if self._handle is None:
            hook = RootHook(self._before)
            self._handle = self._root.register_forward_pre_hook(hook, with_kwargs=True)

    def detach(self) -> None:
        """Remove it. Idempotent."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _before(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if self._failed:
            return
        try:
            self._read(args, kwargs)
        except Exception as error:  # noqa: BLE001 - fail-open: nothing of ours may reach the host
            self._failed = True
            self.rows.set(None)
            log.warning(
                "padding and token ids are no longer read, after %s: %s",
                type(error).__name__,
                error,
            )

    def _read(self, args: Any, kwargs: dict[str, Any]) -> None:
        ids_BT = _matrix(self._argument("input_ids", args, kwargs))
        mask_BS = _matrix(self._argument("attention_mask", args, kwargs))
        mask_BT = None
        if mask_BS is not None:
            length = ids_BT.shape[1] if ids_BT is not None else mask_BS.shape[1]
            mask_BT = (mask_BS != 0)[:, -length:]
        self.rows.set(mask_BT)
        if ids_BT is None or not self._tap._forward_hooks:
            return
        positions_BT = self._positions(ids_BT, mask_BS, args, kwargs)
        if ids_BT.shape[0] == 1 and ids_BT.shape[1] and self._clock is not None:
            self._clock.token_position = int(positions_BT[0, 0])
        rows_N2 = torch.stack([ids_BT.reshape(-1), positions_BT.reshape(-1)], dim=1)
        kept = self.rows.positions
        if kept is not None:
            rows_N2 = rows_N2.index_select(0, torch.from_numpy(kept))
        with torch.no_grad():
            self._tap(rows_N2.to(torch.int32))

    def _positions(
        self, ids_BT: torch.Tensor, mask_BS: torch.Tensor | None, args: Any, kwargs: dict[str, Any]
    ) -> torch.Tensor:
        given = self._argument("position_ids", args, kwargs)
        length = ids_BT.shape[1]
        if isinstance(given, torch.Tensor) and given.is_cpu and given.shape[-1] == length:
            return given.detach().expand(ids_BT.shape).to(ids_BT.dtype)
        if mask_BS is not None and mask_BS.shape[0] == ids_BT.shape[0]:
            counted_BS = (mask_BS != 0).long().cumsum(1) - 1
            return counted_BS.clamp(min=0)[:, -length:].to(ids_BT.dtype)
        cache = self._argument("past_key_values", args, kwargs)
        seen = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
        return torch.arange(seen, seen + length, dtype=ids_BT.dtype).expand(ids_BT.shape)

    def _argument(self, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        if name in kwargs:
            return kwargs[name]
        index = self._index.get(name, len(args))
        return args[index] if index < len(args) else None


def _matrix(value: Any) -> torch.Tensor | None:
    """A two-dimensional CPU tensor of integers or booleans, or None."""
    if not isinstance(value, torch.Tensor) or value.ndim != 2 or not value.is_cpu:
        return None
    return None if value.is_floating_point() or value.is_complex() else value.detach()
