"""What forwarder and receiver say to each other: messages of one ZeroMQ frame, without pickle.

A message is a head of 16 bytes and a body::

    0 u32 magic "ASYW" | 4 u16 protocol | 6 u8 kind | 7 u8 0 | 8 u64 number

    HELLO    forwarder: number = its connections so far. JSON, `Hello`
    WELCOME  receiver: JSON, `Welcome`
    REFUSED  receiver: JSON, reason and message; the connection is over
    NAMES    forwarder: JSON, `Names`: further names, and writers of its bus
    BATCH    forwarder: number = 1, 2, ... in this connection; packets, see below
    ACK      receiver: number = the last batch that is done with; `Ack`
    QUERY    forwarder: keys of packets that an earlier connection left without an answer
    KNOWN    receiver: a bit for each key of the query of that number: it is in the ledger
    REPORT   forwarder: JSON, its account so far; also says that it lives. Answered by ACK
    FIN      forwarder: JSON, its last account
    BYE      receiver: nothing more will be answered (answer to FIN, or the receiver leaves)

The body of a BATCH: u64 the origin's clock when it was sent, u32 packets, u32 0, then for each packet
u32 offset and u32 length within the message, then the packets: header (`contracts.packet`) and payload, each
at a multiple of 64. Ids in the headers are those of the origin's bus.

Everything is input: whoever reads a message raises WireError with one of `Refusal`, and nothing else.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import IntEnum, StrEnum
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

PROTOCOL = 1
MAGIC = 0x57595341  # b"ASYW" little-endian
_HEAD = struct.Struct("<IHBBQ")
HEAD_BYTES = _HEAD.size
_BATCH = struct.Struct("<QII")
ENTRY_BYTES = 8
_ACK = struct.Struct("<6Q")
KEYS = np.dtype([("source", "<u4"), ("shard", "<u4"), ("seq", "<u8")])
"""A packet's name in a QUERY."""
ALIGNMENT = 64
MAX_JSON_BYTES = 2 << 20
MAX_PACKETS = 1 << 16
"""Of one batch."""
MAX_NAMES, MAX_NAME_BYTES, MAX_STREAMS, MAX_TEXT = 1 << 16, 256, 4096, 512
MAX_SOURCE, MAX_SHARD, MAX_SEQ = (1 << 32) - 1, (1 << 16) - 1, (1 << 40) - 1
_MOST = (1 << 63) - 1


class Message(IntEnum):
    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    NAMES = 4
    BATCH = 5
    ACK = 6
    QUERY = 7
    KNOWN = 8
    REPORT = 9
    FIN = 10
    BYE = 11


class Refusal(StrEnum):
    """Why a connection is over."""

    PROTOCOL = "protocol"
    """Another version of this protocol."""
    JOB = "job"
    """The receiver takes another job's packets."""
    KEY = "key"
    """The client's key is not among those that the receiver allows."""
    NAMES = "names"
    """An id, source or shard that the HELLO does not name."""
    HOOKS = "hooks"
    """The receiver does not take these hooks, or began its run with others."""
    BUSY = "busy"
    """It has as many connections as it may."""
    OVERLAP = "overlap"
    """Another forwarder of the same run sends one of these hooks."""
    MALFORMED = "malformed"
    """A message whose lengths, values or order are not those of the protocol."""
    TOO_LARGE = "too_large"
    """A message is larger than the receiver takes."""
    REPLAY = "replay"
    """A batch number that is not the next."""
    STALE = "stale"
    """The same forwarder has connected again since."""
    CREDIT = "credit"
    """More bytes than were granted."""
    FULL = "full"
    """The receiver has no shard left for another rank, or no memory for another connection."""
    MEMORY = "memory"
    """The receiver had to give back memory, and every connection with it."""


