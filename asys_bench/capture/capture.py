"""Capture: what a hook does with one tensor. This is the hot path; everything else is set-up.

A call goes through three methods, with the writer's lock held:

1. `observe` (an activation or input) refuses what is off or recomputed and turns rows,
2. `_decide` counts the call, samples it and gives it its tags: a `Ticket`,
3. `_deliver` copies the tensor into the bus and counts it: by the backend's port where the port knows
   the tensor (contiguous, on the CPU, encoding "identity"), by `_push` otherwise.

A gradient takes the same steps apart: `draw` decides when its forward call is made, `send` delivers
when the gradient arrives. A tensor on another device leaves through `_send_away`, without the lock.

`direct` is `observe` in compiled code, where the backend has it. It takes nearly every call of a hook in
its phase while the bus is not filling up, and works on the same `state`. What `direct` does not know
it leaves to `observe`. After a matrix product has emptied the caches, fetching code and objects takes
longer than the work, and `direct` touches the fewest.

Nothing raises: a call that fails is counted as skipped, and a hook of which all calls fail switches
itself off (`HookStream.stumble`).
"""

from __future__ import annotations

import time
from functools import partial

import torch

from asys_bench.capture.hook_stream import HookStream, Writer
from asys_bench.capture.host_state import (
    is_bare,
    is_plain,
    is_watched,
    plain,
    undisturbed,
    unreadable,
    unwatched,
)
from asys_bench.capture.offload import Offload
from asys_bench.capture.shards import local
from asys_bench.capture.tags.clock import StepClock, Tags
from asys_bench.capture.tags.text import RowTokens
from asys_bench.contracts.bus import DropReason
from asys_bench.contracts.capture_port import (
    CALLS_BETWEEN_CHECKS,
    CLOCK_TOSSED,
    OFF_NOTHING,
    PORT_ACCEPTED,
    PORT_NOT_MINE,
    PORT_REFUSED,
    STATE_CALL_INDEX,
    STATE_COUNTDOWN,
    STATE_NEXT_INDEX,
    STATE_NEXT_SERIAL,
    STATE_OFF,
    STATE_SEEN,
    CapturePort,
    Decision,
    DirectCapture,
)
from asys_bench.contracts.packet import DTYPE_CODE, NO_TEXT, PacketMeta
from asys_bench.contracts.preprocessor import Encoded, rows_and_width
from asys_bench.contracts.torch_internals import NO_GRAPH_TASK, current_graph_task_id

Ticket = tuple[Tags, int, float, RowTokens | None]
"""(tags, call_index, sampling rate, which tokens) of the forward call that a tensor belongs to."""

_AWAY, _SKIPPED = 3, 4
"""Outcomes of `_deliver` beside the port's: on another device; nothing there to copy."""

_ALWAYS_CALM = 2.0  # fuller than full
_CALM_CHECKS = 16
"""Checks of a calm bus by the compiled path until one here, which also sees the devices' queues."""

_now = time.perf_counter_ns


def not_direct(_: object) -> int:
    """The `DirectCapture` of a hook that needs the general path."""
    return PORT_NOT_MINE


def _no_port(*_: object) -> int:
    return PORT_NOT_MINE


