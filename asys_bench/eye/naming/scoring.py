"""How well a name tells texts in which a feature fires from others: detection, by the model that chose it.

(Bills et al. 2023 score explanations by simulating activations; detection of firing texts is Paulo et al.
2024.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asys_bench.change.probe.scores import auc
from asys_bench.eye.naming.material import Material
from asys_bench.eye.naming.models import GarbageError, NamingModel
from asys_bench.eye.naming.prompts import asking_chat

UNKNOWN = 0.5
"""Of a text of which the model says neither yes nor no."""


def detection_auc(fires: Sequence[float], silent: Sequence[float]) -> float:
    """The chance that one of `fires` is above one of `silent`, ties half (Hanley and McNeil 1982)."""
    score_N = np.array([*fires, *silent], dtype=np.float64)
    positive_N = np.arange(len(score_N)) < len(fires)
    alone_N = np.arange(len(score_N), dtype=np.uint64)
    return auc(score_N, positive_N, np.ones(len(score_N)), alone_N).value


def score_of(name: str, material: Material, model: NamingModel) -> float:
    """AUC of a name on the texts that were held out.

    Raises:
        NamingError: the model cannot be asked, or says yes or no to fewer than half of them.
    """
    windows = [*material.fires, *material.silent]
    chances = model.chances([asking_chat(name, window) for window in windows])
    if 2 * sum(chance is None for chance in chances) > len(windows):
        raise GarbageError(
            f"{model.about} answers neither yes nor no; take a model that follows instructions"
        )
    told = [UNKNOWN if chance is None else chance for chance in chances]
    return detection_auc(told[: len(material.fires)], told[len(material.fires) :])


def top_token_score(material: Material) -> float:
    """The same of the feature's top token: 1 where a text's own token equals it, 0 elsewhere, without regard
    to case and spaces around."""
    wanted = _bare(material.top_token)
    fires, silent = (
        [float(_bare(window.token) == wanted) for window in windows]
        for windows in (material.fires, material.silent)
    )
    return detection_auc(fires, silent)


def _bare(token: str) -> str:
    return token.strip().casefold() or token
