"""The way of a batch from the reservoir to where the step is.

On a GPU there are two places of page-locked memory and two on the device. While a step runs, the rows of
the next batch are gathered into the free place by a thread of their own and copied over; the step after
finds them there. Which rows a batch consists of does not depend on that: they are drawn when the step
begins, and what was brought ahead is used where it is exactly those rows.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

import torch

from asys_bench.sae.training.buffer import ShuffleBuffer
from asys_bench.sae.training.device import Event, Gpu, TrainingDevice
from asys_bench.sae.training.intake import RowBlock


class Feed:
    """Batches of `rows` rows of one reservoir; on the CPU they are trained on as they were drawn."""

    def __init__(self, buffer: ShuffleBuffer, rows: int) -> None:
        self.buffer, self.rows = buffer, rows

    def take(self) -> RowBlock:
        """The next batch; its rows are on the device until the next call, what is known of them on
        the CPU."""
        return self.buffer.sample(self.rows)

    def ahead(self) -> None:
        """Another batch will be taken, and nothing is added to the reservoir before: fetch it now."""


@dataclass
class _Place:
    """Memory of one batch on both sides, and what its last copy has ended by."""

    pinned: torch.Tensor
    target: torch.Tensor
    copied: Event | None = None


@dataclass(frozen=True)
class _Ahead:
    """A batch under way: which rows, of which state of the reservoir, and where."""

    slots: torch.Tensor
    changes: int
    place: Future[_Place]


class StagedFeed(Feed):
    """See the module docstring."""

    def __init__(self, device: Gpu, buffer: ShuffleBuffer, rows: int, width: int) -> None:
        super().__init__(buffer, rows)
        self._device = device
        self._places = [
            _Place(device.pinned(rows, width), torch.empty(rows, width, device=device.tensors))
            for _ in range(2)
        ]
        self._ahead: _Ahead | None = None
        self._read: Event | None = None
        self.brought_ahead = 0
        """Batches that were there, or on their way, when their step began."""

    def take(self) -> RowBlock:
        slots = self.buffer.draw(self.rows)
        ahead, self._ahead = self._ahead, None
        place = None
        if ahead is not None:
            place = ahead.place.result()
            if ahead.changes != self.buffer.changes or not torch.equal(ahead.slots, slots):
                place = None
        if place is None:
            place = self._fetch(slots)
        else:
            self.brought_ahead += 1
        self._read = self._device.reached()  # by now nobody reads the other place any more
        self._device.wait(place.copied)
        return self.buffer.about(slots, place.target)

    def ahead(self) -> None:
        slots = self.buffer.upcoming(self.rows)
        if slots is not None:
            future = self._device.gathering.submit(self._fetch, slots)
            self._ahead = _Ahead(slots, self.buffer.changes, future)

    def _fetch(self, slots: torch.Tensor) -> _Place:
        place = self._places[0]
        self._places.reverse()
        if place.copied is not None:
            self._device.finish(place.copied)
        self.buffer.gather(slots, place.pinned)
        place.copied = self._device.copy(place.pinned, place.target, self._read)
        return place


def feed_of(device: TrainingDevice, buffer: ShuffleBuffer, rows: int, width: int) -> Feed:
    """The way for batches of `rows` rows of `width` columns."""
    if isinstance(device, Gpu):
        return StagedFeed(device, buffer, rows, width)
    return Feed(buffer, rows)
