"""Token ids as text, from the `vocabulary.json` that a text host leaves in the run's directory.

It holds pieces as the tokenizer shows them; here they become what a person reads: byte-level BPE
(GPT-2's stand-ins for bytes), SentencePiece (U+2581 for a space) or WordPiece (`##` goes on a word).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from asys_bench.system.files.below import read_json

FILE_NAME = "vocabulary.json"


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
        document = read_json(run_dir / FILE_NAME, below=run_dir)
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
