"""The sink `feature_index`: packets in, examples with their tokens out, over kills and odd input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asys_bench.change.feature_index import hook_index, token_join
from asys_bench.change.feature_index import pace as pace_module
from asys_bench.change.feature_index.options import FeatureIndexOptions
from asys_bench.change.feature_index.pace import Pace, moment_of
from asys_bench.change.sae_choice import sae_of
from asys_bench.contracts.packet import CONSTANT_MICROBATCH
from asys_bench.rundir.feature_index import FeatureIndex, indexed_hooks
from asys_bench.rundir.feature_index_layout import AFTER, BEFORE
from asys_bench.rundir.live_run import ReadingError
from asys_bench.sae import SAEConfig, build_sae
from asys_bench.sae.exchange import ExchangeError
from asys_bench.sinks.sae import start

from .feature_rig import HOOK, Fed, checkpoint, identity_sae, write_sae

WORDS = 12


@pytest.fixture
def fed(tmp_path):
    made = []

    def make(**options):
        made.append(Fed(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.page.close()


def known(tmp_path, width=WORDS):
    write_sae(tmp_path / "known", identity_sae(width))
    return {"*": str(tmp_path / "known")}


def test_an_sae_that_the_hub_does_not_give_is_asked_for_once(fed, monkeypatch, caplog):
    asked = []

    def from_hub(place):
        asked.append(place)
        raise ExchangeError(place, "cannot be had", "check the name")

    monkeypatch.setattr(start, "from_hub", from_hub)
    monkeypatch.setattr(hook_index, "LOOKED_FOR_S", -1.0)
    worker = fed(saes={"*": "hf://org/none"})
    for _ in range(3):
        worker.feed(torch.ones(4, WORDS))
    assert asked == ["hf://org/none"]
    assert "has no index, its SAE cannot be read: hf://org/none: cannot be had" in caplog.text


def one_hot(ids):
    """Feature n fires at token n, more or less strongly."""
    strength = 1.0 + torch.arange(len(ids)) % 17
    return torch.nn.functional.one_hot(ids, WORDS).float() * strength[:, None]


def texts(step, lengths=(50, 3, 40)):
    """(ids, positions) of sequences side by side."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, WORDS, (sum(lengths),), generator=generator)
    return ids, torch.cat([torch.arange(length) for length in lengths])


def check_tokens(index, steps):
    """Every example's tokens and activations are those of its sequence; how many were looked at."""
    looked_at = 0
    for feature in range(WORDS):
        for kind in ("top", "random"):
            for one in index.examples(feature, kind):
                ids, positions = steps[one.host_step]
                start = one.row - int(positions[one.row])
                end = start + int((positions[start:] == torch.arange(len(ids) - start)).sum())
                begin, stop = max(start, one.row - BEFORE), min(end, one.row + AFTER + 1)
                assert one.tokens.tolist() == ids[begin:stop].tolist()
                assert one.position == one.row - begin
                assert one.token_position == int(positions[one.row])
                assert one.tokens[one.position] == feature
                exact = one_hot(ids)[begin:stop, feature].numpy()
                assert one.activations == pytest.approx(exact, abs=float(exact.max()) / 254)
                assert one.activations[one.position] == one.activation
                looked_at += 1
    return looked_at


@pytest.mark.parametrize("order", ["before", "after"])
def test_tokens_of_an_example_are_its_own_whichever_packet_comes_first(fed, tmp_path, order):
    one = fed(saes=known(tmp_path))
    steps = {step: texts(step) for step in range(12)}
    for step, (ids, positions) in steps.items():
        if order == "before":
            one.text(ids, positions, step)
        one.feed(one_hot(ids), host_step=step, text=1)
        if order == "after":
            one.text(ids, positions, step)
    index = one.write()
    assert index.rows == 12 * 93
    tokens, activations = index.top_tokens()
    assert (tokens == np.arange(WORDS)[:, None]).all()
    for feature in range(WORDS):
        wanted = [example.activation for example in index.examples(feature)]
        assert activations[feature].tolist() == wanted
        drawn = index.random_tokens()[feature]
        assert (drawn == feature).sum() == len(index.examples(feature, "random")) > 0
        assert set(drawn.tolist()) <= {feature, -1}
    assert check_tokens(index, steps) >= WORDS * 36


def test_a_long_packet_is_cut_between_sequences_and_small_ones_are_joined(
    fed, tmp_path, monkeypatch
):
    monkeypatch.setattr("asys_bench.change.feature_index.index.MOST_PAIRS", 120)
    one = fed(saes=known(tmp_path))
    steps = {1: texts(1, (60,) * 10), 2: texts(2, (3, 4)), 3: texts(3, (2,))}
    for step, (ids, positions) in steps.items():
        one.text(ids, positions, step)
        one.feed(one_hot(ids), host_step=step, text=1)
    for hook in one.worker._known():
        hook._usual = 1.0  # the very first batch of an SAE without k is small, and cuts sequences
    first = one.write()
    assert first.rows == 609
    ids, positions = steps[1]
    one.text(ids, positions, 4)
    one.feed(one_hot(ids) * 20, host_step=4, text=1)
    index = one.write()
    tops = [example for feature in range(WORDS) for example in index.examples(feature)]
    assert {example.host_step for example in tops} == {4}
    assert not any(np.isnan(example.activations).any() for example in tops)


