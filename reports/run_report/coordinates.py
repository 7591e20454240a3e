"""What the numbers of an observation are, from the `observation.json` that an RL host leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asys_bench.contracts.run_files import OBSERVATION_FILE
from asys_bench.system.files.below import read_json


@dataclass(frozen=True, slots=True)
class Coordinate:
    """One number of an observation. low, high: what a clearly negative and a positive value mean."""

    name: str
    unit: str = ""
    low: str = ""
    high: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class ObservationNames:
    """streams: names that the archived observation can have. left_out: why nothing is named."""

    coordinates: tuple[Coordinate, ...] = ()
    streams: tuple[str, ...] = ()
    left_out: str = ""

    def of(self, width: int) -> Sequence[Coordinate]:
        """The names of an observation of `width` numbers; numbered where they do not fit."""
        if len(self.coordinates) == width:
            return self.coordinates
        return [Coordinate(f"input {number}") for number in range(width)]


def read_observation_names(run_dir: Path) -> ObservationNames:
    """Empty when there is no such file, or it cannot be read."""
    try:
        document = read_json(run_dir / OBSERVATION_FILE, below=run_dir)
        coordinates = tuple(
            Coordinate(*(str(one.get(key, "")) for key in ("name", "unit", "low", "high")))
            for one in document["coordinates"]
        )
        streams = tuple(map(str, document["streams"]))
        return ObservationNames(coordinates, streams, str(document.get("left_out", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ObservationNames()
