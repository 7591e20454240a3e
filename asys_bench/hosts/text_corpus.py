"""Real text (`text_sources`) as blocks of token ids of a fixed length; the last block of a text is padded."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from asys_bench.contracts.host import HostError
from asys_bench.contracts.run_files import VOCABULARY_SCHEMA
from asys_bench.hosts.text_sources import OPTION, TextSource, sources_of

CHUNK_CHARACTERS = 1 << 16
"""Text is tokenised in pieces of about this size, cut at line ends."""
OPEN_FILES = 16
"""Shuffled files whose blocks come by turns, so that a long file is not all there is for a while."""


@dataclass(frozen=True, slots=True)
class TextBatch:
    """input_ids_BT: int64; mask_BT: int64, 0 where there is padding."""

    input_ids_BT: torch.Tensor
    mask_BT: torch.Tensor

    @property
    def tokens(self) -> int:
        """Tokens that are no padding."""
        return int(self.mask_BT.sum())


class TextCorpus:
    """Texts of all that the patterns name (`text_sources`), files in sorted order.

    shuffle_seed: files in an order drawn from it, another one each time round, and blocks of
        `OPEN_FILES` of them by turns; None keeps files and blocks as they come.

    Every block begins and ends with the tokenizer's special tokens, where it has them.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        tokenizer: Any,
        *,
        block_tokens: int,
        text_field: str = "text",
        shuffle_seed: int | None = None,
    ) -> None:
        """Raises HostError: a pattern without texts, or blocks too short for special tokens."""
        self._sources = [source for pattern in patterns for source in sources_of(pattern)]
        self._tokenizer, self._field = tokenizer, text_field
        self._shuffle_seed = shuffle_seed
        self._head, self._tail = _around(tokenizer)
        specials = [*self._head, *self._tail]
        self._room = block_tokens - len(specials)
        if self._room < 1:
            raise HostError(
                f"host.options.transformers.block_tokens: {block_tokens} leaves no room beside "
                f"{len(specials)} special tokens"
            )
        self.pad_id = _pad_id(tokenizer)

    def batches(self, batch_size: int, *, repeat: bool) -> Iterator[TextBatch]:
        """Batches of up to `batch_size` blocks; without end if `repeat`.

        Raises:
            HostError: the files hold no text.
        """
        for times in itertools.count():
            held: list[list[int]] = []
            served = False
            for block in self._blocks(times):
                held.append(block)
                if len(held) == batch_size:
                    served = True
                    yield self._batch(held)
                    held = []
            if held:
                served = True
                yield self._batch(held)
            if not served:
                raise HostError(f"{OPTION}: there is no text in them")
            if not repeat:
                return

    def _blocks(self, times: int) -> Iterator[list[int]]:
        if self._shuffle_seed is None:
            for source in self._sources:
                yield from self._blocks_of(source)
            return
        draw = random.Random(f"{self._shuffle_seed}:{times}")
        waiting = list(self._sources)
        draw.shuffle(waiting)
        opened: list[Iterator[list[int]]] = []
        while waiting or opened:
            while waiting and len(opened) < OPEN_FILES:
                opened.append(self._blocks_of(waiting.pop()))
            chosen = draw.randrange(len(opened))
            block = next(opened[chosen], None)
            if block is None:
                del opened[chosen]
            else:
                yield block

    def _blocks_of(self, source: TextSource) -> Iterator[list[int]]:
        for text in source.texts(self._field):
            for ids in self._pieces(text):
                yield [*self._head, *ids, *self._tail]

    def _pieces(self, text: str) -> Iterator[list[int]]:
        held: list[int] = []
        for chunk in _chunks(text):
            encoded = self._tokenizer(chunk, add_special_tokens=False, verbose=False)
            held += encoded["input_ids"]
            while len(held) >= self._room:
                yield held[: self._room]
                held = held[self._room :]
        if held:
            yield held

    def _batch(self, blocks: Sequence[list[int]]) -> TextBatch:
        length = max(len(block) for block in blocks)
        ids_BT = torch.full((len(blocks), length), self.pad_id, dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        for row, block in enumerate(blocks):
            ids_BT[row, : len(block)] = torch.tensor(block)
            mask_BT[row, : len(block)] = 1
        return TextBatch(ids_BT, mask_BT)


def _chunks(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = start + CHUNK_CHARACTERS
        if end < len(text):
            end = (text.find("\n", end) + 1) or len(text)
        yield text[start:end]
        start = end


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens before and after a sequence, found by encoding a word with and without."""
    for word in ("the", "a", "1", "."):
        bare = list(tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"])
        built = list(tokenizer(word, add_special_tokens=True, verbose=False)["input_ids"])
        for at in range(len(built) - len(bare) + 1):
            if bare and built[at : at + len(bare)] == bare:
                return built[:at], built[at + len(bare) :]
    return [], []


def _pad_id(tokenizer: Any) -> int:
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0  # never looked at: the mask says so


# `vocabulary.json`: the text of each token id, so that a reader needs no tokenizer to show tokens.

MOST_TOKENS = 1 << 22


def vocabulary_of(tokenizer: Any) -> list[str]:
    """Token texts by id, as the tokenizer shows them; ids that it does not use are empty.

    Raises:
        TypeError, AttributeError, ValueError: it is no tokenizer of Hugging Face's interface.
    """
    ids = {str(token): int(index) for token, index in tokenizer.get_vocab().items()}
    if not ids or max(ids.values()) >= MOST_TOKENS or min(ids.values()) < 0:
        raise ValueError(f"{len(ids)} tokens with ids up to {max(ids.values(), default=-1)}")
    texts = [""] * (max(ids.values()) + 1)
    for token, index in ids.items():
        texts[index] = token
    return texts


def vocabulary_document(tokenizer: Any) -> dict[str, Any]:
    """The file's contents. Errors as `vocabulary_of`."""
    return {"schema": VOCABULARY_SCHEMA, "tokens": vocabulary_of(tokenizer)}
