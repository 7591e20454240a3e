"""What is kept of features, against brute force and by its size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from asys_bench.change.feature_index.batches import Batch, Pairs, Part
from asys_bench.change.feature_index.cofiring import count_partners
from asys_bench.change.feature_index.index import WORKING_BYTES, Index
from asys_bench.rundir.feature_index_layout import PARTNERS, QUANTILE_BINS, WINDOWS, Sizes

from .feature_rig import Fed, checkpoint, identity_sae, write_sae

WIDTH = 12
CALL = ("weights_version", "source", "call", "microbatch", "attempt", "text")


def part_of(x: torch.Tensor, step: int, weight: float = 1.0) -> Part:
    call = dict.fromkeys(CALL, 0) | {"host_step": step}
    return Part(x, np.arange(len(x)), weight, step * 7919 + 1, call)


def add(index: Index, x: torch.Tensor, step: int, weight: float = 1.0) -> None:
    """Rows whose numbers above 0 are activations."""
    row, feature = (x > 0).nonzero(as_tuple=True)
    offset = np.r_[0, np.cumsum(np.bincount(row, minlength=len(x)))]
    pairs = Pairs(offset, feature.numpy(), x[row, feature].numpy())
    index.add(Batch.of([part_of(x, step, weight)]), pairs, 0)


def draws(steps: int, rows: int = 64, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, WIDTH, generator=generator) for _ in range(steps)]


def test_top_examples_histogram_and_density_are_those_of_brute_force(tmp_path):
    write_sae(tmp_path / "known", identity_sae(WIDTH))
    fed = Fed(tmp_path, saes={"*": str(tmp_path / "known")})
    batches = draws(30)
    for step, x in enumerate(batches):
        fed.feed(x, host_step=step, weights_version=step // 3, source=2, microbatch=1)
    index = fed.write()
    fed.page.close()
    every = torch.stack(batches)  # [step, row, feature]
    assert index.rows == 30 * 64
    fires = every > 0
    assert index.density_F == pytest.approx(fires.float().mean((0, 1)).numpy())
    assert index.mean_F == pytest.approx(
        (every.clamp(min=0).sum((0, 1)) / fires.sum((0, 1))).numpy()
    )
    assert index.max_F == pytest.approx(every.amax((0, 1)).numpy())
    for feature in range(WIDTH):
        order = every[:, :, feature].flatten().argsort(descending=True)[:20]
        found = index.examples(feature)
        assert [(one.host_step, one.row) for one in found] == [
            (at // 64, at % 64) for at in order.tolist()
        ]
        assert [one.activation for one in found] == every[:, :, feature].flatten()[order].tolist()
        assert {(one.source, one.microbatch) for one in found} == {(2, 1)}
        assert all(one.weights_version == one.host_step // 3 for one in found)
        assert {one.tokens for one in found} == {None}
        edges, counts = index.histogram(feature)
        wanted = np.histogram(every[:, :, feature].flatten().numpy(), edges)[0]
        assert counts.sum() == fires[:, :, feature].sum()
        assert counts[1:].tolist() == wanted[1:].tolist()  # the first has what is smaller, too
        steps, density = index.density_over_time(feature)
        assert steps.tolist() == list(range(30))
        assert density == pytest.approx(fires[:, :, feature].float().mean(1).numpy())


def test_random_examples_are_of_every_fifth_and_of_every_part_of_the_run_alike():
    """Of each feature and each fifth four are kept; when they came is uniform (chi-square, fixed seed)."""
    sizes = Sizes(WIDTH, 4, False)
    when = np.zeros(8)
    true_fifth = np.zeros((QUANTILE_BINS, QUANTILE_BINS))
    for seed in range(3):
        index = Index(sizes)
        batches = draws(64, rows=32, seed=seed)
        for step, x in enumerate(batches):
            add(index, x, step + 1000 * seed)
        key = index.columns["random_key"]
        assert (key > -np.inf).all()
        step_FS = index.columns["host_step"][:, sizes.top :] - 1000 * seed
        when += np.bincount(step_FS.reshape(-1) // 8, minlength=8)
        value_FS = index.columns["activation"][:, sizes.top :].reshape(WIDTH, QUANTILE_BINS, 4)
        every = torch.cat(batches).numpy()
        for feature in range(WIDTH):
            fired = np.sort(every[:, feature][every[:, feature] > 0])
            fifth = np.searchsorted(fired, value_FS[feature]) * QUANTILE_BINS // len(fired)
            for its_bin in range(QUANTILE_BINS):
                true_fifth[its_bin] += np.bincount(fifth[its_bin], minlength=QUANTILE_BINS)
    assert when.sum() == 3 * WIDTH * QUANTILE_BINS * 4
    assert chisquare(when).pvalue > 0.01
    assert (np.diag(true_fifth) / true_fifth.sum(1) > 0.85).all(), true_fifth


def test_the_bound_holds_for_24576_features():
    sizes = Sizes.fitting(24_576, text=True, most_bytes=(256 << 20) - WORKING_BYTES)
    assert sizes is not None
    assert (sizes.slots, sizes.per_bin) == (40, 4)
    columns = sizes.empty()
    assert sum(column.nbytes for column in columns.values()) == sizes.nbytes
    index = Index(sizes, columns)
    beside = index._top_least.nbytes + index._random_least.nbytes
    assert sizes.nbytes + beside + WORKING_BYTES <= 256 << 20
    assert Sizes.fitting(65_536, True, 224 << 20) == Sizes(65_536, 1, True)
    assert Sizes.fitting(1 << 20, True, 224 << 20) is None


def test_windows_are_joined_and_nothing_of_them_is_lost():
    index = Index(Sizes(WIDTH, 1, False))
    for step in (3, 5, 70, 500, 4, 10_000):
        add(index, torch.ones(2, WIDTH), step)
    assert index.first == 3
    assert index.used <= WINDOWS
    assert index.width == 256  # (10,000 - 3) / 64 rounded up to a power of two
    assert index.columns["window_rows"].sum() == 12
    assert (index.columns["window_fires"].sum(1) == 12).all()
    assert index.columns["window_rows"][0] == 8
    assert index.columns["window_rows"][(500 - 3) // 256] == 2


def test_planted_partners_are_found_among_two_hundred_others():
    """Features 2n and 2n + 1 fire together; each fires with 198 others by chance."""
    features, rows = 200, 2000
    draw = np.random.default_rng(1)
    partner = np.full((features, PARTNERS), -1, np.int32)
    together = np.zeros((features, PARTNERS), np.float32)
    fires = np.zeros(features)
    both = np.zeros((features, features))
    for batch in range(10):
        active = draw.random((rows // 10, features // 2)) < 0.05
        active = np.repeat(active, 2, axis=1)
        feature = np.nonzero(active)[1]
        offset = np.r_[0, np.cumsum(active.sum(1))]
        moment = (np.arange(rows // 10) + 1000 * batch).astype(np.uint64) * np.uint64(2654435761)
        count_partners(partner, together, offset, feature, np.ones(rows // 10), moment)
        fires += active.sum(0)
        both += active.T.astype(float) @ active
    found = partner[np.arange(features), together.argmax(1)]
    assert (found == np.arange(features) ^ 1).mean() > 0.95
    right = found == np.arange(features) ^ 1
    ratio = together.max(1)[right] / fires[right]  # it fires whenever the other does
    assert abs(ratio.mean() - 1) < 0.1


def test_few_partners_are_counted_exactly():
    partner, together = np.full((6, PARTNERS), -1, np.int32), np.zeros((6, PARTNERS), np.float32)
    offset, feature = np.array([0, 3, 5, 5, 6]), np.array([0, 1, 2, 0, 1, 3])
    moment = np.arange(1, 5, dtype=np.uint64)
    for _ in range(3):
        count_partners(partner, together, offset, feature, np.array([1.0, 2.0, 1.0, 1.0]), moment)
    found = {
        f: dict(zip(partner[f][together[f] > 0], together[f][together[f] > 0], strict=True))
        for f in range(6)
    }
    assert found == {0: {1: 9, 2: 3}, 1: {0: 9, 2: 3}, 2: {0: 3, 1: 3}, 3: {}, 4: {}, 5: {}}


def test_a_resampled_feature_begins_with_nothing_and_others_forget_it(tmp_path):
    checkpoint(tmp_path, 100, identity_sae(WIDTH), [0] * WIDTH)
    fed = Fed(tmp_path)
    for step, x in enumerate(draws(8)):
        fed.feed(x, host_step=step)
    before = fed.write()
    assert len(before.examples(3)) == 20
    assert 3 in {other for other, *_ in before.cofiring(5)}
    checkpoint(tmp_path, 200, identity_sae(WIDTH), [0, 0, 0, 1] + [0] * (WIDTH - 4))
    fed.look_again()
    late = torch.zeros(2, WIDTH)
    late[0, 3] = 0.25
    fed.feed(late, host_step=50)
    after = fed.write()
    fed.page.close()
    assert after.weights_step == 200
    assert after.generation_F.tolist() == [0, 0, 0, 1] + [0] * (WIDTH - 4)
    (only,) = after.examples(3)
    assert (only.host_step, only.row, only.activation, only.sae_step) == (50, 0, 0.25, 200)
    assert len(after.examples(3, "random")) == 1
    assert after.density_F[3] == 0.5
    assert after.histogram(3)[1].sum() == 1
    assert after.density_over_time(3)[1].sum() == pytest.approx(0.5)
    assert after.cofiring(3) == []
    assert 3 not in {other for other, *_ in after.cofiring(5)}
    # Of features whose weights have not changed everything is as it was.
    assert [vars_of(one) for one in after.examples(4)] == [
        vars_of(one) for one in before.examples(4)
    ]
    assert after.density_F[4] == pytest.approx(before.density_F[4] * 512 / 514)


def vars_of(example):
    return example.host_step, example.row, example.activation, example.sae_step


def test_where_the_sae_has_moved_new_examples_come_before_the_old(tmp_path):
    checkpoint(tmp_path, 1, identity_sae(WIDTH), [0] * WIDTH)
    fed = Fed(tmp_path)
    for step, x in enumerate(draws(8)):
        fed.feed(x, host_step=step)
    fed.write()
    moved = identity_sae(WIDTH)
    with torch.no_grad():
        moved.W_enc[:, 0] = 0.0
        moved.W_enc[1, 0] = 1.0  # feature 0 now reads what feature 1 does: cosine 0
    checkpoint(tmp_path, 2, moved, [0] * WIDTH)
    fed.look_again()
    fed.feed(torch.full((20, WIDTH), 0.01), host_step=99)
    index = fed.write()
    fed.page.close()
    assert {one.host_step for one in index.examples(0)} == {99}
    assert {one.host_step for one in index.examples(1)} <= set(range(8))
    assert index.density_F[0] == 1.0
    assert index.density_F[1] < 0.6
