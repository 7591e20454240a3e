"""What the model was given when a feature fired, found in the archive.

- An RL host's observation is the input of the hooked module: `capture: [activation, input]` archives
  it as `<hook>:input`. Both captures see the same calls, so the row's key identifies it exactly.
- A text host's side stream `tokens` has a row (token id, position) per token of a text, and the column
  `text` of an activation row says of which text of the call it is the token of the same row number;
  source, host step, weights version and microbatch say which call that was. Archives of before do not
  say: there row numbers alone are a guess, which the log tells.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asys_bench.contracts.names import TOKENS
from asys_bench.contracts.packet import NO_TEXT
from asys_bench.contracts.run_files import VOCABULARY_FILE, RunFileError, read_run_file
from asys_bench.reports.run_report.archive_rows import RowBlock, RowKey, hash_keys, newest_rows
from asys_bench.sinks.archive.reader import Archive
from asys_bench.system.files.below import read_json

log = logging.getLogger(__name__)

INPUT_SUFFIX = ":input"
CONTEXT_BEFORE, CONTEXT_AFTER = 24, 8
MOST_WIDE = 64

_Call = tuple[int, int, int, int, int]
"""(source, host step, weights version, microbatch, text)."""
_NOT_RECORDED = -1


@dataclass(frozen=True, slots=True)
class Tokens:
    """A token in its context. `at`: index of the token itself in `ids`.

    levels: the feature's activation on each of them, NaN where unknown; empty: on none but itself.
    """

    ids: tuple[int, ...]
    at: int
    levels: tuple[float, ...] = ()


def read_streams(run_dir: Path) -> tuple[Mapping[str, Any], ...]:
    """What run.json says about each stream: its `name`, `module` and `kind`; () where it does not."""
    try:
        streams = read_run_file(run_dir).get("streams", ())
        return tuple(s for s in streams if isinstance(s, dict) and "name" in s)
    except (RunFileError, TypeError):
        return ()


def input_hook(
    archive: Archive, hook: str, streams: Sequence[Mapping[str, Any]] = ()
) -> str | None:
    """The archived inputs of the very module that `hook` is of; None when there are none."""
    mine = next((s for s in streams if s["name"] == hook), None)
    if mine is None:  # a run from before streams were listed
        wanted = hook + INPUT_SUFFIX
    else:
        key = (mine.get("module"), "input")
        names = [s["name"] for s in streams if (s.get("module"), s.get("kind")) == key]
        wanted = names[0] if names else hook
    return wanted if wanted != hook and wanted in archive.hooks else None


def observations(
    inputs: Sequence[RowBlock], keys: Iterable[RowKey]
) -> dict[RowKey, npt.NDArray[np.float32]]:
    """The input rows of `keys`, those that are there."""
    wanted = set(keys)
    if not wanted:
        return {}
    hashes = hash_keys(np.array(sorted(wanted), dtype=np.int64))
    found: dict[RowKey, npt.NDArray[np.float32]] = {}
    for block in inputs:
        for at in np.flatnonzero(np.isin(block.hashes, hashes)).tolist():
            key = block.key(at)
            if key in wanted and key not in found:
                found[key] = np.array(block.values[at], dtype=np.float32)
    return found


def beside(
    inputs: Sequence[RowBlock], blocks: Sequence[RowBlock]
) -> npt.NDArray[np.float32] | None:
    """The input row of every row of `blocks`, float32[N, W], NaN where it was not archived.

    None for inputs wider than `MOST_WIDE` (images, texts), of which nothing is mapped.
    """
    if not inputs or not blocks or inputs[0].values.shape[1] > MOST_WIDE:
        return None
    rows = np.concatenate([np.asarray(block.values, dtype=np.float32) for block in inputs])
    known = np.concatenate([block.hashes for block in inputs])
    order = np.argsort(known)
    wanted = np.concatenate([block.hashes for block in blocks])
    at = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
    found = known[order[at]] == wanted
    joined = np.full((len(wanted), rows.shape[1]), np.nan, dtype=np.float32)
    joined[found] = rows[order[at[found]]]
    return joined


def texts_of(blocks: Sequence[RowBlock], keys: Iterable[RowKey]) -> dict[RowKey, int]:
    """The number of the text that each row is a token of; rows that are none are left out."""
    wanted = set(keys)
    if not wanted:
        return {}
    hashes = hash_keys(np.array(sorted(wanted), dtype=np.int64))
    found: dict[RowKey, int] = {}
    for block in blocks:
        for at in np.flatnonzero(np.isin(block.hashes, hashes)).tolist():
            key = block.key(at)
            text = _NOT_RECORDED if block.text is None else int(block.text[at])
            if key in wanted and text != NO_TEXT:
                found[key] = text
    return found


def tokens(archive: Archive, texts: Mapping[RowKey, int], most_rows: int) -> dict[RowKey, Tokens]:
    """The token of each activation row with its context; empty when no tokens were archived.

    texts: as `texts_of` gives them.
    """
    if TOKENS not in archive.hooks or not texts:
        return {}
    if _NOT_RECORDED in texts.values():
        log.warning("the archive does not say which rows are tokens: they are joined by a guess")
    wanted = list(texts)

    def call(key: RowKey, text: int) -> _Call:
        return (*key[:4], text)

    calls: dict[_Call, dict[int, tuple[int, int]]] = {
        call(key, text): {} for key, text in texts.items()
    }
    steps = np.array(sorted({key[1] for key in wanted}), dtype=np.int64)
    for block in newest_rows(archive, TOKENS, most_rows):
        if block.values.shape[1] != 2 or block.values.dtype.kind not in "iu":
            continue
        for at in np.flatnonzero(np.isin(block.keys["host_step"], steps)).tolist():
            key = block.key(at)
            text = _NOT_RECORDED if block.text is None else int(block.text[at])
            rows = calls.get(call(key, text))
            if rows is not None:
                rows[key[5]] = int(block.values[at, 0]), int(block.values[at, 1])
    found = {key: _context(calls[call(key, texts[key])], key[5]) for key in wanted}
    return {key: context for key, context in found.items() if context is not None}


def _context(rows: dict[int, tuple[int, int]], row: int) -> Tokens | None:
    """The rows around `row` that belong to its sequence: positions go on one by one."""
    if row not in rows:
        return None
    first = last = row
    while row - first < CONTEXT_BEFORE and _follows(rows, first - 1):
        first -= 1
    while last - row < CONTEXT_AFTER and _follows(rows, last):
        last += 1
    return Tokens(tuple(rows[at][0] for at in range(first, last + 1)), row - first)


def _follows(rows: dict[int, tuple[int, int]], row: int) -> bool:
    """Rows `row` and `row + 1` are there and next to each other in one sequence."""
    here, there = rows.get(row), rows.get(row + 1)
    return here is not None and there is not None and there[1] == here[1] + 1


# Token ids as text, from the `vocabulary.json` that a text host leaves in the run's directory.
#
# It holds pieces as the tokenizer shows them; here they become what a person reads: byte-level BPE
# (GPT-2's stand-ins for bytes), SentencePiece (U+2581 for a space) or WordPiece (`##` goes on a word).


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: character -> byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if byte not in plain)
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_alphabet()
_SPACE = "\u0120"
"""The stand-in for a space."""


def read_vocabulary(run_dir: Path) -> Mapping[int, str]:
    """Token id -> its text, spaces included; empty when there is no vocabulary that can be read."""
    try:
        document = read_json(run_dir / VOCABULARY_FILE, below=run_dir)
        pieces = [str(piece) for piece in document["tokens"]]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return dict(enumerate(texts(pieces)))


def texts(pieces: Sequence[str]) -> list[str]:
    """What each piece reads as, judged by how the whole vocabulary spells spaces."""
    if any(piece.startswith(_SPACE) for piece in pieces):
        return [_from_bytes(piece) for piece in pieces]
    if any(piece.startswith("##") for piece in pieces):
        return [piece[2:] if piece.startswith("##") else f" {piece}" for piece in pieces]
    return [piece.replace("\u2581", " ") for piece in pieces]


def _from_bytes(piece: str) -> str:
    if not all(letter in _BYTES for letter in piece):
        return piece  # an added token such as <|endoftext|> with letters of its own
    return bytes(_BYTES[letter] for letter in piece).decode("utf-8", errors="replace")
