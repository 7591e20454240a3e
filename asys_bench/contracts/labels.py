"""Labels: what a host says of the rows of its forward calls, such as a reward or the loss of a token.

They travel beside the activations in the side stream `labels`, a packet for what one `label()` said of a
forward call:

- tags (source, host step, weights version, microbatch) are those of the labelled forward call. The call
  index is 0 and tells nothing: a label holds for all calls of hooked modules under these tags.
- the encoding is called `label(reward,done)`: the names, in the order of the payload's columns.
- the payload is float32, or float64 where a value needs it, of shape [*rows, K]: a column per name.
  `rows` are the leading dimensions of the captured tensors, or the first of them: [K] holds for every
  row of the call, [B, K] for all T tokens of each of B sequences. Where padding was left out of a text,
  rows are its tokens [n, K] and the header has the text's number, as every other capture of it.
- NaN: this row has no such label. Booleans are 0 and 1; whole numbers are exact up to 2^53.
- what one `label()` said of several calls is one packet too, of encoding `labels(reward,done)`: its payload
  is [C, *rows, 3 + K], and the first three columns of each row are host step, weights version and
  microbatch of its call, less those of the header (`calls_of`).
- a text is a number too, `text_code`. What it says travels once, as a packet of encoding `label_text`.

A label may come later than the rows, and in any number of packets; of two of one name for one row the
later packet counts. Rows and labels belong together where the attempt and the tags are equal and
`rows_per_label` says how.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy.typing as npt

LABEL_TEXT = "label_text"
"""Encoding of packets uint8[1, TEXT_BYTES]: the UTF-8 of a text that is a label, filled up with zeros."""
TEXT_BYTES = 128
MOST_NAME_BYTES = 64
MOST_ENCODING_BYTES = 180
"""Of a name in a bus's table, less what others add to it."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CALL_COLUMNS = 3
"""Of a packet of several calls: step, version and microbatch, in front of the labels."""
_ENCODING = re.compile(r"labels?\(([A-Za-z0-9_,]+)\)")


def is_label_name(name: str) -> bool:
    """Labels are named as Python's keyword arguments in ASCII are."""
    return _NAME.fullmatch(name) is not None and len(name) <= MOST_NAME_BYTES


def label_encoding(names: Sequence[str], *, several: bool = False) -> str:
    """The encoding of a packet with a column for each of `names`; several: of several calls."""
    return f"{'labels' if several else 'label'}({','.join(names)})"


def label_names(encoding: str) -> tuple[str, ...] | None:
    """The names in an encoding, of one call or of several; None: it is another one. `padded+` in front of
    it is passed over."""
    found = _ENCODING.fullmatch(encoding.removeprefix("padded+"))
    names = tuple(found[1].split(",")) if found is not None else ()
    return names if names and all(map(is_label_name, names)) else None


def is_of_several(encoding: str) -> bool:
    """Whether packets of this encoding, which is one of labels, are of several calls."""
    return encoding.startswith("labels(")


def calls_of(
    tags: tuple[int, int, int], values: npt.NDArray[Any]
) -> Iterator[tuple[tuple[int, int, int], npt.NDArray[Any]]]:
    """((host step, weights version, microbatch), its labels [*rows, K]) of each call of a packet of
    several.

    tags: of the header. values: [C, *rows, 3 + K].
    """
    if not values.size:
        return
    of_call_C3 = values.reshape(len(values), -1, values.shape[-1])[:, 0, :CALL_COLUMNS]
    for (step, version, microbatch), labels in zip(
        of_call_C3.astype("int64").tolist(), values[..., CALL_COLUMNS:], strict=True
    ):
        yield (tags[0] + step, tags[1] + version, tags[2] + microbatch), labels


def is_of_labels(encoding: str) -> bool:
    """Whether a packet of this encoding is of the stream of labels."""
    return encoding == LABEL_TEXT or label_names(encoding) is not None


def text_code(text: str) -> int:
    """The number that stands for `text`: 48 bits of its BLAKE2b, the same in every run, above 2^32 so that
    it is none of a host's own small numbers."""
    digest = hashlib.blake2b(text_bytes(text).rstrip(b"\0"), digest_size=6).digest()
    return int.from_bytes(digest, "little") | 1 << 47


def text_bytes(text: str) -> bytes:
    """The payload that says what `text_code(text)` stands for; a long text is cut off."""
    raw = text.replace("\0", " ").encode("utf-8", "replace")[:TEXT_BYTES]
    return raw.decode("utf-8", "ignore").encode().ljust(TEXT_BYTES, b"\0")


def text_of(payload: bytes) -> str:
    """The inverse of `text_bytes`; damage is shown, not raised."""
    return payload.rstrip(b"\0").decode("utf-8", "replace")


def rows_per_label(
    label: tuple[int, ...],
    rows: tuple[int, ...] | None,
    *,
    label_text: int = 0,
    rows_text: int = 0,
) -> int | None:
    """Captured rows that each row of a label holds for, in order; None: it is not of these rows.

    label, rows: leading dimensions of the label and of the captured tensor; rows None: not known.
    label_text, rows_text: numbers of the texts whose tokens they are; 0 (`packet.NO_TEXT`): of none.
    """
    if not label:
        return 1 << 62
    if rows is None or (label_text and label_text != rows_text):
        return None
    mine, theirs = prod(label), prod(rows)
    if mine == theirs:
        return 1
    if label == rows[: len(label)] and mine:
        return theirs // mine
    return None
