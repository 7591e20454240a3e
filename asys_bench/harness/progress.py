"""What a run tells of itself while it goes on."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told what goes on; may draw."""

    def plan(self, rounds: int, cases: int) -> None: ...
    def round(self, case: str, done: int, planned: int, left_s: float | None) -> None: ...
    def message(self, text: str) -> None: ...


class Silent:
    """A progress that shows nothing."""

    def plan(self, rounds: int, cases: int) -> None:
        return None

    def round(self, case: str, done: int, planned: int, left_s: float | None) -> None:
        return None

    def message(self, text: str) -> None:
        return None
