"""Names of known features by a local model (`name_scores`); in `make soak`, where MODEL names one."""

from __future__ import annotations

import os

import pytest

from .name_scores import FEATURES, run


@pytest.mark.stress
@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(
    os.environ.get("ASYS_SOAK") != "1" or "MODEL" not in os.environ,
    reason="a language model names 40 features: make soak, with MODEL set",
)
def test_forty_features_are_named_and_scored(tmp_path):
    """A small model's names may lose against top tokens; a perfect description must not be at chance, or the
    model is no judge."""
    found = run(tmp_path, os.environ["MODEL"], os.environ.get("GGUF_FILE"), 100_000)
    assert found["features"] == FEATURES
    assert found["mean_auc_by_hand"] > 0.5
