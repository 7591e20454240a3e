"""A group whose ranks are threads here: what is sent lies on a board, and sums run in order of rank."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator

import torch

from asys_bench.sae.group.group_learner import Command
from asys_bench.sae.group.serve import ServingRank
from asys_bench.sae.ranks import Collectives, Split
from asys_bench.sae.training.device import CPU

PATIENCE_S = 60.0


class _Board:
    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=PATIENCE_S)
        self.places: list[torch.Tensor | None] = [None] * size
        self.letters: dict[tuple[int, int], queue.Queue[torch.Tensor]] = {
            (source, to): queue.Queue() for source in range(size) for to in range(size)
        }


class ThreadRanks(Collectives):
    """One rank. `calls` counts what it has sent."""

    def __init__(self, board: _Board, rank: int, size: int, split: Split) -> None:
        super().__init__(rank, size, split)
        self._board = board
        self.calls = 0

    def _exchanged(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.calls += 1
        assert tensor.is_contiguous()
        self._board.places[self.rank] = tensor.detach().clone()
        self._board.barrier.wait()
        found = [one.clone() for one in self._board.places if one is not None]
        self._board.barrier.wait()
        return found

    def sum_(self, tensor: torch.Tensor) -> None:
        parts = self._exchanged(tensor)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        tensor.copy_(total)

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        found = self._exchanged(tensor)
        assert len({one.shape for one in found}) == 1
        return found

    def broadcast_(self, tensor: torch.Tensor) -> None:
        tensor.copy_(self._exchanged(tensor)[0])

    def send(self, tensor: torch.Tensor, to: int) -> None:
        assert tensor.is_contiguous()
        self._board.letters[self.rank, to].put(tensor.detach().clone())

    def receive(self, tensor: torch.Tensor, source: int) -> None:
        letter = self._board.letters[source, self.rank].get(timeout=PATIENCE_S)
        assert letter.shape == tensor.shape
        assert letter.dtype == tensor.dtype
        tensor.copy_(letter)


class ThreadGroup:
    """A `TrainerGroup`; leaving it ends the threads, and raises what one of them raised."""

    def __init__(self, size: int, split: Split) -> None:
        self.size = size
        board = _Board(size)
        self._all = [ThreadRanks(board, rank, size, split) for rank in range(size)]
        self.ranks = self._all[0]
        self.told: list[Command] = []
        self._commands: list[queue.Queue[str | None]] = [queue.Queue() for _ in range(size)]
        self._answers: list[queue.Queue[Command]] = [queue.Queue() for _ in range(size)]
        self.errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._serve, args=(rank,), daemon=True)
            for rank in range(1, size)
        ]
        for thread in self._threads:
            thread.start()
        self._keys = 0

    def _serve(self, rank: int) -> None:
        try:
            ServingRank(self._all[rank], CPU, self._answers[rank].put).serve(self._told_to(rank))
        except BaseException as error:
            self.errors.append(error)
            raise

    def _told_to(self, rank: int) -> Iterator[Command]:
        while (text := self._commands[rank].get()) is not None:
            yield json.loads(text)

    def call(self, function: Callable[[ThreadRanks], None]) -> None:
        """Have every rank do it, side by side."""
        threads = [threading.Thread(target=function, args=(ranks,)) for ranks in self._all]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)

    def ready(self) -> bool:
        return True

    def new_key(self) -> int:
        self._keys += 1
        return self._keys

    def tell(self, command: Command) -> None:
        self.told.append(command)
        for commands in self._commands[1:]:
            commands.put(json.dumps(command, allow_nan=False))

    def hear(self) -> list[Command]:
        return [answers.get(timeout=PATIENCE_S) for answers in self._answers[1:]]

    def __enter__(self) -> ThreadGroup:
        return self

    def __exit__(self, *exc: object) -> None:
        for commands in self._commands:
            commands.put(None)
        for thread in self._threads:
            thread.join(PATIENCE_S)
        if self.errors and exc[0] is None:
            raise self.errors[0]
