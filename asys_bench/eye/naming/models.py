"""What naming asks of a language model, wherever it runs, and what can go wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": ...}."""
Chat = Sequence[Message]

MOST_ANSWER_TOKENS = 24


class NamingError(RuntimeError):
    """No name can be had; says why and what to do. Never shows a key."""


class UnreachableError(NamingError):
    """The endpoint does not answer in time, or not at all, also when tried again."""


class RefusedError(NamingError):
    """The endpoint says no: a wrong key, no such model, too many requests."""


class GarbageError(NamingError):
    """What came back is no answer of this interface."""


class NamingModel(Protocol):
    """A causal language model that follows instructions."""

    @property
    def about(self) -> str:
        """Its name, with the version of its weights where that is known."""

    @property
    def graded(self) -> bool:
        """`chances` are probabilities, and not answers alone."""

    def answer(self, chat: Chat) -> str:
        """What it says next, at most `MOST_ANSWER_TOKENS` tokens. Raises NamingError."""

    def chances(self, chats: Sequence[Chat]) -> list[float | None]:
        """Of each question P(yes) / (P(yes) + P(no)) for the next word; None: it says neither.

        Raises:
            NamingError: it cannot be asked.
        """
