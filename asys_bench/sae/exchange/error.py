"""What cannot be exchanged, why, and what can be done instead."""

from __future__ import annotations


class ExchangeError(ValueError):
    """A format cannot express an SAE, or a folder cannot be taken over.

    `reason` says why in the format's own terms; `alternative` is what to do instead.
    """

    def __init__(self, what: str, reason: str, alternative: str) -> None:
        super().__init__(f"{what}: {reason}; {alternative}")
        self.what, self.reason, self.alternative = what, reason, alternative