class Capture:
    """The entries to one stream, which it switches on; it is the stream's only writer.

    Any thread may call the entries, which take the writer's lock.

    direct: (what the module returned, in the phase that is asked for) captures it now. A hook calls
        it first, and then `refused` or `observe` as the outcome says.
    is_of_text: `tokens` may be given, which the compiled paths do not know.
    """

    __slots__ = (
        "_acquire", "_adapts", "_any_part", "_block_timeout_s", "_budget", "_clock", "_count_call",
        "_count_sampled_out", "_count_skipped", "_fill", "_is_identity", "_kept", "_kernel",
        "_max_bytes", "_next_rate", "_offload", "_own_port", "_patience_s", "_phase", "_port",
        "_producer", "_rate", "_release", "_rows", "_state", "_stream", "_toss", "_turned",
        "_writer", "direct",
    )  # fmt: skip

    def __init__(
        self,
        stream: HookStream,
        writer: Writer,
        clock: StepClock,
        offload: Offload,
        *,
        is_of_text: bool = False,
    ) -> None:
        self._stream, self._writer, self._clock, self._offload = stream, writer, clock, offload
        # Attributes of attributes that each call would look up:
        self._kernel, self._is_identity = stream.kernel, stream.kernel.is_identity
        self._phase, self._state, self._toss = stream.phase, stream.state, stream.coin.toss
        self._fill, self._budget = stream.fill, stream.budget
        self._count_call, self._count_skipped = stream.calls.add, stream.skipped.add
        self._count_sampled_out = stream.sampled_out.add
        self._producer, self._max_bytes = writer.producer, writer.producer.max_payload_bytes
        self._block_timeout_s, self._adapts = writer.block_timeout_s, writer.adapts
        self._acquire, self._release = writer.lock.acquire, writer.lock.release
        self._patience_s = writer.patience_s
        self._rows = rows = stream.rows
        self._turned = None if rows is None or rows.always_last else rows
        self._rate = stream.fill.rate if stream.budget is None else stream.budget.rate
        self._rate = min(self._rate, stream.fill.rate)
        self._next_rate: float | None = None  # chosen, and not yet in force
        stream.set_rate(self._rate)
        stream.rate_in_force(self._rate)
        self._kept = float(stream.kernel.rows_each)  # rows that the encoder makes of a tensor's row
        self._state[STATE_SEEN] = clock.serial - 1
        self._state[STATE_COUNTDOWN] = 0
        own_port = None
        self._any_part = stream.point.parameter is not None
        is_plain_stream = not is_of_text and stream.part is None
        if self._is_identity and not self._block_timeout_s and is_plain_stream:
            own_port = writer.producer.capture_port(stream.meta, stream.port_cells)
        self._own_port = own_port
        self._port = own_port if own_port is not None else _no_port
        self.direct = not_direct if own_port is None else self._make_direct(own_port)
        stream.off = False

    def _make_direct(self, port: CapturePort) -> DirectCapture:
        stream = self._stream
        return port.direct(
            Decision(
                stream.state,
                self._clock.cells,
                stream.sampled_out.cell,
                stream.skipped.cell,
                stream.coin.key,
                self._writer.lock.locked,
                current_graph_task_id,
                stream.budget.cells if stream.budget is not None else None,
            )
        )

    # ---- entries

    def observe(
        self, tensor: torch.Tensor | None, training: bool | None, tokens: RowTokens | None = None
    ) -> None:
        """Capture `tensor` (None: there was nothing to capture) now.

        training: `module.training`. tokens: which tokens the rows of `tensor` are.
        """
        if is_watched():
            unwatched(self._observe, tensor, training, tokens)
        else:  # a call less
            self._observe(tensor, training, tokens)

    def observe_again(
        self, tensor: torch.Tensor | None, training: bool | None, tokens: RowTokens | None = None
    ) -> None:
        """As `observe`, of another tensor of the call that was counted last: it shares its coin."""
        if self._enter():
            here, state, number = self._clock.here(), self._state, self._stream.number
            if here is not None:
                if number in here.indices:
                    here.indices[number] -= 1
            elif state[STATE_SEEN] == self._clock.serial:
                state[STATE_CALL_INDEX] -= 1
            self._release()
        self.observe(tensor, training, tokens)

    def _observe(
        self, tensor: torch.Tensor | None, training: bool | None, tokens: RowTokens | None
    ) -> None:
        if not self._enter():
            return
        try:
            if current_graph_task_id() != NO_GRAPH_TASK:  # activation checkpointing recomputes
                self._stream.recomputed.add()
                return
            if tensor is not None:
                tensor = self._rows_last(tensor)
            ticket = self._decide(tensor, training, tokens)
            if ticket is None or tensor is None or self._deliver(tensor, ticket) != _AWAY:
                return
        except Exception as error:  # noqa: BLE001 - nothing of ours may reach the host
            self._skip(error)
            return
        finally:
            self._release()
        self._send_away(tensor, ticket)

    def draw(
        self, tensor: torch.Tensor | None, training: bool | None, tokens: RowTokens | None = None
    ) -> Ticket | None:
        """A ticket, if this call is to be captured. Call it `unwatched`.

        tensor: of the shape to come. training, tokens: as for `observe`.
        """
        if not self._enter():
            return None
        try:
            if tensor is not None:
                tensor = self._rows_last(tensor)
            return self._decide(tensor, training, tokens)
        except Exception as error:  # noqa: BLE001 - as above
            self._skip(error)
            return None
        finally:
            self._release()

    def send(self, tensor: torch.Tensor | None, ticket: Ticket) -> None:
        """Capture the tensor of a ticket; None: it never came."""
        if is_watched():
            unwatched(self._send, tensor, ticket)
        else:
            self._send(tensor, ticket)

    def _send(self, tensor: torch.Tensor | None, ticket: Ticket) -> None:
        if not self._enter():
            return
        try:
            if tensor is None:
                self._skip("autograd passed no gradient")
                return
            tensor = self._rows_last(tensor)
            if self._deliver(tensor, ticket) != _AWAY:
                return
        except Exception as error:  # noqa: BLE001 - as above
            self._skip(error)
            return
        finally:
            self._release()
        self._send_away(tensor, ticket)

    def refused(self) -> None:
        """`direct` has said PORT_REFUSED."""
        if not self._enter():
            return
        try:
            self._note_refusal()
        except Exception as error:  # noqa: BLE001 - as above
            self._stream.stumble(error)
        finally:
            self._release()

    def leave_out(self, why: str | Exception | None) -> None:
        """Count a call that captures nothing.

        why: a reason to explain, what went wrong, or None: nothing to say.
        """
        if not self._enter():
            return
        try:
            self._skip(why)
        finally:
            self._release()

    def close(self) -> None:
        """Switch the stream off and let go of the stats page. Idempotent."""
        with self._writer.lock:
            self._stream.off = True
            if self._own_port is not None:
                self._own_port.close()

    def _enter(self) -> bool:
        """Take the lock, unless the stream is off or another thread keeps the lock too long."""
        return self._state[STATE_OFF] != OFF_NOTHING and (
            self._acquire(False) or self._acquire(True, self._patience_s)
        )

    def _rows_last(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's part of it, with its rows in the last dimension."""
        if type(tensor) is not torch.Tensor:
            tensor = local(tensor, any_part=self._any_part)
        return tensor if self._turned is None else self._turned.view(tensor)

    # ---- decide

    def _decide(
        self, tensor: torch.Tensor | None, training: bool | None, tokens: RowTokens | None
    ) -> Ticket | None:
        """Whether to capture, and with which tags. A call that gets no ticket is counted here."""
        phase, state = self._phase, self._state
        out_of_phase = phase is not None and phase is not training
        clock = self._clock
        if tensor is None or out_of_phase or clock.paused:
            self._count_call()
            self._count_skipped()
            return None
        tags, serial = clock.tags, clock.serial
        here = clock.here()  # asked last: whose they were
        if here is not None:
            seen, counted = state[STATE_SEEN], state[STATE_CALL_INDEX]
            tags, index = here.tags, here.next_index(self._stream.number, seen, counted)
        elif state[STATE_SEEN] == serial:
            index = state[STATE_CALL_INDEX] = state[STATE_CALL_INDEX] + 1
        else:
            index = state[STATE_CALL_INDEX] = 0
            state[STATE_SEEN] = serial
        if self._next_rate is not None:
            self._take_next_rate(serial if here is None else clock.serial_of(here), index)
        rate = self._rate  # what is chosen below is for later calls
        budget = self._budget
        if budget is not None:
            rows = rows_and_width(tensor.shape)[0] * self._kept
            if budget.offer(rows, _now()):
                self._choose_rate()
        state[STATE_COUNTDOWN] = countdown = state[STATE_COUNTDOWN] - 1
        if countdown <= 0 and not self._check(tensor):
            self._count_call()
            self._count_skipped()
            return None
        if rate < 1.0:
            if here is None and index >= clock.cells[CLOCK_TOSSED]:
                clock.cells[CLOCK_TOSSED] = index + 1
            if self._toss(tags, index) >= rate:
                self._count_call()
                self._count_sampled_out()
                return None
        return tags, index, rate, tokens

    def _check(self, tensor: torch.Tensor) -> bool:
        """What need not be done at every call. False: nobody can use the stream's rows."""
        stream = self._stream
        self._check_bus()
        if stream.shape is None:
            stream.first(tensor)
            if stream.off:
                return False
        if self._rows is not None:
            stream.check_rows(tensor)
        return True

    def _check_bus(self) -> None:
        state = self._state
        state[STATE_COUNTDOWN] = CALLS_BETWEEN_CHECKS
        calm = _ALWAYS_CALM
        if self._adapts:
            fill, offload = self._fill, self._offload
            fill.observe(max(self._writer.bus.fill_ratio(), offload.fill_ratio), _now())
            state[STATE_COUNTDOWN] = fill.calls_to_next
            calm = fill.calm_fill if not offload.fill_ratio else -1.0
            self._choose_rate()
        self._stream.set_calm(calm, _CALM_CHECKS)

    def _choose_rate(self) -> None:
        """The rate from the first call on whose coin was not tossed yet (`STATE_NEXT_RATE`)."""
        rate = self._fill.rate
        if self._budget is not None:
            rate = min(rate, self._budget.rate)
        if rate == (self._rate if self._next_rate is None else self._next_rate):
            return
        self._next_rate = rate
        clock, state = self._clock, self._state
        if clock.here() is not None:  # threads side by side: from the next forward call on
            serial, index = clock.next_call
        else:
            serial = clock.serial
            mine = state[STATE_CALL_INDEX] + 1 if state[STATE_SEEN] == serial else 0
            index = max(mine, clock.cells[CLOCK_TOSSED])
        state[STATE_NEXT_SERIAL], state[STATE_NEXT_INDEX] = serial, index
        self._stream.set_rate(rate)

    def _take_next_rate(self, serial: int, index: int) -> None:
        """`_next_rate` is in force if this call may have it; the compiled path does the same."""
        since, first = self._state[STATE_NEXT_SERIAL], self._state[STATE_NEXT_INDEX]
        if serial > since or (serial == since and index >= first):
            assert self._next_rate is not None
            self._rate, self._next_rate = self._next_rate, None
            self._stream.rate_in_force(self._rate)

    # ---- deliver

    def _deliver(self, tensor: torch.Tensor, ticket: Ticket) -> int:
        """PORT_ACCEPTED, PORT_REFUSED, _AWAY (nothing counted yet) or _SKIPPED."""
        (step, version, microbatch, position), index, rate, _ = ticket
        outcome = self._port(tensor, step, version, index, microbatch, position, rate)
        if outcome == PORT_NOT_MINE:
            outcome = self._push(tensor, ticket)
        if outcome == PORT_REFUSED:
            self._note_refusal()
        elif self._budget is not None and outcome == PORT_ACCEPTED:
            self._budget.take(rows_and_width(tensor.shape)[0] * self._kept)
        return outcome

    def _push(self, tensor: torch.Tensor, ticket: Ticket) -> int:
        """Any readable CPU tensor, any encoding, any backend."""
        began = _now()
        reason = unreadable(tensor)
        if reason is not None:
            self._skip(reason)
            return _SKIPPED
        if not tensor.is_cpu:
            return _AWAY
        if ticket[3] is not None and ticket[3].real is not None:
            ticket = (*ticket[:3], None)
            self._stream.say(
                "computes on the CPU behind a text on a device: asking which of its rows are tokens would "
                "stall the host, so they carry none, and padding among them is captured"
            )
        nbytes: int | None
        is_identity, tokens = self._is_identity, ticket[3]
        room = tensor.nbytes if is_identity else self._kernel.encoded_bytes(tensor)
        if room > self._max_bytes:  # it never fits: refused and counted before it is encoded
            self._producer.reserve(room)
            nbytes = None
        elif is_identity and (tokens is None or tokens.kept is None) and is_plain(tensor):
            nbytes = self._push_whole(tensor, ticket, began)
        elif is_bare():
            nbytes = self._encode(plain(tensor), room, ticket, began)
        else:
            with undisturbed():
                nbytes = self._encode(plain(tensor), room, ticket, began)
        stream = self._stream
        self._count_call()
        if nbytes is None:
            stream.dropped.add()
        else:
            stream.captured.add()
            stream.bytes.add(nbytes)
        stream.latency.record(_now() - began)
        return PORT_REFUSED if nbytes is None else PORT_ACCEPTED

    def _push_whole(self, tensor: torch.Tensor, ticket: Ticket, began: int) -> int | None:
        """Push the tensor's own bytes. Payload bytes, or None when the bus refused them."""
        nbytes = tensor.nbytes
        meta = self._header(Encoded(nbytes, tensor.dtype, tensor.shape), ticket, began)
        if self._block_timeout_s:
            return nbytes if self._producer.push(meta, tensor, self._block_timeout_s) else None
        return nbytes if self._producer.try_push(meta, tensor) else None

    def _encode(self, tensor: torch.Tensor, room: int, ticket: Ticket, began: int) -> int | None:
        """Encode into the bus's memory. Payload bytes, or None when the bus refused them."""
        if self._block_timeout_s:  # a reservation cannot wait for room
            return self._encode_and_wait(tensor, room, ticket, began)
        slot = self._producer.reserve(room)
        if slot is None:
            return None
        try:
            encoded = self._write(tensor, slot.view, ticket)
            meta = self._header(encoded, ticket, began)
        except BaseException:
            slot.abort()
            raise
        return encoded.nbytes if slot.commit(meta, encoded.nbytes) else None

    def _encode_and_wait(
        self, tensor: torch.Tensor, room: int, ticket: Ticket, began: int
    ) -> int | None:
        scratch = memoryview(bytearray(room))
        encoded = self._write(tensor, scratch, ticket)
        meta, payload = self._header(encoded, ticket, began), scratch[: encoded.nbytes]
        accepted = self._producer.push(meta, payload, self._block_timeout_s)
        return encoded.nbytes if accepted else None

    def _write(self, tensor: torch.Tensor, out: memoryview, ticket: Ticket) -> Encoded:
        tokens = ticket[3]
        if tokens is None or tokens.kept is None:
            encoded = self._kernel.encode(tensor, out)
        else:
            encoded = self._kernel.encode_rows(tensor, out, tokens.kept)
        self._kept = encoded.row_rate * self._kernel.rows_each
        return encoded

    def _header(
        self, encoded: Encoded, ticket: Ticket, began: int, is_padded: bool = False
    ) -> PacketMeta:
        (step, version, microbatch, position), index, rate, tokens = ticket
        text, params = NO_TEXT, encoded.params
        if tokens is not None:
            text, params = tokens.text, tokens.place or params
            position = tokens.position if tokens.position >= 0 else position
        stream = self._stream
        encoding = stream.padded_id if is_padded else stream.encoding_id
        return PacketMeta(
            stream.hook_id, stream.kind, DTYPE_CODE[encoded.dtype], encoded.shape, step, began,
            version, encoding, params, rate * encoded.row_rate, index, microbatch,
            position, text,
        )  # fmt: skip

    def _note_refusal(self) -> None:
        if self._producer.last_refusal is DropReason.TOO_LARGE:  # a lower rate makes it no smaller
            self._stream.too_large()
        elif self._adapts:
            self._stream.set_calm(-1.0, 0)
            self._fill.refused(_now())
            self._choose_rate()

    def _skip(self, why: str | Exception | None) -> None:
        """Count a call that captures nothing. Never raises."""
        try:
            self._count_call()
            self._count_skipped()
            if isinstance(why, str):
                self._stream.explain(why)
        except Exception as error:  # noqa: BLE001 - a closed stats page or a broken logging handler
            why = error
        if isinstance(why, Exception):
            self._stream.stumble(why)

    def _send_away(self, tensor: torch.Tensor, ticket: Ticket) -> None:
        """Put the copy of a tensor on another device on that device's queue; nobody waits. Never
        called with the lock held."""
        try:
            if not self._offload.serves(tensor.device):
                self._deliver_fetched(self._offload.fetch(tensor), ticket)
                return
            tags, index, rate, tokens = ticket
            real = None if tokens is None else _real_rows(tokens, tensor)
            make_header = partial(
                self._header,
                ticket=(tags, index, rate, tokens),
                began=_now(),
                is_padded=real is not None,
            )
            if not self._offload.submit(self._stream, tensor, make_header, real):
                with self._writer.lock:
                    self._note_refusal()
        except Exception as error:  # noqa: BLE001 - as above
            self.leave_out(error)

    def _deliver_fetched(self, tensor: torch.Tensor, ticket: Ticket) -> None:
        if self._enter():
            try:
                self._deliver(tensor, ticket)
            finally:
                self._release()


def _real_rows(tokens: RowTokens, tensor: torch.Tensor) -> torch.Tensor | None:
    """Which rows of a device's tensor are tokens: flags there, or in host memory; None: all, as far as
    is known."""
    if tokens.real is not None:
        if tokens.real.device == tensor.device:
            return tokens.real
        # A model over several devices: device to device, which the host does not wait for.
        return tokens.real.to(tensor.device, non_blocking=True)
    if tokens.kept is None:
        return None
    flags_N = torch.zeros(rows_and_width(tensor.shape)[0], dtype=torch.bool)
    return flags_N.index_fill_(0, torch.from_numpy(tokens.kept), True)
