"""Scores against scikit-learn, and against what is known."""

from __future__ import annotations

import numpy as np
import pytest

from asys_bench.eye.naming.material import Material, Pool, Window, material_of
from asys_bench.eye.naming.models import GarbageError
from asys_bench.eye.naming.scoring import detection_auc, score_of, top_token_score
from asys_bench.rundir.feature_names import LEAST_SCORE

from .rig import WORDS, Truthful, WordFeatures


@pytest.mark.filterwarnings("ignore")
def test_the_auc_is_that_of_scikit_learn_with_ties_and_uneven_sides() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(1)
    for sides in ((1, 1), (3, 10), (10, 10), (7, 2)):
        for steps in (2, 4, 1000):
            values = draw.integers(0, steps, sum(sides)) / steps
            truth = [1] * sides[0] + [0] * sides[1]
            found = detection_auc(values[: sides[0]].tolist(), values[sides[0] :].tolist())
            assert found == pytest.approx(metrics.roc_auc_score(truth, values), abs=1e-12)


def test_a_right_name_has_1_and_a_wrong_one_has_a_half() -> None:
    features = WordFeatures()
    material = material_of(features, 2, Pool(features, range(len(WORDS)), ""))
    assert score_of("red", material, Truthful()) == 1.0
    assert score_of("blue", material, Truthful()) == 0.5


def test_a_model_that_says_neither_yes_nor_no_is_an_error_and_a_few_silences_are_a_half() -> None:
    features = WordFeatures()
    material = material_of(features, 2, Pool(features, range(len(WORDS)), ""))

    class Dumb(Truthful):
        silent = 11

        def chances(self, chats):
            return [None] * self.silent + [0.1] * (len(chats) - self.silent)

    with pytest.raises(GarbageError, match="neither yes nor no"):
        score_of("red", material, Dumb())
    dumb = Dumb()
    dumb.silent = 10
    assert score_of("red", material, dumb) == 1.0


def test_the_top_token_is_compared_without_case_and_spaces() -> None:
    fires = (
        Window((" Red",), 0, (1.0,)),
        Window(("red",), 0, (1.0,)),
        Window((" blue",), 0, (1.0,)),
    )
    silent = (Window((" x",), 0, (1.0,)), Window(("red",), 0, (1.0,)))
    material = Material(0, " red", (), fires, silent)
    assert top_token_score(material) == pytest.approx(0.5 + (2 / 3 - 1 / 2) / 2)


def test_a_name_that_says_nothing_seldom_gets_to_be_shown() -> None:
    """What LEAST_SCORE says of itself."""
    draw = np.random.default_rng(2)
    found = [detection_auc(draw.random(10).tolist(), draw.random(10).tolist()) for _ in range(4000)]
    assert 0.02 < np.mean(np.array(found) >= LEAST_SCORE) < 0.045
