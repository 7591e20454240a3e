"""`asys-run report --all-features`: every feature of every SAE of a run in one offline file.

The file has at most `MOST_BYTES`. Each SAE gets an equal share of what is left, and of each of its features
as many examples as fit; an SAE that does not fit without any is left out. What is left out is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from asys_bench.eye.eye import Eye, NotThereError
from asys_bench.eye.features import Document
from asys_bench.eye.one_file.page import packed, render
from asys_bench.eye.sae_view import SaeView
from asys_bench.eye.views import NotYetError

MOST_BYTES, FRAME_BYTES = 50_000_000, 500_000
"""Of the file, and of what it is beside the answers: script, style, names."""
BLOCK = 64
"""Features that are unpacked together."""
EXAMPLES = ((20, 10), (12, 8), (8, 4), (4, 2), (2, 0), (0, 0))
"""Top and random examples of a feature: the first pair that fits."""
SAMPLE = 64
SPARE = 0.95
"""Of its share an SAE is forecast to take so much."""
PATIENCE_S = 3600.0
TOLD_EVERY_S = 5.0

Say = Callable[[str], None]


@dataclass
class AllFeatures:
    """The file, and what a person is told of it."""

    document: bytes
    said: list[str]


def all_features(run_dir: Path, say: Say) -> AllFeatures:
    """Of a run, live or finished. say: gets a line now and then while it is made."""
    eye = Eye(run_dir, PATIENCE_S)
    try:
        return _File(eye, say).made()
    finally:
        eye.close()


class _TooLargeError(Exception):
    pass


class _File:
    def __init__(self, eye: Eye, say: Say) -> None:
        self._eye, self._say = eye, say
        self._parts: dict[str, str] = {}
        self._saes: list[Document] = []
        self._left_out: dict[str, str] = {}
        self._said: list[str] = []

    def made(self) -> AllFeatures:
        curves = self._eye.curves()
        figures = self._eye.figures()
        figures |= {
            "live": False,
            "state": f"{figures.get('state', '')}, as of {time.strftime('%Y-%m-%d %H:%M')}",
        }
        self._parts |= {"figures": packed(figures), "curves": packed(curves)}
        labels = list(figures["checkpoints"])
        for number, label in enumerate(labels):
            self._say(f"{label}: reading its features")
            try:
                view = self._eye.view(label)
            except (NotThereError, NotYetError) as error:
                self._leave_out(label, str(error))
            else:
                self._add(view, (MOST_BYTES - FRAME_BYTES - self._bytes) // (len(labels) - number))
        title = f"{figures.get('run_id', self._eye.run_dir.name)}, A-Sys-I"
        index = {"block": BLOCK, "saes": self._saes, "left_out": self._left_out}
        document = "".join(render(title, index, self._parts)).encode(errors="replace")
        return AllFeatures(document, self._said)

    @property
    def _bytes(self) -> int:
        return sum(map(len, self._parts.values()))

    def _leave_out(self, label: str, why: str) -> None:
        self._left_out[label] = why
        self._said.append(f"{label} is left out: {why}")

    def _add(self, view: SaeView, room: int) -> None:
        number, label = len(self._saes), view.label
        fixed = {
            f"table-{number}": packed(self._eye.table(label)),
            f"map-{number}": packed(view.decoder_map()),
            f"births-{number}": packed(self._eye.births(label)),
            f"tokens-{number}": packed({"tokens": self._tokens(view)}),
        }
        room -= sum(map(len, fixed.values()))
        for most in EXAMPLES[self._first_that_fits(view, room) :]:
            try:
                blocks = dict(self._blocks(view, number, most, room))
            except _TooLargeError:
                continue
            self._parts |= fixed | blocks
            self._saes.append({"sae": label, "d_sae": view.sae.d_sae})
            self._said.append(_told(view, most))
            return
        self._leave_out(label, f"the file would have more than {MOST_BYTES // 10**6} MB with it")

    @staticmethod
    def _tokens(view: SaeView) -> list[Sequence[str]]:
        return [] if view.features is None else [list(one) for one in view.features.top_tokens()]

    def _first_that_fits(self, view: SaeView, room: int) -> int:
        """The number of the first pair of `EXAMPLES` with which a sample of features is small enough."""
        features = view.sae.d_sae
        sample = sorted({n * features // SAMPLE for n in range(SAMPLE)})
        for number, most in enumerate(EXAMPLES):
            size = len(packed(self._block(view, sample, most)))
            if size * features / len(sample) <= SPARE * room:
                return number
        return len(EXAMPLES) - 1

    def _blocks(
        self, view: SaeView, number: int, most: tuple[int, int], room: int
    ) -> Iterator[tuple[str, str]]:
        features, told_at_s = view.sae.d_sae, time.monotonic()
        for first in range(0, features, BLOCK):
            block = packed(self._block(view, range(first, min(first + BLOCK, features)), most))
            room -= len(block)
            if room < 0:
                raise _TooLargeError
            yield f"features-{number}-{first // BLOCK}", block
            if time.monotonic() >= told_at_s + TOLD_EVERY_S:
                told_at_s = time.monotonic()
                self._say(f"{view.label}: {first + BLOCK:,} of {features:,} features")

    def _block(self, view: SaeView, numbers: Sequence[int], most: tuple[int, int]) -> Document:
        """Features whose examples have their tokens as numbers in a list of the block's own."""
        texts: dict[str, int] = {}
        features = list(self._eye.some_features(view, numbers, most))
        for example in (
            e for one in features for kind in ("top", "random") for e in one.get(kind, ())
        ):
            if "tokens" in example:
                example["tokens"] = [texts.setdefault(t, len(texts)) for t in example["tokens"]]
        return {"tokens": list(texts), "features": features}


def _told(view: SaeView, most: tuple[int, int]) -> str:
    few = "" if most == EXAMPLES[0] else "; more examples would not fit"
    examples = f"up to {most[0]} top and {most[1]} random examples of each{few}"
    return f"{view.label}: {view.sae.d_sae:,} features, {examples}"
