"""Features by archive and by index, their search, what they write: against known answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import save_file

from asys_bench.contracts.run_files import HOST_DIR
from asys_bench.eye import eye as module
from asys_bench.eye import views as views_module
from asys_bench.eye.archive_features import ArchiveFeatures
from asys_bench.eye.births import births_document
from asys_bench.eye.eye import Eye, NotThereError
from asys_bench.eye.index_features import TOPS, IndexFeatures, _strongest
from asys_bench.eye.logits import NoLogitsError, promoted, read_unembedding
from asys_bench.eye.marks import Mark
from asys_bench.eye.sae_view import SaeView
from asys_bench.rundir.timeline_document import FeatureLife, Timeline, write_timeline
from asys_bench.sae import SAEConfig, build_sae
from asys_bench.sae.checkpoint.lives import Lives

from ..reports import test_run_report as made
from .conftest import D_IN, D_SAE, HOOK, HOSTILE, SILENT
from .fake_index import FakeIndex

WAIT_S = 60.0
VOCABULARY = {n: f" w{n}" for n in range(64)}


@pytest.fixture(scope="module")
def features(text_run: Path) -> ArchiveFeatures:
    latest = module.latest_checkpoint(text_run, HOOK)
    assert latest is not None
    sae, _ = module.load_sae(latest)
    return ArchiveFeatures.open(text_run, HOOK, sae, module.read_vocabulary(text_run))


@pytest.fixture(scope="module")
def acts_NF(features: ArchiveFeatures, text_rows: torch.Tensor) -> np.ndarray:
    """The whole truth: every row encoded at once."""
    with torch.no_grad():
        return features.sae.encode(text_rows).numpy()


def test_figures_of_every_feature_are_those_of_encoding_all_rows(features, acts_NF) -> None:
    assert features.rows == 60
    assert np.allclose(features.density_F, (acts_NF > 0).mean(0))
    assert np.allclose(features.max_F, acts_NF.max(0))
    for feature in range(D_SAE):
        edges, counts = features.histogram(feature)
        active = acts_NF[:, feature][acts_NF[:, feature] > 0]
        assert counts.sum() == len(active)
        assert not len(active) or edges[-1] == pytest.approx(active.max())


def test_features_that_fire_together_are_counted_row_by_row(features, acts_NF) -> None:
    fires_NF = acts_NF > 0
    both_FF = fires_NF.T.astype(int) @ fires_NF.astype(int)
    told = 0
    for feature in range(D_SAE):
        for other, count, lift in features.cofiring(feature):
            assert count == both_FF[feature, other] >= 3
            expected = both_FF[feature, feature] * fires_NF[:, other].mean()
            assert lift == pytest.approx(count / expected)
            assert lift > 1
            told += 1
    assert told > 0


def test_activations_over_time_are_counted_by_octaves(features, acts_NF) -> None:
    feature = int((acts_NF > 0).sum(0).argmax())
    begins, edges, counts = features.activations_over_time(feature)
    assert begins.tolist() == [0.0, 1.0, 2.0]
    by_step = acts_NF[:, feature].reshape(3, 20)
    assert counts.sum(1).tolist() == (by_step > 0).sum(1).tolist()
    for step in range(3):
        assert counts[step, 1:].tolist() == np.histogram(by_step[step], edges)[0][1:].tolist()


def test_what_is_looked_at_ahead_is_the_same(features, acts_NF) -> None:
    some = acts_NF.max(0).argsort()[-3:].tolist()
    alone = [
        (features.examples(f, "top"), features.examples(f, "random"), features.pictures(f))
        for f in some
    ]
    features.look_ahead(some)
    assert [
        (features.examples(f, "top"), features.examples(f, "random"), features.pictures(f))
        for f in some
    ] == alone
    features.look_ahead([])


def test_density_over_time_is_over_host_steps(features, acts_NF) -> None:
    feature = int((acts_NF > 0).sum(0).argmax())
    steps, density = features.density_over_time(feature)
    assert steps.tolist() == [0.0, 1.0, 2.0]
    assert np.allclose(density, (acts_NF[:, feature] > 0).reshape(3, 20).mean(1))


def test_examples_are_tokens_each_with_the_features_own_activation(features, acts_NF) -> None:
    feature = int(acts_NF.max(0).argmax())
    row = int(acts_NF[:, feature].argmax())
    best = features.examples(feature, "top")[0]
    assert best["activation"] == pytest.approx(acts_NF[row, feature], rel=1e-3)
    assert best["step"] == row // 20
    assert best["tokens"][best["at"]] == (HOSTILE if row == 7 else f" w{row}")
    levels = [level or 0.0 for level in best["levels"]]
    first = row - best["at"]
    assert np.allclose(levels, acts_NF[first : first + len(levels), feature], rtol=1e-3)
    some = features.examples(feature, "random")
    values = [one["activation"] for one in some]
    assert values == sorted(values, reverse=True)
    assert all(value > 0 for value in values)


def test_a_silent_feature_has_no_examples(features, acts_NF) -> None:
    assert acts_NF[:, SILENT].max() == 0
    for kind in ("top", "random"):
        assert features.examples(SILENT, kind) == []
    assert features.cofiring(SILENT) == []
    assert features.words()[SILENT] == ""


def view(features, sae=None, lives=None) -> SaeView:
    sae = sae or build_sae(SAEConfig(architecture="topk", d_sae=D_SAE, k=2, seed=3), D_IN).eval()
    return SaeView(HOOK, Path("step_000000010"), sae.requires_grad_(False), lives, features)


def test_tokens_are_found_whatever_their_case_and_spaces_and_names_come_first(
    features, acts_NF
) -> None:
    top = [features.top_tokens()[f] for f in range(D_SAE)]
    wanted = next(tokens[0] for tokens in top if tokens and tokens[0] != HOSTILE)
    found = view(features).find(f" {wanted.upper()} ", {})
    exact = {f for f in range(D_SAE) if wanted in top[f]}
    assert {one["feature"] for one in found if one["where"] == "its very token"} == exact
    marks = {0: Mark(name=f"about {wanted}"), 999: Mark(name=wanted)}
    first = view(features).find(wanted, marks)[0]
    assert (first["feature"], first["where"]) == (0, "name or note")
    assert view(features).find("  ", marks) == []
    assert view(features).find("no such token", {}) == []
    markup = [one["tokens"] for one in view(features).find("<img", {})]
    assert all(any(HOSTILE in token for token in tokens) for tokens in markup)


def test_of_a_text_that_nothing_holds_each_word_is_looked_for(features) -> None:
    tops = features.top_tokens()
    words = [tokens[0].strip() for tokens in tops if tokens and tokens[0] != HOSTILE]
    first, second = words[:2]
    found = view(features).find(f"nowhere {first}  {second} ", {})
    told = {hit["feature"]: hit["where"] for hit in found}
    for feature, tokens in enumerate(tops):
        held = [word for word in (first, second) if word in [token.strip() for token in tokens]]
        assert told.get(feature, "") == (f"its very token: {', '.join(held)}" if held else "")
    both = [len(hit["where"].split(",")) for hit in found]
    assert both == sorted(both, reverse=True)
    assert view(features).find("nowhere nothing", {}) == []


@given(
    tokens=arrays(np.int32, (5, 16), elements=st.integers(-1, 12)),
    values=arrays(np.float32, (5, 16), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])),
)
def test_the_strongest_tokens_are_those_of_the_largest_sums(tokens, values) -> None:
    found = _strongest(tokens, values)
    for row, levels, its in zip(tokens.tolist(), values.tolist(), found.tolist(), strict=True):
        strength: dict[int, float] = {}
        for token, level in zip(row, levels, strict=True):
            if token >= 0 and level > 0:
                strength[token] = strength.get(token, 0.0) + level
        wanted = sorted(strength, key=lambda token: -strength[token])[:TOPS]
        assert its == [*wanted, *[-1] * (TOPS - len(wanted))]


def test_an_index_answers_everything_that_an_archive_answers() -> None:
    index = FakeIndex(D_SAE)
    found = IndexFeatures(index, VOCABULARY)
    table = view(found).table({3: Mark(pin=True)})
    assert table["columns"]["density"][:2] == [0.25, 0.25]
    assert table["columns"]["alike"][4:8] == [0.75, None, None, 0.75]
    assert table["words"][4:8] == [" w4", "", "", " w7"]
    assert table["marks"] == {"3": {"pin": True, "name": "", "note": ""}}
    assert table["indexed"]
    marks = {3: Mark(pin=True)}
    assert json.loads(view(found).table_text(marks, "")) == table | {"marks_problem": ""}
    (one,) = view(found).some_features([7], {}, "no model", VOCABULARY)
    assert one["top"][0] == {
        "activation": 3.0, "quantile": 4, "step": 12, "source": 0, "row": 3,
        "tokens": [" w1", " w7", " w2"], "levels": [0.5, 3.0, None], "at": 1,
    }  # fmt: skip
    assert one["histogram"] == {"edges": [0.0, 1.0, 2.0], "counts": [5.0, 1.0]}
    assert one["heat"] == {
        "x": [0.0, 50.0],
        "edges": [1.0, 2.0, 4.0],
        "counts": [[1.0, 0.0], [2.0, 2.0]],
    }
    assert one["cofiring"] == [
        {"feature": 1, "count": 9.0, "lift": 3.5, "words": " w1", "name": ""}
    ]
    assert one["logits"] == {"problem": "no model"}
    assert [hit["feature"] for hit in view(found).find("w9", {})] == [9]
    json.dumps([table, one], allow_nan=False)


def test_decoder_neighbours_are_by_cosine(features) -> None:
    one = view(features)
    rows = torch.nn.functional.normalize(one.sae.W_dec, dim=1)
    told = next(one.some_features([2], {}, "", {}))["neighbours"]
    cosine = rows @ rows[2]
    cosine[2] = -2
    best = cosine.argsort(descending=True)[:10].tolist()
    assert [neighbour["feature"] for neighbour in told] == best
    assert told[0]["cosine"] == pytest.approx(float(cosine.max()), rel=1e-3)


def lives_of(sae, born: int = 40) -> Lives:
    zeros = torch.zeros(D_SAE, dtype=torch.int64)
    some = zeros.clone()
    some[4] = 1
    return Lives(
        some, zeros, some * born, zeros, zeros - 1, torch.full((D_SAE,), 0.75),
        torch.zeros(2, D_SAE), torch.tensor([5, 5]), torch.tensor([0, 100]),
    )  # fmt: skip


def test_age_is_in_host_steps_since_a_life_began(features) -> None:
    found = view(features, lives=lives_of(None))
    table = found.table({})["columns"]
    assert table["age"][3:6] == [100, 60, 100]
    assert table["drift"][0] == 0.25
    life = next(found.some_features([4], {}, "", {}))["life"]
    assert life == {"generation": 1, "born_step": 40, "age": 60, "drift": 0.25, "turned_step": None}


# ---- what it writes


def model_files(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    folder.mkdir(parents=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    options = {"transformers": {"model": str(folder)}}
    return {"host": {"kind": "transformers", "options": options}}


def test_output_tokens_are_those_of_final_norm_and_unembedding(tmp_path: Path) -> None:
    weight = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(1))
    gain = torch.arange(1.0, D_IN + 1)
    tensors = {"model.embed_tokens.weight": weight, "model.norm.weight": gain}
    config = model_files(tmp_path / "model", tensors)
    found = read_unembedding(tmp_path, config)
    row = torch.randn(D_IN, generator=torch.Generator().manual_seed(2))
    logits = weight @ (gain * row)
    told = promoted(found.attribution(row), VOCABULARY)
    order = logits.argsort(descending=True).tolist()
    assert [one["token"] for one in told["promoted"]] == [f" w{n}" for n in order[:10]]
    assert [one["token"] for one in told["suppressed"]] == [f" w{n}" for n in order[::-1][:10]]
    assert told["promoted"][0]["value"] == pytest.approx(float(logits.max()), rel=1e-2)
    with pytest.raises(NoLogitsError, match=f"residual stream has {D_IN}"):
        found.attribution(torch.zeros(D_IN + 1))


def test_an_unembedding_of_its_own_and_weights_that_the_host_kept_come_first(
    tmp_path: Path,
) -> None:
    own, tied = torch.ones(4, 3), torch.zeros(4, 3)
    config = model_files(
        tmp_path / "model", {"lm_head.weight": own, "model.embed_tokens.weight": tied}
    )
    found = read_unembedding(tmp_path, config)
    assert torch.equal(found.weight_VD, own)
    assert "without a final norm" in found.about
    for step in (10, 200):
        kept = tmp_path / HOST_DIR / f"step_{step:09d}"
        model_files(kept, {"lm_head.weight": own * step})
        (kept / "weights.json").write_text(json.dumps({"host_step": step}))
    found = read_unembedding(tmp_path, config)
    assert float(found.weight_VD[0, 0]) == 200
    assert "host step 200" in found.about


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (None, "the host is not known"),
        ({"ppo": {}}, "the host is ppo"),
        ({"transformers": {"model": "org/name"}}, "not on this machine"),
        (3, "the host is transformers"),
    ],
)
def test_without_the_models_files_it_says_why(tmp_path: Path, options, why: str) -> None:
    kind = "ppo" if options == {"ppo": {}} else "transformers"
    config = {} if options is None else {"host": {"kind": kind, "options": options}}
    with pytest.raises(NoLogitsError, match=why):
        read_unembedding(tmp_path, config)


def test_damaged_model_files_are_named(tmp_path: Path) -> None:
    config = model_files(tmp_path / "model", {"other": torch.ones(2, 2)})
    with pytest.raises(NoLogitsError, match="no unembedding"):
        read_unembedding(tmp_path, config)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(NoLogitsError, match="cannot be read"):
        read_unembedding(tmp_path, config)


# ---- the timeline


def test_births_and_deaths_are_told_with_what_the_features_fire_on(tmp_path: Path) -> None:
    assert "asys-run timeline" in births_document(tmp_path, HOOK, None, ())["problem"]
    always = FeatureLife(feature=1, verdict="gradual")
    born = FeatureLife(
        feature=2, verdict="born", cause="learnt", born_step=120.0, born_low=100.0, born_high=130.0,
        rate_after=0.02, rates=(0.0, 0.02),
    )  # fmt: skip
    died = FeatureLife(feature=3, verdict="gradual", died_step=400.0)
    copy = replace(born, feature=4, duplicate_of=2)
    timeline = Timeline(
        label=HOOK, hook=HOOK, checkpoint="step_000000010", features=D_SAE, rows=100, units=10,
        first_step=0, last_step=500, counts={"born": 1}, curve_steps=(0.0, 250.0),
        lives=(always, born, died, copy),
    )  # fmt: skip
    write_timeline(tmp_path, timeline)
    found = births_document(tmp_path, HOOK, lives_of(None), ["", "", "<b>stop</b>", ""])
    assert [(one["feature"], one["born"], one["died"]) for one in found["lives"]] == [
        (2, 120.0, None), (3, None, 400.0),
    ]  # fmt: skip
    assert found["lives"][0]["words"] == "<b>stop</b>"
    assert "learnt" in found["lives"][0]["cause"]
    assert found["resampled"]["features"] == 1
    assert sum(found["resampled"]["counts"]) == 1
    json.dumps(found, allow_nan=False)


# ---- one run's


def test_of_an_sae_without_archive_the_checkpoint_is_shown_and_why_no_more(own_run: Path) -> None:
    for shard in own_run.glob("archive/*/*"):
        shard.unlink()
    eye = Eye(own_run, WAIT_S)
    table = eye.table(HOOK)
    assert "no activations to look at" in table["problem"]
    assert (table["d_sae"], table["words"]) == (D_SAE, [])
    one = eye.feature(HOOK, 3)
    assert len(one["neighbours"]) == 10
    assert "top" not in one
    assert eye.search("w1")["found"] == []


def test_a_newer_checkpoint_is_taken_but_not_too_often(
    own_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eye = Eye(own_run, WAIT_S)
    assert eye.table(HOOK)["checkpoint"] == "step_000000010"
    sae = build_sae(SAEConfig(architecture="topk", d_sae=D_SAE, k=2, seed=4), D_IN)
    made.CheckpointStore(own_run / "sae" / HOOK).write(
        11, lambda folder: made.save_sae(folder, sae, made.InputScaling.identity(D_IN), {})
    )
    assert eye.table(HOOK)["checkpoint"] == "step_000000010"
    monkeypatch.setattr(views_module, "FRESH_S", {"index": 0.0, "archive": 0.0})
    monkeypatch.setattr(views_module, "SHARE", 1e9)
    assert eye.table(HOOK)["checkpoint"] == "step_000000011"
    view = eye.view(HOOK)
    eye.table(HOOK)
    assert eye.view(HOOK) is view, "nothing new, so nothing is read again"
    eye.close()


def test_an_index_is_preferred_and_one_of_another_sae_is_not(
    text_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "open_index", lambda run_dir, label: FakeIndex(D_SAE))
    assert Eye(text_run, WAIT_S).table(HOOK)["indexed"]
    monkeypatch.setattr(module, "open_index", lambda run_dir, label: FakeIndex(D_SAE + 1))
    assert not Eye(text_run, WAIT_S).table(HOOK)["indexed"]


def test_what_is_not_there_is_said(text_run: Path) -> None:
    eye = Eye(text_run, WAIT_S)
    for label in ("nowhere", "../..", "", "\x00"):
        with pytest.raises(NotThereError):
            eye.table(label)
    with pytest.raises(NotThereError, match="0 to 31"):
        eye.feature(HOOK, D_SAE)


def test_a_checkpoint_that_is_removed_while_it_is_read_is_not_half_read(
    own_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = made.CheckpointStore(own_run / "sae" / HOOK, keep_last=1)
    sae = build_sae(SAEConfig(architecture="topk", d_sae=D_SAE, k=2, seed=4), D_IN)
    told: list[str] = []

    def lives_in(checkpoint: Path) -> None:
        told.append(checkpoint.name)
        if len(told) == 1:
            store.write(
                11, lambda folder: made.save_sae(folder, sae, made.InputScaling.identity(D_IN), {})
            )

    monkeypatch.setattr(module, "lives_in", lives_in)
    assert Eye(own_run, WAIT_S).table(HOOK)["checkpoint"] == "step_000000011"
    assert told == ["step_000000010", "step_000000011"]
