"""Capture: what a hook does with one tensor. This is the hot path; everything else is set-up.

`observe` is the path of activations and inputs: decide, copy, count. A gradient is decided on when
its forward call is made (`draw` gives a ticket) and copied when it arrives (`send`).

`direct` is `observe` in compiled code, where the backend has it, for nearly every call of a hook in the
phase that it asks for, as long as the bus is not filling up. After a matrix product has emptied the caches
it is not the work that takes the time but the fetching of code and objects, and this touches the
fewest. Whatever it meets that it does not know, it leaves to `observe`, which goes by the same state.

All that stays the same for a hook is a local variable of `build_capture`: a closure cell costs a
tenth of what an attribute of an attribute does. Tensors that keep channels first are turned before
anything is done with them (`capture.points.rows`). A contiguous CPU tensor with the identity encoding
is taken whole by the backend's port, where it has one, which counts and times for itself; `push` is
the general path. Tensors of other devices leave through `send_away`, without the lock.

Nothing raises: a call that fails is counted as skipped, and a hook of which all calls fail switches
itself off (`HookStream.stumble`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from asys_bench.capture.hook_stream import HookStream, Writer
from asys_bench.capture.host_state import (
    is_bare,
    is_plain,
    plain,
    undisturbed,
    unreadable,
    unwatched,
)
from asys_bench.capture.offload import Offload
from asys_bench.capture.points.rows import seen_as_rows
from asys_bench.capture.tags.clock import StepClock, Tags
from asys_bench.contracts.bus import DropReason
from asys_bench.contracts.capture_port import (
    CALLS_BETWEEN_LOOKS,
    PORT_ACCEPTED,
    PORT_NOT_MINE,
    PORT_REFUSED,
    STATE_CALL_INDEX,
    STATE_COUNTDOWN,
    STATE_SEEN,
    Decision,
    DirectCapture,
)
from asys_bench.contracts.packet import DTYPE_CODE, NO_TEXT, PacketMeta
from asys_bench.contracts.preprocessor import Encoded, Positions, rows_and_width


class RowTokens(NamedTuple):
    """Which tokens the rows of a tensor are (`token_places`).

    text: number of the text. kept: rows that are tokens, the others are padding; None: all.
    position: of the first token in its sequence, or NO_TOKEN_POSITION.
    """

    text: int
    kept: Positions | None
    position: int


Ticket = tuple[Tags, int, float, RowTokens | None]
"""(tags, call_index, sampling rate, which tokens) of the forward call that a tensor belongs to."""
SendRows = Callable[["torch.Tensor | None", "bool | None", "RowTokens | None"], None]

_AWAY, _SKIPPED = 3, 4
"""Outcomes beside the port's: on another device; nothing there to copy."""

_NO_BACKWARD = -1
_ALWAYS_CALM = 2.0  # fuller than full
_CALM_LOOKS = 16
"""Looks of the compiled path at a calm bus until one here, which also sees the devices' queues."""


class Capture(NamedTuple):
    """The entries to a stream; any thread may use them."""

    direct: DirectCapture
    """(what the module returned, in the phase that is asked for): capture it now; first, and then
    what its outcome says."""
    refused: Callable[[], None]
    """`direct` has said PORT_REFUSED."""
    observe: Callable[..., None]
    """(tensor or nothing, module.training, its `RowTokens` or nothing): capture it now."""
    draw: Callable[..., Ticket | None]
    """(a tensor of the shape to come, module.training, its `RowTokens` or nothing): a ticket if this
    call is to be captured. Call it `unwatched`."""
    send: Callable[[torch.Tensor | None, Ticket], None]
    """Capture the tensor of a ticket; None: it never came."""
    leave_out: Callable[[str | Exception | None], None]
    """(a reason to explain, what went wrong, or nothing to say): count a call that captures nothing."""
    close: Callable[[], None]
    """Switch the stream off and let go of the stats page. Idempotent."""


