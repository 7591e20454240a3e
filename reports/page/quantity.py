"""Numbers as text: short, without exponents where possible, never rounded onto the limit."""

from __future__ import annotations

import math
from collections.abc import Sequence

NOTHING = "-"
LEAST_DIGITS, MOST_DIGITS = 3, 8


def number(x: float | None, digits: int = LEAST_DIGITS) -> str:
    """`digits` significant digits: 0.0780, 12.3, 1,234; "-" for None."""
    if x is None:
        return NOTHING
    if x == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(x)))
    if not -7 < magnitude < 12:
        return f"{x:.{digits - 1}e}"
    decimals = max(0, digits - 1 - magnitude)
    return f"{round(x, decimals):,.{decimals}f}"


def brief(x: float | None, otherwise: str = NOTHING) -> str:
    """At most four significant digits: 0.05, 12.35, 1.235e+04; `otherwise` for what is not known."""
    return otherwise if x is None or not math.isfinite(x) else f"{x:.4g}"


def with_interval(x: float | None, low: float | None, high: float | None) -> str:
    """3.4 [3.1, 3.9], with ? for an end that is not known."""
    return f"{brief(x)} [{brief(low, '?')}, {brief(high, '?')}]"


def exact(x: float | None) -> str:
    """A limit as its author wrote it: 0.05, 0.8, 1,000,000."""
    return NOTHING if x is None else f"{x:,.12g}"


def compact(x: float) -> str:
    """For axes: 0.05, 250, 1.5k, 20M."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= factor:
            return f"{x / factor:.4g}{suffix}"
    return f"{x:.4g}"


def digits_apart(values: Sequence[float | None], limit: float | None) -> int:
    """Digits at which no value that differs from the limit looks the same as it."""
    if limit is None:
        return LEAST_DIGITS
    for digits in range(LEAST_DIGITS, MOST_DIGITS):
        clash = (v for v in values if v is not None and v != limit)
        if all(float(number(v, digits).replace(",", "")) != limit for v in clash):
            return digits
    return MOST_DIGITS


def with_unit(text: str, unit: str) -> str:
    return f"{text} {unit}" if unit else text


def share(x: float) -> str:
    """52 %, 3.4 %, 0.25 %: of a ratio; never rounded up to 100 %."""
    percent = abs(x) * 100
    if 99 < percent < 100:
        return "> 99 %"
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.2g} %"


def confidence(x: float) -> str:
    """95 %, 97.5 %, 98.33 %."""
    return f"{x * 100:.4g} %"


def duration(seconds: float) -> str:
    """8.2 s, 1 min 33 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def some(n: int, thing: str) -> str:
    """1 round, 12 rounds."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"