class WireError(ValueError):
    """A message that is refused."""

    def __init__(self, reason: Refusal, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Ack:
    """How far the receiver is with a connection.

    total: packets of this forwarder that it has ever accepted. The rest counts since the connection began:
    accepted, duplicates (accepted before), expired (too old for the ledger to tell), unpushed (larger than
    a packet of its bus may be); limit: bytes of batches that the forwarder may have sent.
    """

    batch: int
    total: int
    accepted: int
    duplicates: int
    expired: int
    unpushed: int
    limit: int


@dataclass(frozen=True, slots=True)
class Hello:
    """What a forwarder says first.

    ranks: (source, shard) of the writers of its bus that it has seen. names: id -> name on its bus.
    streams: entries of its run.json, of the hooks that it sends. first_packet: added to a seq by readers
    (`SinkContext`).
    """

    job: str
    run_id: str
    attempt: int
    worker: str
    node: str
    ranks: tuple[tuple[int, int], ...]
    names: dict[int, str]
    streams: tuple[dict[str, Any], ...]
    side: tuple[str, ...]
    step_unit: str
    first_packet: int
    world: int = 1


@dataclass(frozen=True, slots=True)
class Names:
    """What packets to come refer to, beyond the HELLO."""

    names: dict[int, str]
    ranks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a receiver answers.

    id: of its ledger. accepted: packets of this forwarder that it has ever accepted. max_message,
    max_packet: bytes; no more than it ever grants. limit: see `Ack`. skip: streams that another forwarder
    of this run sends already.
    """

    name: str
    id: str
    accepted: int
    max_message: int
    max_packet: int
    limit: int
    skip: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """A forwarder's account; see `forwarder`."""

    taken: int = 0
    acked: int = 0
    in_flight: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    final: bool = False


def message(kind: Message, number: int = 0, body: bytes = b"") -> bytes:
    return _HEAD.pack(MAGIC, PROTOCOL, kind, 0, number) + body


def head(data: memoryview) -> tuple[Message, int]:
    """Kind and number. Raises WireError."""
    if data.nbytes < HEAD_BYTES:
        raise WireError(Refusal.MALFORMED, f"{data.nbytes} bytes hold no message")
    magic, protocol, kind, zero, number = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise WireError(Refusal.MALFORMED, f"magic {magic:#010x} is not {MAGIC:#010x}")
    if protocol != PROTOCOL:
        raise WireError(
            Refusal.PROTOCOL,
            f"protocol {protocol}, here {PROTOCOL}: run the same version of asys-i on all nodes",
        )
    if zero or number > _MOST:
        raise WireError(Refusal.MALFORMED, "the head of a message is damaged")
    try:
        return Message(kind), number
    except ValueError:
        raise WireError(Refusal.MALFORMED, f"no message is of kind {kind}") from None


def refused(reason: Refusal, why: str) -> bytes:
    return as_json(Message.REFUSED, 0, {"reason": str(reason), "message": why[:MAX_TEXT]})


def as_json(kind: Message, number: int, document: Any) -> bytes:
    if not isinstance(document, dict):
        document = asdict(document)
    return message(kind, number, json.dumps(document, separators=(",", ":")).encode())


T = TypeVar("T", Hello, Names, Welcome, Report)
Size = TypeVar("Size", int, npt.NDArray[np.int64])
Entries = npt.NDArray[np.int64]
"""[n, 2]: offset and length of packets in a BATCH."""


def parse(kind: type[T], data: memoryview) -> T:
    """A message whose body is a `kind`. Raises WireError."""
    document = read_json(data)
    known = [one.name for one in fields(kind)]
    if set(document) != set(known):
        raise WireError(
            Refusal.MALFORMED, f"{kind.__name__}: has {sorted(document)[:20]}, not {known}"
        )
    checked = {name: _CHECKS[name](name, value) for name, value in document.items()}
    return kind(**checked)


def read_json(data: memoryview) -> dict[str, Any]:
    """The body of a message as an object. Raises WireError."""
    if data.nbytes > MAX_JSON_BYTES:
        raise WireError(Refusal.TOO_LARGE, f"{data.nbytes} bytes of JSON; at most {MAX_JSON_BYTES}")
    try:
        document = json.loads(bytes(data[HEAD_BYTES:]))
    except (ValueError, RecursionError) as error:
        raise WireError(Refusal.MALFORMED, f"the body is no JSON: {str(error)[:80]}") from None
    if not isinstance(document, dict):
        raise WireError(Refusal.MALFORMED, "the body is no JSON object")
    return document


def parse_names(document: Any) -> dict[int, str]:
    """id -> name, as JSON has it. Raises WireError."""
    if not isinstance(document, dict) or len(document) > MAX_NAMES:
        raise _malformed("names", document)
    found: dict[int, str] = {}
    for key, name in document.items():
        if not (isinstance(key, str) and key.isdecimal() and len(key) <= 5):
            raise _malformed("an id of names", key)
        found[_count("an id of names", int(key), MAX_NAMES - 1)] = _text(
            "a name", name, MAX_NAME_BYTES
        )
    return found


def parse_refused(data: memoryview) -> tuple[Refusal, str]:
    """Raises WireError."""
    document = read_json(data)
    try:
        reason = Refusal(str(document.get("reason")))
    except ValueError:
        reason = Refusal.PROTOCOL
    return reason, _text("message", document.get("message", ""))


def ack(value: Ack) -> bytes:
    body = _ACK.pack(
        value.total, value.accepted, value.duplicates, value.expired, value.unpushed, value.limit
    )
    return message(Message.ACK, value.batch, body)


def parse_ack(number: int, data: memoryview) -> Ack:
    """Raises WireError."""
    if data.nbytes != HEAD_BYTES + _ACK.size:
        raise WireError(Refusal.MALFORMED, f"an ACK of {data.nbytes} bytes")
    return Ack(number, *_ACK.unpack_from(data, HEAD_BYTES))


def batch_bytes(sizes: npt.ArrayLike) -> int:
    """Of a BATCH of packets of these sizes, headers included."""
    found = np.asarray(sizes, np.int64)
    return table_end(len(found)) + int(aligned(found).sum())


def table_end(packets: int) -> int:
    """Where the first packet of a BATCH begins."""
    return aligned(HEAD_BYTES + _BATCH.size + ENTRY_BYTES * packets)


def aligned(nbytes: Size) -> Size:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def entries_of(sizes: npt.NDArray[np.int64]) -> Entries:
    """Where packets of these sizes, headers included, lie in a BATCH."""
    taken = aligned(sizes)
    ends = table_end(len(sizes)) + np.cumsum(taken)
    return np.stack([ends - taken, sizes], axis=1)


def batch_end(entries: Entries) -> int:
    """Bytes of a BATCH with these packets, one at least."""
    return aligned(int(entries[-1].sum()))


def write_batch_head(out: memoryview, number: int, clock_ns: int, entries: npt.ArrayLike) -> None:
    """entries: [n, 2], offset and length of each packet, which are in place already."""
    table = np.asarray(entries, "<u4")
    _HEAD.pack_into(out, 0, MAGIC, PROTOCOL, Message.BATCH, 0, number)
    _BATCH.pack_into(out, HEAD_BYTES, clock_ns, len(table), 0)
    at = HEAD_BYTES + _BATCH.size
    out[at : at + table.nbytes] = table.tobytes()


def parse_batch(data: memoryview, least: int) -> tuple[int, Entries]:
    """(the origin's clock in ns, offset and length of each packet), checked against the message's length.

    least: bytes of a packet, at least.

    Raises:
        WireError: see there.
    """
    if data.nbytes < HEAD_BYTES + _BATCH.size:
        raise WireError(Refusal.MALFORMED, f"a BATCH of {data.nbytes} bytes")
    clock_ns, count, zero = _BATCH.unpack_from(data, HEAD_BYTES)
    start = table_end(count) if count <= MAX_PACKETS else 0
    if zero or not 0 < count <= MAX_PACKETS or start > data.nbytes or clock_ns > _MOST:
        raise WireError(Refusal.MALFORMED, f"a BATCH of {count} packets in {data.nbytes} bytes")
    table = np.frombuffer(data, "<u4", 2 * count, HEAD_BYTES + _BATCH.size).astype(np.int64)
    entries = table.reshape(count, 2)
    expected = entries_of(entries[:, 1])
    wrong = (expected != entries).any(axis=1) | (entries[:, 1] < least)
    if wrong.any():
        offset, length = entries[int(wrong.argmax())].tolist()
        raise WireError(Refusal.MALFORMED, f"a packet at {offset} of {length} bytes in a BATCH")
    end = batch_end(entries)
    if end != data.nbytes:
        raise WireError(
            Refusal.MALFORMED, f"packets of a BATCH end at {end}, the message at {data.nbytes}"
        )
    return clock_ns, entries


def query(number: int, keys: npt.ArrayLike) -> bytes:
    """keys: `KEYS`."""
    return message(Message.QUERY, number, np.asarray(keys, KEYS).tobytes())


def parse_query(data: memoryview) -> list[tuple[int, int, int]]:
    """Raises WireError."""
    size = data.nbytes - HEAD_BYTES
    if size % KEYS.itemsize or not 0 < size <= MAX_PACKETS * KEYS.itemsize:
        raise WireError(Refusal.MALFORMED, f"a QUERY of {size} bytes")
    found: list[tuple[int, int, int]] = np.frombuffer(data, KEYS, offset=HEAD_BYTES).tolist()
    return found


def known(number: int, answers: Sequence[bool]) -> bytes:
    bits = bytearray(-(-len(answers) // 8))
    for index, yes in enumerate(answers):
        bits[index >> 3] |= yes << (index & 7)
    return message(Message.KNOWN, number, bytes(bits))


def parse_known(data: memoryview, count: int) -> list[bool]:
    """Raises WireError."""
    bits = data[HEAD_BYTES:]
    if bits.nbytes != -(-count // 8):
        raise WireError(Refusal.MALFORMED, f"a KNOWN of {bits.nbytes} bytes for {count} keys")
    return [bool(bits[index >> 3] >> (index & 7) & 1) for index in range(count)]


def _malformed(what: str, value: object) -> WireError:
    return WireError(Refusal.MALFORMED, f"{what} is {str(value)[:80]!r}")


def _text(what: str, value: object, most: int = MAX_TEXT) -> str:
    if not isinstance(value, str) or len(value.encode(errors="replace")) > most or "\0" in value:
        raise _malformed(what, value)
    return value


def _count(what: str, value: object, most: int = _MOST) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise _malformed(what, value)
    return value


def _ranks(what: str, value: object) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list) or len(value) > MAX_STREAMS:
        raise _malformed(what, value)
    found = []
    for one in value:
        if not isinstance(one, list) or len(one) != 2:
            raise _malformed(what, one)
        found.append((_count("a source", one[0], MAX_SOURCE), _count("a shard", one[1], MAX_SHARD)))
    if len(set(found)) != len(found):
        raise _malformed(what, value)
    return tuple(found)


STREAM_FIELDS = {"name", "module", "kind", "rows", "select", "coin"}


def _streams(what: str, value: object) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or len(value) > MAX_STREAMS:
        raise _malformed(what, value)
    for one in value:
        if not isinstance(one, dict) or not {"name"} <= set(one) <= STREAM_FIELDS:
            raise _malformed(what, one)
        for key, inner in one.items():
            if key == "select" and (inner is None or type(inner) is int):
                continue
            _text(f"{what}.{key}", inner)
        if not one["name"]:
            raise _malformed(what, one)
    names = [one["name"] for one in value]
    if len(set(names)) != len(names):
        raise _malformed(what, names)
    return tuple(value)


def _strings(what: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_STREAMS:
        raise _malformed(what, value)
    return tuple(_text(what, one) for one in value)


def _counts(what: str, value: object) -> dict[str, int]:
    if not isinstance(value, dict) or len(value) > 64:
        raise _malformed(what, value)
    return {_text(what, key, 64): _count(what, one) for key, one in value.items()}


def _flag(what: str, value: object) -> bool:
    if type(value) is not bool:
        raise _malformed(what, value)
    return value


_CHECKS: Mapping[str, Any] = {
    **dict.fromkeys(("job", "run_id", "worker", "node", "step_unit", "name", "id"), _text),
    **dict.fromkeys(("attempt", "first_packet", "world", "accepted"), _count),
    **dict.fromkeys(("max_message", "max_packet", "limit", "taken", "acked", "in_flight"), _count),
    "ranks": _ranks,
    "names": lambda what, value: parse_names(value),
    "streams": _streams,
    "side": _strings,
    "skip": _strings,
    "dropped": _counts,
    "final": _flag,
}