def build_capture(
    stream: HookStream,
    writer: Writer,
    clock: StepClock,
    offload: Offload,
    *,
    is_of_text: bool = False,
) -> Capture:
    """The capture functions of `stream`, which they switch on; they are its only writers.

    is_of_text: it may be told which tokens its rows are, which the compiled paths do not know.
    """
    hook_id, kind, encoding_id = stream.hook_id, int(stream.point.kind), stream.encoding_id
    kernel, phase, is_identity = stream.kernel, stream.phase, stream.kernel.is_identity
    number = stream.number
    fill, budget, random, rows = stream.fill, stream.budget, stream.random, stream.rows
    producer, timeout_s, adapts = writer.producer, writer.block_timeout_s, writer.adapts
    most_bytes = producer.max_payload_bytes
    acquire, release, patience_s = writer.lock.acquire, writer.lock.release, writer.patience_s
    count_call, count_skipped = stream.calls.add, stream.skipped.add
    count_sampled_out, count_recomputed = stream.sampled_out.add, stream.recomputed.add
    now = time.perf_counter_ns
    backward_task = torch._C._current_graph_task_id
    state = stream.state
    state[STATE_SEEN] = clock.serial - 1
    state[STATE_COUNTDOWN] = 0
    own_port = None
    if is_identity and not timeout_s and not is_of_text:
        own_port = producer.capture_port(stream.meta, stream.port_cells)
    port = own_port if own_port is not None else _no_port
    direct: DirectCapture = not_direct
    if own_port is not None:
        direct = own_port.direct(
            Decision(
                state,
                clock.cells,
                stream.sampled_out.cell,
                stream.skipped.cell,
                random,
                writer.lock.locked,
                backward_task,
                budget.cells if budget is not None else None,
            )
        )
    rate = fill.rate
    kept = 1.0  # share of a tensor's rows that the encoder leaves

    def observe(
        tensor: torch.Tensor | None, training: bool | None, tokens: RowTokens | None = None
    ) -> None:
        if stream.off or (not acquire(False) and not acquire(True, patience_s)):
            return
        try:
            if backward_task() != _NO_BACKWARD:  # activation checkpointing computes it again
                count_recomputed()
                return
            ticket = decide(tensor, training, tokens)
            if ticket is None or tensor is None or deliver(tensor, ticket) != _AWAY:
                return
        except Exception as error:  # noqa: BLE001 - nothing of ours may reach the host
            miss(error)
            return
        finally:
            release()
        send_away(tensor, ticket)

    def refused_directly() -> None:
        if stream.off or (not acquire(False) and not acquire(True, patience_s)):
            return
        try:
            refused()
        except Exception as error:  # noqa: BLE001 - as above
            stream.stumble(error)
        finally:
            release()

    def draw(
        tensor: torch.Tensor | None, training: bool | None, tokens: RowTokens | None = None
    ) -> Ticket | None:
        if stream.off or (not acquire(False) and not acquire(True, patience_s)):
            return None
        try:
            return decide(tensor, training, tokens)
        except Exception as error:  # noqa: BLE001 - as above
            miss(error)
            return None
        finally:
            release()

    def send(tensor: torch.Tensor | None, ticket: Ticket) -> None:
        if stream.off or (not acquire(False) and not acquire(True, patience_s)):
            return
        try:
            if tensor is None:
                miss("autograd passed no gradient")
            if tensor is None or deliver(tensor, ticket) != _AWAY:
                return
        except Exception as error:  # noqa: BLE001 - as above
            miss(error)
            return
        finally:
            release()
        send_away(tensor, ticket)

    def leave_out(why: str | Exception | None) -> None:
        if stream.off or (not acquire(False) and not acquire(True, patience_s)):
            return
        try:
            miss(why)
        finally:
            release()

    # With the lock held:

    def miss(why: str | Exception | None) -> None:
        """Count a call that captures nothing. Never raises."""
        try:
            count_call()
            count_skipped()
            if isinstance(why, str):
                stream.explain(why)
        except Exception as error:  # noqa: BLE001 - a closed stats page or a broken logging handler
            why = error
        if isinstance(why, Exception):
            stream.stumble(why)

    def decide(
        tensor: torch.Tensor | None, training: bool | None, tokens: RowTokens | None
    ) -> Ticket | None:
        """Whether to capture, and with which tags. A call that gets no ticket is counted here."""
        out_of_phase = phase is not None and phase is not training
        if tensor is None or out_of_phase or stream.paused:
            count_call()
            count_skipped()
            return None
        tags, serial = clock.tags, clock.serial
        here = clock.here()  # asked last: whose they were
        if here is not None:
            seen, counted = state[STATE_SEEN], state[STATE_CALL_INDEX]
            tags, index = here.tags, here.next_index(number, seen, counted)
        elif state[STATE_SEEN] == serial:
            index = state[STATE_CALL_INDEX] = state[STATE_CALL_INDEX] + 1
        else:
            index = state[STATE_CALL_INDEX] = 0
            state[STATE_SEEN] = serial
        if budget is not None and budget.offer(rows_and_width(tensor.shape)[0] * kept, now()):
            choose_rate()
        state[STATE_COUNTDOWN] -= 1
        if state[STATE_COUNTDOWN] <= 0:
            look_at_bus()
            if stream.shape is None:
                stream.first(tensor)
                if stream.off:  # nobody can use its rows
                    count_call()
                    count_skipped()
                    return None
            if rows is not None:
                stream.look_at_rows(tensor)
        if rate < 1.0 and random() >= rate:
            count_call()
            count_sampled_out()
            return None
        return tags, index, rate, tokens

    def deliver(tensor: torch.Tensor, ticket: Ticket) -> int:
        (step, version, microbatch, position), index, chance, _ = ticket
        outcome = port(tensor, step, version, index, microbatch, position, chance)
        if outcome == PORT_NOT_MINE:
            outcome = push(tensor, ticket)
        if outcome == PORT_REFUSED:
            refused()
        elif budget is not None and outcome == PORT_ACCEPTED:
            budget.take(rows_and_width(tensor.shape)[0] * kept)
        return outcome

    def push(tensor: torch.Tensor, ticket: Ticket) -> int:
        """Any readable CPU tensor, any encoding, any backend."""
        began = now()
        reason = unreadable(tensor)
        if reason is not None:
            miss(reason)
            return _SKIPPED
        if not tensor.is_cpu:
            return _AWAY
        nbytes: int | None
        tokens = ticket[3]
        whole_tensor = tokens is None or tokens.kept is None
        room = tensor.nbytes if is_identity else kernel.encoded_bytes(tensor)
        if room > most_bytes:  # it never fits: refused and counted before anything is made of it
            producer.reserve(room)
            nbytes = None
        elif is_identity and whole_tensor and is_plain(tensor):
            whole = Encoded(tensor.nbytes, tensor.dtype, tensor.shape)
            nbytes = whole.nbytes if push_whole(tensor, header(whole, ticket, began)) else None
        elif is_bare():
            nbytes = encode(plain(tensor), room, ticket, began)
        else:
            with undisturbed():
                nbytes = encode(plain(tensor), room, ticket, began)
        count_call()
        if nbytes is None:
            stream.dropped.add()
        else:
            stream.captured.add()
            stream.bytes.add(nbytes)
        stream.latency.record(now() - began)
        return PORT_REFUSED if nbytes is None else PORT_ACCEPTED

    def push_whole(tensor: torch.Tensor, meta: PacketMeta) -> bool:
        if timeout_s:
            return producer.push(meta, tensor, timeout_s)
        return producer.try_push(meta, tensor)

    def encode(tensor: torch.Tensor, room: int, ticket: Ticket, began: int) -> int | None:
        """Payload bytes, or None when the bus refused it."""
        nonlocal kept
        if timeout_s:  # a reservation cannot wait for room
            scratch = memoryview(bytearray(room))
            encoded = write(tensor, scratch, ticket)
            kept = encoded.row_rate
            meta, payload = header(encoded, ticket, began), scratch[: encoded.nbytes]
            return encoded.nbytes if producer.push(meta, payload, timeout_s) else None
        slot = producer.reserve(room)
        if slot is None:
            return None
        try:
            encoded = write(tensor, slot.view, ticket)
            kept = encoded.row_rate
            meta = header(encoded, ticket, began)
        except BaseException:
            slot.abort()
            raise
        return encoded.nbytes if slot.commit(meta, encoded.nbytes) else None

    def write(tensor: torch.Tensor, out: memoryview, ticket: Ticket) -> Encoded:
        tokens = ticket[3]
        if tokens is None or tokens.kept is None:
            return kernel.encode(tensor, out)
        return kernel.encode_rows(tensor, out, tokens.kept)

    def header(encoded: Encoded, ticket: Ticket, began: int) -> PacketMeta:
        (step, version, microbatch, position), index, chance, tokens = ticket
        text = NO_TEXT
        if tokens is not None:
            text = tokens.text
            position = tokens.position if tokens.position >= 0 else position
        return PacketMeta(
            hook_id, kind, DTYPE_CODE[encoded.dtype], encoded.shape, step, began, version,
            encoding_id, encoded.params, chance * encoded.row_rate, index, microbatch, position,
            text,
        )  # fmt: skip

    def look_at_bus() -> None:
        state[STATE_COUNTDOWN] = CALLS_BETWEEN_LOOKS
        calm = _ALWAYS_CALM
        if adapts:
            fill.observe(max(writer.bus.fill_ratio(), offload.fill_ratio), now())
            state[STATE_COUNTDOWN] = fill.calls_to_next
            calm = fill.calm_fill if not offload.fill_ratio else -1.0
            choose_rate()
        stream.set_calm(calm, _CALM_LOOKS)

    def refused() -> None:
        if producer.last_refusal is DropReason.TOO_LARGE:  # a lower rate makes it no smaller
            stream.too_large()
        elif adapts:
            stream.set_calm(-1.0, 0)
            fill.refused(now())
            choose_rate()

    def choose_rate() -> None:
        nonlocal rate
        chosen = fill.rate if budget is None else min(fill.rate, budget.rate)
        if chosen != rate:
            rate = chosen
            stream.set_rate(rate)

    # Without it:

    def send_away(tensor: torch.Tensor, ticket: Ticket) -> None:
        """A tensor on another device: its copy is put on the device's queue, nobody waits."""
        try:
            if not offload.serves(tensor.device):
                send(offload.fetch(tensor), ticket)
                return
            # What a device encodes is the whole tensor: its rows are not the kept ones.
            make_header = partial(header, ticket=(*ticket[:3], None), began=now())
            if not offload.submit(stream, tensor, make_header):
                with writer.lock:
                    refused()
        except Exception as error:  # noqa: BLE001 - as above
            leave_out(error)

    def close() -> None:
        with writer.lock:
            stream.off = True
            if own_port is not None:
                own_port.close()

    stream.off = False
    take_now: Callable[..., None] = observe
    take_ticket: Callable[..., Ticket | None] = draw
    take_late: Callable[..., None] = send
    if rows is not None and not rows.always_last:
        take_now = seen_as_rows(observe, rows, leave_out)
        take_ticket = seen_as_rows(draw, rows, leave_out)
        take_late = seen_as_rows(send, rows, leave_out)
    return Capture(
        direct,
        refused_directly,
        partial(unwatched, take_now),
        take_ticket,
        partial(unwatched, take_late),
        leave_out,
        close,
    )


def _no_port(*_: object) -> int:
    return PORT_NOT_MINE


def not_direct(_: object) -> int:
    """The `DirectCapture` of a hook that needs the general path."""
    return PORT_NOT_MINE
