"""What is wrong with a configuration, and where: every problem at once, never only the first."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asys_bench.store.uri import without_secrets


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: a place in a file, an environment variable or a `--set`."""

    source: str
    """The file as the user named it, or the text of the override."""
    line: int | None = None
    """1-based; None outside files."""
    column: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


NOTHING = _Nothing()
"""The value of a problem that has none (a missing file, a syntax error)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to correct."""

    file: str
    """The file, or the text of the environment variable or `--set`."""
    line: int | None
    column: int | None
    path: str
    """The field (`bus.backend`); empty when the problem is not one field's."""
    message: str
    value: object = NOTHING
    fix: str = ""
    valid: tuple[str, ...] = ()

    @classmethod
    def at(
        cls,
        origin: Origin,
        message: str,
        *,
        path: str = "",
        value: object = NOTHING,
        fix: str = "",
        valid: Sequence[str] = (),
    ) -> Problem:
        return cls(
            origin.source, origin.line, origin.column, path, message, value, fix, tuple(valid)
        )

    def __str__(self) -> str:
        where = str(Origin(self.file, self.line, self.column))
        path = f" {self.path}:" if self.path else ""
        facts = []
        if self.value is not NOTHING:
            facts.append(f"got {_short(self.value)}")
        if self.valid:
            facts.append(f"valid: {', '.join(self.valid)}")
        detail = f" ({'; '.join(facts)})" if facts else ""
        fix = f"\n    fix: {self.fix}" if self.fix else ""
        return without_secrets(f"{where}:{path} {self.message}{detail}{fix}")


class ConfigError(ValueError):
    """The configuration cannot be used; `problems` has every reason, by file and line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        unique = {str(problem): problem for problem in problems}.values()
        self.problems = tuple(
            sorted(
                unique, key=lambda problem: (problem.file, problem.line or 0, problem.column or 0)
            )
        )
        super().__init__(self.problems)

    def __str__(self) -> str:
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} in the configuration"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """A fix hint naming the nearest valid word, or an empty string."""
    by_lower = {name.lower(): name for name in valid}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"did you mean `{by_lower[near[0]]}`?" if near else ""


def _short(value: object, limit: int = 120) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
