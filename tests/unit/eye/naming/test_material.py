"""Which texts a name is made from, and which it is scored on."""

from __future__ import annotations

import numpy as np
import pytest

from asys_bench.eye.naming.material import (
    HELD_OUT,
    SHOWN,
    Pool,
    Window,
    distinct,
    material_of,
    spread,
    windows_of,
)

from .rig import WORDS, WordFeatures, example


@pytest.fixture
def features() -> WordFeatures:
    return WordFeatures()


def pool(features: WordFeatures) -> Pool:
    return Pool(features, range(len(WORDS)), "seed")


def test_shown_texts_are_the_strongest_and_none_of_them_is_held_out(features) -> None:
    found = material_of(features, 2, pool(features))
    assert len(found.shown) == SHOWN
    assert [one.levels[one.at] for one in found.shown] == sorted(
        (one.levels[one.at] for one in found.shown), reverse=True
    )
    assert {one.token for one in (*found.shown, *found.fires)} == {" red"}
    assert len(found.fires) == len(found.silent) == HELD_OUT
    assert " red" not in {one.token for one in found.silent}
    seen = {run for one in found.shown for run in one.runs()}
    assert not seen & {run for one in (*found.fires, *found.silent) for run in one.runs()}


def test_held_out_texts_are_of_all_strengths(features) -> None:
    levels = [one.levels[one.at] for one in material_of(features, 2, pool(features)).fires]
    assert max(levels) > 1.9
    assert min(levels) < 1.1


def test_texts_of_features_that_fire_together_are_not_taken_for_silent_ones(features) -> None:
    features.partners[2] = [0, 1, 3]
    found = material_of(features, 2, pool(features))
    assert {one.token for one in found.silent} <= {" Monday", " river"}


def test_a_text_that_is_read_again_is_not_held_out(features) -> None:
    """A host that begins its texts again gives the same windows: a name must not be scored on what it was
    made from, nor shifted by a few tokens."""
    draw = np.random.default_rng(7)
    own = [example("red", draw) for _ in range(SHOWN)]
    again = [{**one, "tokens": [*one["tokens"][2:], " a", " b"], "at": 4} for one in own]
    features.set_examples(2, "top", own)
    features.set_examples(2, "random", [*own, *again])
    assert material_of(features, 2, pool(features)) == "too few other texts to score a name on"
    features.set_examples(2, "random", [*own, *again, *(example("red", draw) for _ in range(6))])
    assert len(material_of(features, 2, pool(features)).fires) == 6


def test_without_texts_there_is_no_material(features) -> None:
    assert material_of(features, len(WORDS), pool(features)) == "fewer than 3 texts that differ"
    features.set_examples(1, "top", [{"activation": 1.0, "picture": ["svg", {}, []]}] * 20)
    assert material_of(features, 1, pool(features)) == "fewer than 3 texts that differ"


def test_the_same_feature_has_the_same_material_each_time(features) -> None:
    assert material_of(features, 3, pool(features)) == material_of(features, 3, pool(features))


def test_odd_examples_are_bounded_or_left_out() -> None:
    long = {"tokens": ["a" * 10_000], "levels": [None], "at": 0}
    (window,) = windows_of(
        [long, {"tokens": [], "at": 0}, {"tokens": ["x"], "levels": [1.0], "at": 3}, {}]
    )
    assert len(window.token) == 40
    assert np.isnan(window.levels[0])


def test_texts_without_a_run_in_common_are_kept_in_order() -> None:
    windows = [
        Window(tuple(text), 0, (1.0,) * len(text))
        for text in ("abcdefghij", "bcdefghijk", "xyz", "xyz")
    ]
    assert distinct(windows, set()) == [windows[0], windows[2]]
    assert [one.tokens for one in spread(windows * 3, 3)] == [
        windows[0].tokens,
        windows[2].tokens,
        windows[3].tokens,
    ]
