"""Search over many features, numbers as JSON has them, and what probes read in a feature."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asys_bench.eye import probe_links as module
from asys_bench.eye import search as search_module
from asys_bench.eye.haystack import Haystack, needle
from asys_bench.eye.probe_links import probe_links
from asys_bench.eye.proposed import NO_NAMES
from asys_bench.eye.sae_view import numbers
from asys_bench.rundir.probes import FoundProbe
from asys_bench.sae import SAEConfig, build_sae

from .conftest import D_IN, D_SAE, HOOK


def test_search_finds_what_a_look_at_every_text_finds() -> None:
    draw = np.random.default_rng(3)
    pieces = [" The", "the", "\n", " ß", "img", " a b", "", "\x00x", "İ"]
    texts = [
        [pieces[n] for n in draw.integers(0, len(pieces), draw.integers(0, 4))] for _ in range(300)
    ]
    haystack = Haystack(texts)
    for text in (*pieces, "h", " THE ", "ss", "zzz", "e\nt"):
        wanted = needle(text)
        parts = [[needle(one) for one in some] for some in texts]
        holds = [n for n, some in enumerate(parts) if wanted and any(wanted in one for one in some)]
        assert list(haystack.features(text)) == holds, text
        exact = [n for n, some in enumerate(parts) if wanted and wanted in some]
        assert list(haystack.exactly(text)) == exact, text


def test_numbers_have_as_many_digits_as_they_say() -> None:
    values = np.array(
        [0.0, 1.0, -1.23456, 123456.7, 1e-12 / 3, 6.02214e23, np.nan, np.inf, 5e-324, 0.1]
    )
    told = numbers(values)
    assert told[:6] == [0.0, 1.0, -1.235, 123500.0, 3.333e-13, 6.022e23]
    assert told[6:8] == [None, None]
    assert told[9] == 0.1
    draw = np.exp(np.random.default_rng(0).uniform(-30, 30, 2000))
    assert numbers(draw) == [float(f"{value:.4g}") for value in draw]


def probe(weight: torch.Tensor, label: str = "done", value: float = 0.9, **more) -> FoundProbe:
    fields = {
        "hook": HOOK, "label": label, "kind": "class", "metric": "auc", "value": value, "low": 0.8,
        "high": 0.95, "classes": (0.0, 1.0), "rows": 9, "held_out_rows": 9, "held_out_blocks": 2,
        "block": "episode", "features": "activations", "history": (), "weight": weight,
        "bias": torch.zeros(len(weight)),
    }  # fmt: skip
    return FoundProbe(**(fields | more))


def test_a_feature_has_the_probe_whose_logit_it_moves_most(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SAEConfig(architecture="topk", d_sae=D_SAE, k=2, seed=3)
    sae = build_sae(config, D_IN).requires_grad_(False)
    mean_F = np.ones(D_SAE)
    raw = probe(3 * sae.W_dec[7:8].detach(), "raw")
    of_features = torch.zeros(1, D_SAE)
    of_features[0, 3] = -9.0
    found = [
        raw,
        probe(of_features, "coded", features="/some/sae"),
        probe(of_features * 10, "worthless", float("nan"), features="/some/sae"),
        probe(torch.zeros(1, D_IN + 1), "of other rows"),
    ]
    monkeypatch.setattr(module, "read_probes", lambda run_dir: {HOOK: found})
    links = probe_links(Path("."), HOOK, sae, mean_F)
    assert links.labels() == ["raw", "coded", "worthless"]
    columns = links.columns()
    moved = 3 * float(sae.W_dec[7] @ sae.W_dec[7])
    assert columns["probe_effect"][7] == pytest.approx(moved, rel=1e-3)
    assert (columns["probe_of"][3], columns["probe"][3]) == (1, 0.9)
    assert links.of(3)[0]["label"] == "worthless"
    assert links.of(3)[0]["value"] is None
    silent = probe_links(Path("."), HOOK, sae, np.zeros(D_SAE))
    assert set(silent.columns()["probe"]) == {None}
    monkeypatch.setattr(module, "read_probes", lambda run_dir: {})
    assert probe_links(Path("."), HOOK, sae, mean_F) is None


def test_the_first_hits_are_those_of_a_search_through_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search_module, "FOUND", 7)
    draw = np.random.default_rng(5)
    tokens = [[f" w{n}" for n in draw.integers(0, 12, 3)] for _ in range(60)]
    density = draw.integers(0, 6, 60) / 10
    features = SimpleNamespace(
        top_tokens=lambda: tokens,
        words=lambda: [one[0] for one in tokens],
        density_F=density,
        max_F=density,
    )
    finder = search_module.Finder(HOOK, 60, features)
    for text in ("w1", "w", "w7", "w11"):
        held = [n for n in range(60) if any(text in one for one in tokens[n])]
        rank = {n: (f" {text}" not in tokens[n], -density[n], n) for n in held}
        found = [one["feature"] for one in finder.find(text, {}, NO_NAMES)]
        assert found == sorted(held, key=rank.__getitem__)[:7], text
