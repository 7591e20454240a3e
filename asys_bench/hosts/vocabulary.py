"""`vocabulary.json`: the text of each token id, so that a reader needs no tokenizer to show tokens."""

from __future__ import annotations

from typing import Any

VOCABULARY_FILE = "vocabulary.json"
SCHEMA = "asys.vocabulary/1"
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
    return {"schema": SCHEMA, "tokens": vocabulary_of(tokenizer)}
