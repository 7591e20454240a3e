"""Which token each archived activation row belongs to.

The side stream `tokens` has one row (token id, position) per token of a text. The rows of a capture
are the tokens of the text whose number its column `text` has, in the same order; rank, host step and
microbatch say of which call.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from asys_bench.contracts.names import TOKENS
from asys_bench.contracts.packet import NO_TEXT
from asys_bench.contracts.run_files import VOCABULARY_FILE
from asys_bench.rundir.archive_columns import TEXT_NOT_RECORDED
from asys_bench.rundir.archive_view import ArchiveView
from asys_bench.rundir.live_run import ReadingError
from asys_bench.system.files.below import read_json

log = logging.getLogger(__name__)

_PACKET = ("source", "host_step", "microbatch", "text", "shard", "seq")
Call = tuple[int, int, int]


class Vocabulary:
    """Token texts by id."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    @classmethod
    def of(cls, run_dir: Path) -> Self | None:
        """The run's vocabulary.json; None when it has none.

        Raises:
            ReadingError: the file is not a vocabulary.
        """
        path = run_dir / VOCABULARY_FILE
        try:
            document = read_json(path, below=run_dir)
            return cls([str(text) for text in document["tokens"]])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ReadingError(f"{path} cannot be read: {error!r}") from error

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, token_id: int) -> str:
        """The token's text, or `<id>` for an id that the vocabulary does not have."""
        known = 0 <= token_id < len(self._texts) and self._texts[token_id]
        return self._texts[token_id] if known else f"<{token_id}>"


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of one forward call of one rank.

    values_ND: activations; token_id_N, position_N: int32, what the rows are of.
    """

    call: Call
    values_ND: npt.NDArray[Any]
    token_id_N: npt.NDArray[np.int32]
    position_N: npt.NDArray[np.int32]


def token_rows(view: ArchiveView, hook: str) -> Iterator[TokenRows]:
    """The archived rows of `hook` with their tokens, call by call.

    Only rows that the capture says are tokens; calls whose tokens were not captured (sampled out) are
    left out. A row of a head has the token that it is of. An archive of before, which does not say, is joined
    by row numbers with a line in the log.

    Raises:
        ReadingError: the run archived no tokens; KeyError, ArchiveError: as `ArchiveView.batches`.
    """
    if TOKENS not in view.hooks:
        raise ReadingError(f"the archive has no stream {TOKENS!r}: its model takes no input_ids")
    tokens = {
        (call, text): values_N2
        for call, text, row_N, values_N2 in _packets(view, TOKENS)
        if _is_whole(row_N)
    }
    guessed, each = False, view.rows_each(hook)
    for call, text, row_N, values_ND in _packets(view, hook):
        found_N2 = tokens.get((call, text)) if text != NO_TEXT else None
        row_N = row_N // each
        if found_N2 is None or not len(row_N) or int(row_N.max()) >= len(found_N2):
            continue
        if text == TEXT_NOT_RECORDED and not guessed:
            guessed = True
            log.warning(
                "%s: the archive does not say which rows are tokens; they are joined by row number, "
                "which is a guess",
                hook,
            )
        mine_N2 = found_N2[row_N].astype(np.int32)
        yield TokenRows(call, values_ND, mine_N2[:, 0], mine_N2[:, 1])


def _is_whole(row_N: npt.NDArray[Any]) -> bool:
    return bool(np.array_equal(row_N, np.arange(len(row_N))))


def _packets(
    view: ArchiveView, hook: str
) -> Iterator[tuple[Call, int, npt.NDArray[Any], npt.NDArray[Any]]]:
    """(call, text, rows within the packet, values) of each; it may span record batches."""
    held: tuple[tuple[int, ...], list[npt.NDArray[Any]], list[npt.NDArray[Any]]] | None = None

    def whole() -> tuple[Call, int, npt.NDArray[Any], npt.NDArray[Any]]:
        assert held is not None
        source, step, microbatch, text, *_ = held[0]
        return (source, step, microbatch), text, np.concatenate(held[1]), np.concatenate(held[2])

    for batch in view.batches(hook, ("values", "row", *_PACKET)):
        keys_NK = np.stack([batch[name].astype(np.int64) for name in _PACKET], axis=1)
        changed = np.any(keys_NK[1:] != keys_NK[:-1], axis=1)
        begins = [0, *(np.flatnonzero(changed) + 1).tolist()]
        for start, end in zip(begins, [*begins[1:], len(keys_NK)], strict=True):
            key = tuple(keys_NK[start].tolist())
            row_N, values_ND = batch["row"][start:end], batch["values"][start:end]
            if held is not None and held[0] == key:
                held[1].append(row_N)
                held[2].append(values_ND)
                continue
            if held is not None:
                yield whole()
            held = (key, [row_N], [values_ND])
    if held is not None:
        yield whole()
