"""A text that a model is called with, the reader that finds it among the arguments, and its rows.

Data alone: who reads which call is `text_inputs`, which rows are tokens is `token_places`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from asys_bench.contracts.packet import NO_TEXT, NO_TOKEN_POSITION
from asys_bench.contracts.preprocessor import Positions

IDS, MASK, EMBEDS = "input_ids", "attention_mask", "inputs_embeds"
_OF_THE_TEXT = ("mask", "past", "cache", "bias", "head", "label", "inputs_embeds")
SEQUENCES = ("hidden", "embed", "encoder")
"""Parts of the names of arguments that belong to the text, and of other sequences' states [B, S, D].
A float tensor of three dimensions and more that is neither is an input of another kind."""


@dataclass(slots=True, eq=False)
class Text:
    """B sequences of T tokens, as one module was given them.

    ids_BT: None where only embeddings were given. mask: the argument, whatever it was.
    kept: positions of B * T that are tokens; None: all of them.
    others: other sequences that the module was given beside them: leading dimensions, and address of
    the memory, of their states.
    beside: shape of other integers that an embedding was called with (a plain model's second text).
    real_BT: of a text on a device: bool, which positions are tokens; None: all of them. `kept` is not
        known then.
    number: of the packet of token rows; NO_TEXT while none was sent.
    position: of the first token, where there is one sequence; else NO_TOKEN_POSITION.
    """

    shape: tuple[int, int]
    ids_BT: torch.Tensor | None
    mask: Any
    kept: Positions | None = None
    positions_BT: torch.Tensor | None = None
    others: frozenset[tuple[tuple[int, int], int]] = field(default_factory=frozenset)
    beside: list[int] | None = None
    real_BT: torch.Tensor | None = None
    number: int = NO_TEXT
    position: int = NO_TOKEN_POSITION

    @property
    def padding(self) -> Positions | torch.Tensor | None:
        """`kept`, or `real_BT`."""
        return self.kept if self.real_BT is None else self.real_BT

    @padding.setter
    def padding(self, value: Positions | torch.Tensor | None) -> None:
        self.real_BT = value if isinstance(value, torch.Tensor) else None
        self.kept = None if isinstance(value, torch.Tensor) else value


class TextReader:
    """Finds the text among the arguments of one module.

    names: parameter -> position; of the module itself, or of what it passes its arguments on to.
    two_texts: it is an encoder-decoder, which has two.
    plain: none of its parameters is called `input_ids`; an embedding tells.
    """

    def __init__(
        self, names: Mapping[str, int], *, two_texts: bool = False, plain: bool = False
    ) -> None:
        self.names = names
        self.two_texts, self.plain = two_texts, plain
        self.takes_ids = plain or (IDS in names and not two_texts)

    def ids(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What may be the token ids."""
        if not self.plain:
            return self.argument(IDS, args, kwargs)
        given = [kwargs[name] for name in self.names if name in kwargs]
        return first_matrix([*args, *given, *kwargs.values()])

    def argument(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The argument `name`, however it was passed: by name, by place, or in a dict of features."""
        if name in kwargs:
            return kwargs[name]
        index = self.names.get(name, len(args))
        if index < len(args) and not isinstance(args[index], Mapping):
            return args[index]
        for value in args:
            if isinstance(value, Mapping) and name in value:
                return value[name]
        return None

    def other_inputs(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, float tensor of three dimensions or more) that is not part of the text."""
        by_place = {index: name for name, index in self.names.items()}
        named = [(by_place.get(index, ""), value) for index, value in enumerate(args)]
        named += kwargs.items()
        features = [
            pair for _, value in named if isinstance(value, Mapping) for pair in value.items()
        ]
        for name, value in (*named, *features):
            if (
                isinstance(value, torch.Tensor)
                and value.ndim >= 3
                and value.is_floating_point()
                and not any(part in name for part in _OF_THE_TEXT)
            ):
                yield name, value


def first_matrix(value: Any) -> Any:
    """The first [B, T] tensor of integers that an embedding takes; also traced."""
    if isinstance(value, torch.Tensor):
        fits = value.ndim == 2 and value.dtype in (torch.int64, torch.int32)
        return value if fits else None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        for element in value:
            found = first_matrix(element)
            if found is not None:
                return found
    return None


class RowTokens(NamedTuple):
    """Which tokens the rows of a tensor are (`token_places`).

    text: number of the text. kept: rows that are tokens, the others are padding; None: all.
    position: of the first token in its sequence, or NO_TOKEN_POSITION.
    real: in place of `kept`, for a text on a device: which rows are tokens, bool.
    place: in place of tokens, the header's parameters that say which rows these are (`encodings.parts`).
    """

    text: int
    kept: Positions | None
    position: int
    real: torch.Tensor | None = None
    place: bytes = b""