def test_rows_whose_tokens_do_not_come_leave_without_them(fed, tmp_path, monkeypatch):
    one = fed(saes=known(tmp_path))
    ids, _ = texts(0)
    one.feed(one_hot(ids), host_step=0, text=1)
    one.worker.idle()
    assert one.count("feature_index_rows") == 0
    monkeypatch.setattr(token_join, "WAIT_S", 0.0)
    one.feed(one_hot(ids), host_step=1, text=1)
    one.worker.idle()
    index = one.write()
    assert index.rows == len(ids)
    assert {example.tokens for example in index.examples(0)} == {None}
    one.worker.close()
    assert FeatureIndex.open(tmp_path, HOOK).rows == 2 * len(ids)


def test_activations_of_rows_that_were_sampled_out_are_unknown(fed, tmp_path):
    one = fed(saes=known(tmp_path))
    ids, positions = texts(0, (40,))
    kept = np.arange(0, 40, 2)
    one.worker._context = _with_rows(one.worker._context, kept)
    one.text(ids, positions, 0)
    one.feed(one_hot(ids)[kept], host_step=0, text=1)
    index = one.write()
    example = index.examples(int(ids[20]))[0]
    assert example.tokens[example.position] == ids[20] == ids[example.row]
    unknown = np.isnan(example.activations)
    first = example.row - example.position
    assert unknown.tolist() == [(first + at) % 2 == 1 for at in range(len(unknown))]


def _with_rows(context, kept):
    return replace(context, rows=lambda packet: kept if packet.hook_id == 1 else None)


def test_a_worker_that_is_killed_goes_on_from_the_saved_point_bit_by_bit(fed, tmp_path):
    saes = known(tmp_path)
    steps = {step: texts(step) for step in range(16)}

    def feed(one, which):
        for step in which:
            one.text(*steps[step], step)
            one.feed(one_hot(steps[step][0]), host_step=step, text=1, weights_version=2)

    one = fed(saes=saes)
    feed(one, range(8))
    one.write()
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "feature_index", kept)
    feed(one, range(8, 16))
    one.write()
    whole = dict(one.worker._known()[0].index.columns)
    shutil.rmtree(tmp_path / "feature_index")
    kept.rename(tmp_path / "feature_index")

    other = fed(saes=saes)  # what came after the write is lost with the worker
    feed(other, [8])
    saved = FeatureIndex.open(tmp_path, HOOK)
    index = other.worker._known()[0].index
    for name in index.columns:
        assert np.array_equal(index.columns[name], saved.column(name)), name
    feed(other, range(9, 16))
    assert other.write().rows == 16 * 93
    for name, column in other.worker._known()[0].index.columns.items():
        assert np.array_equal(column, whole[name]), name


def test_without_an_sae_rows_are_left_out_and_it_says_so(fed, tmp_path, caplog):
    caplog.set_level("INFO")
    one = fed()
    one.feed(torch.rand(5, WORDS))
    assert one.count("feature_index_left_out_rows") == 5
    (said,) = [
        one for one in caplog.records if "before the run has a checkpoint" in one.getMessage()
    ]
    assert said.levelname == "INFO", "so begins every run with SAEs of its own"
    with pytest.raises(ReadingError, match="no feature index"):
        FeatureIndex.open(tmp_path, HOOK)
    checkpoint(tmp_path, 7, identity_sae(WORDS))
    one.look_again()
    one.feed(torch.rand(5, WORDS))
    index = one.write()
    assert (index.rows, index.weights_step) == (5, 7)
    assert indexed_hooks(tmp_path) == [HOOK]


def test_rows_that_are_no_numbers_are_refused_alone(fed, tmp_path, caplog):
    one = fed(saes=known(tmp_path))
    x = torch.rand(6, WORDS)
    x[1, 3], x[4, 0] = float("nan"), float("inf")
    one.feed(x)
    one.feed(torch.full((1, WORDS), float("nan")))
    one.feed(torch.rand(4, WORDS).to(torch.bfloat16))
    one.feed(torch.rand(3, WORDS - 1))  # another width
    one.feed(torch.tensor(1.0))
    one.feed(torch.rand(3, WORDS), microbatch=CONSTANT_MICROBATCH)
    index = one.write()
    assert index.rows == 8
    assert one.count("feature_index_refused_rows") == 3
    assert sorted(example.row for example in index.examples(5) if example.host_step == 0) == [
        0,
        2,
        3,
        5,
    ]
    assert "not finite" in caplog.text
    assert f"its SAE takes {WORDS}" in caplog.text


