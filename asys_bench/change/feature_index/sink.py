"""`FeatureIndexWorker`: what each feature of a hook's SAE fires on, while the run goes on.

Rows go through the hook's SAE (the run's own, as its checkpoints come, or a folder's). Of each feature are
kept: its strongest examples, random ones of each fifth of its activations, with the tokens around them; a
histogram; its density over the host's steps; which features fire with it (`index`). Files are written now and
then, and a worker that is started again goes on with them: a kill loses what came since.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace

import numpy as np
import torch

from asys_bench.change.feature_index.batches import Part
from asys_bench.change.feature_index.hook_index import HookIndex
from asys_bench.change.feature_index.options import FeatureIndexOptions
from asys_bench.change.feature_index.pace import Pace, moment_of
from asys_bench.change.feature_index.token_join import TextKey, TokenJoin, Tokens
from asys_bench.change.sae_choice import sae_of
from asys_bench.contracts.bus import Delivery, Lease
from asys_bench.contracts.coin import MASK
from asys_bench.contracts.names import SIDE_STREAMS, TOKENS
from asys_bench.contracts.packet import NO_TEXT, ActivationPacket, PacketError
from asys_bench.contracts.sink import BaseSink, SinkContext, SinkOptions, SinkPlugin
from asys_bench.system.allocator import keep_freed_memory

log = logging.getLogger(__name__)
SETTLED_S = 0.5
"""Rows of small packets wait so long for others."""
_MOST_STEP = 1 << 60


class FeatureIndexWorker(BaseSink):
    """See the module docstring."""

    max_packets = 64
    """A lease is soon done with, so that files are written in time."""

    def __init__(self, options: FeatureIndexOptions) -> None:
        self._options = options
        self._hooks: dict[int, HookIndex | None] = {}
        self._join: TokenJoin[tuple[HookIndex, Part]] = TokenJoin()
        self._tokens_id, self._has_tokens = -1, False
        self._pace = Pace(options.cpu_share)

    def open(self, context: SinkContext) -> None:
        self._context = context
        torch.set_num_threads(1)
        keep_freed_memory()

    def consume(self, lease: Lease) -> None:
        began_s = time.monotonic()
        for packet in lease:
            if packet.is_constant:  # no part of the training
                continue
            try:
                if packet.hook_id == self._tokens_id:
                    self._take_tokens(packet)
                    continue
                if packet.hook_id not in self._hooks:
                    self._meet(packet)
                hook = self._hooks.get(packet.hook_id)
                if hook is not None:
                    self._take_rows(packet, hook)
            except PacketError as error:
                log.warning("a packet is skipped: %s", str(error))
        self._pace.spent(time.monotonic() - began_s)

    def idle(self) -> None:
        now_s = time.monotonic()
        for hook, part in self._join.late():
            hook.take(part)
        for hook in self._known():
            if hook.batch and now_s >= hook.batch_since_s + SETTLED_S:
                hook.settle()
        self._pace.spent(time.monotonic() - now_s)
        for hook in self._known():
            hook.write_if_due(now_s)

    def close(self) -> None:
        """Rows that wait for tokens go without; everything is written."""
        for hook, part in self._join.late(everything=True):
            hook.take(part)
        for hook in self._known():
            hook.settle()
            hook.end()

    def _known(self) -> list[HookIndex]:
        return [hook for hook in self._hooks.values() if hook is not None]

    def _meet(self, packet: ActivationPacket) -> None:
        name = self._context.name_of(packet.hook_id)
        if name == TOKENS:
            self._tokens_id = packet.hook_id
            self._take_tokens(packet)
            return
        folder = None if name in SIDE_STREAMS else sae_of(self._options.saes, name)
        made = None if folder is None else HookIndex(name, folder, self._options, self._context)
        self._hooks[packet.hook_id] = made

    def _take_tokens(self, packet: ActivationPacket) -> None:
        tensor = self._context.decode(packet)
        if tensor.ndim != 2 or tensor.shape[1] != 2 or not len(tensor):
            return
        places = self._context.rows(packet)
        if places is not None and not np.array_equal(places, np.arange(len(tensor))):
            return  # only some of its tokens: nobody knows which the others are
        for hook, part in self._join.put(_key(packet), Tokens.of(tensor.numpy())):
            hook.take(_with_tokens(part, self._join.tokens_of(_key(packet))))

    def _take_rows(self, packet: ActivationPacket, hook: HookIndex) -> None:
        if not packet.shape or packet.dtype == torch.complex64:
            return
        width, rows = packet.shape[-1], math.prod(packet.shape[:-1])
        text = packet.text != NO_TEXT and self._tokens_come() and self._are_tokens(packet, hook)
        if not hook.is_ready(width, text):
            # Either there is no SAE yet, or it is of other rows.
            hook.left_out.add(rows)
            return
        moment = _moment(self._context, packet)
        if not self._pace.takes(moment):
            hook.left_out.add(rows)
            return
        part = self._part(packet, hook, moment)
        if part is None:
            return
        if not text:
            hook.take(part)
            return
        key = _key(packet)
        tokens = self._join.tokens_of(key)
        if tokens is not None:
            hook.take(_with_tokens(part, tokens))
            return
        part = part.owned()
        for waited, its in self._join.wait(key, (hook, part), part.x_RD.nbytes):
            waited.take(its)

    def _tokens_come(self) -> bool:
        """Whether the run has the stream of tokens."""
        self._has_tokens = self._has_tokens or TOKENS in self._context.names()
        return self._has_tokens

    def _are_tokens(self, packet: ActivationPacket, hook: HookIndex) -> bool:
        """A row is a token, and not one of its heads."""
        if self._context.rows_each(packet) == 1:
            return True
        hook.say(
            "several rows a token (heads): its examples carry no tokens; keep one head for that"
        )
        return False

    def _part(self, packet: ActivationPacket, hook: HookIndex, moment: int) -> Part | None:
        context = self._context
        tensor = context.decode(packet)
        if not tensor.ndim or tensor.shape[-1] != packet.shape[-1] or not tensor.numel():
            return None
        x_RD = tensor.reshape(-1, tensor.shape[-1])
        if x_RD.is_floating_point() and x_RD.dtype.itemsize == 1:
            x_RD = x_RD.to(torch.float32)  # float8 has no sums
        places = context.rows(packet)
        whole = places is None or len(places) != len(x_RD)
        call = {
            "host_step": min(packet.host_step, _MOST_STEP),
            "weights_version": min(packet.weights_version, _MOST_STEP),
            "source": packet.source,
            "call": packet.call_index,
            "microbatch": packet.microbatch,
            "attempt": min(context.attempt, (1 << 16) - 1),
            "text": packet.text,
        }
        return Part(
            x_RD=x_RD,
            place_R=np.arange(len(x_RD)) if whole else np.asarray(places, np.int64),
            weight=1.0 / (packet.sampling_rate * self._pace.rate),
            moment=moment,
            call=call,
        )


def _with_tokens(part: Part, tokens: Tokens | None) -> Part:
    """Where the rows are of the tokens: all of them are there."""
    fits = tokens is not None and len(part) > 0 and int(part.place_R.max()) < len(tokens)
    return replace(part, tokens=tokens) if fits else part


def _key(packet: ActivationPacket) -> TextKey:
    return TextKey(packet.source, packet.host_step, packet.microbatch, packet.text)


def _moment(context: SinkContext, packet: ActivationPacket) -> int:
    """A hash of the packet's call, the same in each hook and in each life of a worker."""
    return moment_of(context.seed & MASK, context.attempt, packet.source, packet.host_step,
                     packet.weights_version, packet.microbatch, packet.call_index)  # fmt: skip


def _build(options: SinkOptions) -> BaseSink:
    assert isinstance(options, FeatureIndexOptions)
    return FeatureIndexWorker(options)


plugin = SinkPlugin(
    name="feature_index",
    summary="keeps what each feature of an SAE fires on: examples with tokens, histograms, partners",
    options=FeatureIndexOptions,
    build=_build,
    default_delivery=Delivery.AT_MOST_ONCE,
    preload=("asys_bench.sae", "asys_bench.change.feature_index.index"),
    partition=True,
    takes_tokens=True,
    once=True,  # its files are the run's
)