def test_an_sae_of_another_size_begins_anew_and_nothing_is_lost(fed, tmp_path, caplog):
    checkpoint(tmp_path, 1, identity_sae(WORDS))
    one = fed()
    one.feed(torch.rand(50, WORDS), host_step=1)
    one.write()
    checkpoint(tmp_path, 2, build_sae(SAEConfig(d_sae=2 * WORDS, k=3), WORDS))
    one.look_again()
    one.feed(torch.rand(4, WORDS), host_step=2)
    index = one.write()
    assert (index.d_sae, index.rows) == (2 * WORDS, 4)
    assert "begins anew" in caplog.text
    (kept,) = (tmp_path / "feature_index" / HOOK).glob("before-*.json")
    assert FeatureIndex.of_file(kept, tmp_path).rows == 50
    again = fed()  # of a later worker, too
    again.feed(torch.rand(4, WORDS), host_step=3)
    assert again.write().rows == 8
    assert FeatureIndex.of_file(kept, tmp_path).rows == 50


def test_a_damaged_index_is_set_aside_and_another_begun(fed, tmp_path, caplog):
    saes = known(tmp_path)
    one = fed(saes=saes)
    one.feed(torch.rand(5, WORDS))
    one.write()
    folder = tmp_path / "feature_index" / HOOK
    (columns,) = folder.glob("columns-*.safetensors")
    columns.write_bytes(columns.read_bytes()[:-5000])
    other = fed(saes=saes)
    other.feed(torch.rand(5, WORDS))
    assert other.write().rows == 5
    assert columns.exists()
    assert "begins anew" in caplog.text


def test_an_index_that_does_not_fit_says_what_it_needs(fed, tmp_path, caplog):
    one = fed(saes=known(tmp_path), max_mib=32.001)
    one.feed(torch.rand(5, WORDS))
    assert one.count("feature_index_left_out_rows") == 5
    assert "need max_mib: 33" in caplog.text


def test_a_kill_between_the_two_files_loses_nothing(fed, tmp_path):
    saes = known(tmp_path)
    one = fed(saes=saes)
    one.feed(torch.rand(5, WORDS))
    one.write()
    folder = tmp_path / "feature_index" / HOOK
    shutil.copy(folder / "columns-1.safetensors", folder / "columns-2.safetensors")
    other = fed(saes=saes)
    other.feed(torch.rand(5, WORDS))
    assert other.write().rows == 10
    assert sorted(path.name for path in folder.iterdir()) == ["columns-3.safetensors", "index.json"]


def test_a_reader_keeps_what_it_has_opened(fed, tmp_path):
    one = fed(saes=known(tmp_path))
    one.feed(torch.rand(5, WORDS))
    early = one.write()
    one.feed(torch.rand(50, WORDS))
    late = one.write()
    assert len(early.examples(0)) == 5
    assert len(late.examples(0)) == 20
    document = json.loads((tmp_path / "feature_index" / HOOK / "index.json").read_text())
    assert document["rows"] == 55


def test_the_pace_keeps_to_its_share_and_takes_hooks_of_a_call_together(monkeypatch):
    now = 0.0
    monkeypatch.setattr(pace_module, "time", SimpleNamespace(monotonic=lambda: now))
    pace = Pace(0.25)
    moments = [moment_of(number) for number in range(400)]
    for _ in range(20):
        for moment in moments:
            now += 0.01
            if pace.takes(moment):
                pace.spent(0.01)  # reading every call would take all of a core
            else:
                pace.spent(0.0)
    assert 0.15 < pace.rate < 0.35
    taken = [pace.takes(moment) for moment in moments]
    assert taken == [pace.takes(moment) for moment in moments]
    assert 0.1 < np.mean(taken) < 0.4


def test_options_name_folders_that_are_there(tmp_path):
    options = FeatureIndexOptions(saes={"*": "run", "a": str(tmp_path / "nothing")})
    (misfit,) = options.misfits(1, ["a"])
    assert misfit.path == ("options", "saes", "a")
    assert sae_of(options.saes, "b") == "run"


def test_rows_of_several_heads_a_token_are_indexed_without_tokens_and_that_is_said(
    fed, tmp_path, caplog
):
    one = fed(saes=known(tmp_path))
    one.worker._context = replace(
        one.worker._context, rows_each=lambda packet: 2 if packet.hook_id == 1 else 1
    )
    ids, positions = texts(1)
    one.text(ids, positions, 1)
    one.feed(one_hot(ids).repeat_interleave(2, 0), host_step=1, text=1)
    index = one.write()
    assert index.rows == 2 * len(ids)
    assert "several rows a token (heads)" in caplog.text
