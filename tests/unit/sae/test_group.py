"""An SAE whose features or rows are spread over ranks trains as one process does. Ranks are threads here."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from asys_bench.sae import ARCHITECTURES, SAEConfig, SAETrainer, load_sae
from asys_bench.sae.architectures.scaling import InputScaling
from asys_bench.sae.checkpoint.checkpoint_files import StateDict
from asys_bench.sae.group.group_learner import GroupLearner
from asys_bench.sae.group.state import feature_axis, joined, part_of
from asys_bench.sae.ranks import Ranks, Split
from asys_bench.sae.training.learner import Learner

from .step_by_step import D_OUT, D, batches, config_of, learner_of, rows_for
from .thread_group import ThreadGroup

NEAR = 1e-5
"""What issue and documents promise; a step from one state differs by less than 1e-6."""
POLICIES = [(name, "auto") for name in ARCHITECTURES]
POLICIES += [("topk", "auxk"), ("jumprelu", "auxk"), ("matryoshka", "auxk")]
QUICK = [("topk", "auto"), ("batchtopk", "auto"), ("jumprelu", "auxk")]
SOAK = pytest.mark.soak("all architectures")


def _apart(one: StateDict, other: StateDict) -> float:
    """Largest difference of any entry; other shapes or names fail."""
    assert list(one) == list(other)
    worst = 0.0
    for name, value in one.items():
        if name == "lives.turned_host_step":
            continue  # it follows from the directions at birth, which a state does not carry
        theirs = other[name]
        if isinstance(value, torch.Tensor):
            assert isinstance(theirs, torch.Tensor)
            assert (value.shape, value.dtype) == (theirs.shape, theirs.dtype)
            difference = (value.detach().double() - theirs.double()).abs()
            if name == "lives.energy":  # sums of squares over a batch, of any size
                difference /= value.double().abs().max().clamp_min(1.0)
            worst = max(worst, float(difference.max()) if value.numel() else 0.0)
        else:
            worst = max(worst, abs(value - float(theirs)))
    return worst


def _copied(state: StateDict) -> StateDict:
    return {n: v.detach().clone() if isinstance(v, torch.Tensor) else v for n, v in state.items()}


def _steps_agree(architecture: str, policy: str, split: Split, size: int, steps: int) -> Learner:
    """Weights, moments, steps of each row, dead features: everything that a step changes."""
    rows, config = rows_for(architecture), config_of(architecture, policy)
    one = learner_of(config, rows)
    d_out = D_OUT if architecture == "skip_transcoder" else None
    with ThreadGroup(size, split) as group:
        other = GroupLearner(group, config, D, d_out)
        for rows_BD, weight_B in batches(rows, steps):
            other.load_state_dict(_copied(one.state_dict()))
            alone, together = (learner.step(rows_BD.clone(), weight_B) for learner in (one, other))
            assert alone is not None
            assert together is not None
            assert together.loss == pytest.approx(alone.loss, rel=NEAR)
            assert together.active == alone.active
            assert _apart(one.state_dict(), other.state_dict()) < NEAR
    return one


@pytest.mark.parametrize("split", ["latents", "rows"])
@pytest.mark.parametrize(("architecture", "policy"), QUICK)
def test_a_step_of_a_group_is_that_of_one_process(
    architecture: str, policy: str, split: Split
) -> None:
    _steps_agree(architecture, policy, split, size=3 if split == "latents" else 2, steps=6)


@pytest.mark.rest
@pytest.mark.parametrize("split", ["latents", "rows"])
@pytest.mark.parametrize(
    ("architecture", "policy"),
    [one if one in QUICK else pytest.param(*one, marks=SOAK) for one in POLICIES],
)
def test_100_steps_of_a_group_are_those_of_one_process(
    architecture: str, policy: str, split: Split
) -> None:
    one = _steps_agree(architecture, policy, split, size=2, steps=100)
    if policy == "auto" and architecture not in ("relu",):
        assert one.features_resampled > 0


@pytest.mark.parametrize("split", ["latents", "rows"])
def test_where_nearly_all_pairs_count_a_step_of_a_group_is_that_of_one_process(
    split: Split,
) -> None:
    """JumpReLU with a window that holds everything: one process, and ranks with some of the rows, take the
    dense step. Dead features learn from the batch's first 512 rows, which are the first rank's."""
    rows = rows_for("jumprelu")
    config = config_of("jumprelu", "auxk").model_copy(
        update={"bandwidth": 50.0, "batch_rows": 1200, "buffer_rows": 2048}
    )
    one = learner_of(config, rows)
    with ThreadGroup(3, split) as group:
        other = GroupLearner(group, config, D)
        for step in range(3):
            one.dead.silent_rows_F[::3] = 10**6
            one.dead.revive(torch.zeros(0, dtype=torch.int64))
            assert one.dead.count == 32
            other.load_state_dict(_copied(one.state_dict()))
            batch_BD, weight_B = rows[step * 1200 : (step + 1) * 1200], 1.0 + torch.rand(1200)
            alone, together = (learner.step(batch_BD, weight_B) for learner in (one, other))
            assert alone is not None
            assert together is not None
            assert together.loss == pytest.approx(alone.loss, rel=NEAR)
            assert alone.loss > alone.error
            assert _apart(one.state_dict(), other.state_dict()) < NEAR


def _trainer(group: ThreadGroup | None = None, **fields: object) -> SAETrainer:
    base = {"d_sae": 96, "k": 6, "batch_rows": 96, "buffer_rows": 2048, "held_out_rows": 512,
            "dtype": "float32", "resample_every_steps": 20, "dead_after_rows": 1500, "seed": 3,
            "min_buffer_fill_ratio": 0.0}  # fmt: skip
    return SAETrainer(SAEConfig.model_validate(base | fields), hook_name="h", group=group)


def _feed(trainer: SAETrainer, first: int, last: int, scale: float = 1.0) -> None:
    rows = rows_for("topk") * scale
    for index in range(first, last):
        part = rows[index % 40 * 100 : (index % 40 + 1) * 100]
        trainer.ingest(part, (0, 0, index), 1.0 + index % 3)
        trainer.train()


@pytest.mark.rest
@pytest.mark.parametrize("split", ["latents", "rows"])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_a_training_by_a_group_measures_what_one_process_measures(
    split: Split, architecture: str
) -> None:
    """On their own ways, from the first row on, and with rows that do not divide by the ranks."""
    fields = {"architecture": architecture, "batch_rows": 97}
    alone = _trainer(**fields)
    _feed(alone, 0, 30)
    with ThreadGroup(2, split) as group:
        together = _trainer(group, **fields)
        _feed(together, 0, 30)
        assert together.steps == alone.steps > 60
        assert together.metrics.features_resampled == alone.metrics.features_resampled > 0
        one, other = alone.evaluate(), together.evaluate()
        assert one is not None
        assert other is not None
        assert other.fvu == pytest.approx(one.fvu, abs=NEAR)
        assert (other.l0, other.dense_fraction) == pytest.approx(
            (one.l0, one.dense_fraction), abs=1e-2
        )
        assert other.dead_fraction == one.dead_fraction
        metrics = together.metrics
        assert metrics.loss == pytest.approx(alone.metrics.loss, rel=1e-4)
        assert metrics.l0 == pytest.approx(alone.metrics.l0, rel=1e-4)


@pytest.mark.rest
@pytest.mark.parametrize("split", ["latents", "rows"])
def test_a_group_and_one_process_go_on_from_each_others_checkpoints(
    tmp_path: Path, split: Split
) -> None:
    """1 -> 2 -> 3 ranks -> 1, each from the file of the one before: as one process without an end."""
    straight = _trainer()
    for begin in (0, 8, 16, 24):  # saved as often: features that have turned are marked then
        _feed(straight, begin, begin + 8)
        straight.save(tmp_path / "straight", sync=False)
    first = _trainer()
    _feed(first, 0, 8)
    folder = tmp_path / "group"
    assert first.save(folder, sync=False) is not None
    for size, begin in ((2, 8), (3, 16)):
        with ThreadGroup(size, split) as group:
            trainer = _trainer(group)
            assert trainer.load(folder) is not None
            _feed(trainer, begin, begin + 8)
            written = trainer.save(folder, sync=False)
            assert written is not None
            assert sorted(path.name for path in written.iterdir()) == sorted(
                path.name for path in (folder / "latest").iterdir()
            )
    last = _trainer()
    assert last.load(folder) is not None
    _feed(last, 24, 32)
    last.save(folder, sync=False)
    assert last.steps == straight.steps
    assert last._hook is not None
    assert straight._hook is not None
    apart = _apart(straight._hook.learner.state_dict(), last._hook.learner.state_dict())
    assert apart < NEAR
    found, _ = load_sae(folder / "latest")
    assert found.d_sae == 96


@pytest.mark.rest
@pytest.mark.parametrize("architecture", ["topk", "matryoshka", "gated"])
def test_the_checkpoint_of_a_group_is_the_file_of_one_process(
    tmp_path: Path, architecture: str
) -> None:
    rate = 2e-3  # a tenth of the default: choices that hang on rounding do not drift apart
    alone = _trainer(architecture=architecture, learning_rate=rate)
    _feed(alone, 0, 6)
    with ThreadGroup(3, "latents") as group:
        together = _trainer(group, architecture=architecture, learning_rate=rate)
        _feed(together, 0, 6)
        folders = [
            trainer.save(tmp_path / name, sync=False)
            for name, trainer in (("alone", alone), ("together", together))
        ]
        sae = together.sae
    assert folders[0] is not None
    assert folders[1] is not None
    one, other = (load_sae(folder)[0] for folder in folders)
    assert sae is not None
    assert (folders[0] / "cfg.json").read_text() == (folders[1] / "cfg.json").read_text()
    for tensors in (other.state_dict(), sae.state_dict()):
        for name, tensor in one.state_dict().items():
            torch.testing.assert_close(tensors[name], tensor, atol=NEAR, rtol=0)


@pytest.mark.rest
def test_an_input_that_grows_a_hundredfold_is_followed_by_every_rank() -> None:
    fields = {"normalize": "norm", "normalizer_window_rows": 500}
    alone = _trainer(**fields)
    with ThreadGroup(2, "latents") as group:
        together = _trainer(group, **fields)
        for trainer in (alone, together):
            _feed(trainer, 0, 8)
            _feed(trainer, 8, 16, scale=100.0)
        assert any(command["do"] == "rescale" for command in group.told)
        assert alone._hook is not None
        assert together._hook is not None
        apart = _apart(alone._hook.learner.state_dict(), together._hook.learner.state_dict())
        assert apart < 1e-3  # of biases that grew with the input


@pytest.mark.parametrize("split", ["latents", "rows"])
def test_every_rank_skips_a_bad_step_and_goes_back_together(split: Split) -> None:
    config = SAEConfig(d_sae=32, k=4, good_state_steps=4, rollback_after_skips=2, dtype="float32")
    rows = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    whole = Learner(config, 8)
    whole.start(rows, InputScaling(1.0, torch.zeros(8)))
    with ThreadGroup(2, split) as group:
        learner = GroupLearner(group, config, 8)
        learner.load_state_dict(whole.state_dict())
        for _ in range(4):
            assert learner.step(rows, torch.ones(64)) is not None
        good = _copied(learner.state_dict())
        bad = rows.clone()
        bad[63, 0] = math.inf  # of the last rank's rows
        for _ in range(2):
            assert learner.step(bad, torch.ones(64)) is None
        assert (learner.steps_skipped, learner.rollbacks) == (2, 1)
        after = learner.state_dict()
        for name, value in good.items():
            if name.startswith(("sae.", "adam.")) and isinstance(value, torch.Tensor):
                found = after[name]
                assert isinstance(found, torch.Tensor)
                torch.testing.assert_close(found, value, atol=0, rtol=0)
        assert learner.step(rows, torch.ones(64)) is not None


def test_a_rank_may_have_fewer_features_than_k() -> None:
    config = config_of("topk").model_copy(update={"d_sae": 8, "k": 6})
    rows = rows_for("topk")
    one = learner_of(config, rows)
    with ThreadGroup(3, "latents") as group:  # 2, 3 and 3 features
        other = GroupLearner(group, config, D)
        other.load_state_dict(_copied(one.state_dict()))
        for rows_BD, weight_B in batches(rows, 5):
            for learner in (one, other):
                assert learner.step(rows_BD.clone(), weight_B) is not None
        assert _apart(one.state_dict(), other.state_dict()) < NEAR


def test_more_ranks_than_features_are_refused() -> None:
    config = SAEConfig(d_sae=2, k=1)
    with ThreadGroup(3, "latents") as group, pytest.raises(ValueError, match="d_sae 2 is less"):
        GroupLearner(group, config, 8)


def test_exactly_k_are_kept_of_equal_features_over_all_ranks() -> None:
    """Three ranks with the same two values each: the k largest, of equal ones those of the first ranks."""
    found: dict[int, list[list[bool]]] = {}

    def of(ranks: Ranks) -> None:
        value_BK = torch.tensor([[5.0, 1.0], [2.0, 2.0]])
        if ranks.rank == 2:
            value_BK = torch.tensor([[5.0], [3.0]])  # it has one feature
        kept = ranks.among_best(value_BK, 3)
        assert kept is not None
        found[ranks.rank] = kept.tolist()

    with ThreadGroup(3, "latents") as group:
        group.call(of)
    assert found == {
        0: [[True, False], [True, True]],
        1: [[True, False], [False, False]],
        2: [[True], [True]],
    }


@pytest.mark.parametrize("split", ["latents", "rows"])
def test_a_batchs_k_largest_are_counted_over_all_ranks(split: Split) -> None:
    """All rows alike, and all features: the batch has 6 rows x 4 features of one value, k is 2."""
    config = SAEConfig(architecture="batchtopk", d_sae=4, k=2, dtype="float32", batch_rows=6)
    whole = Learner(config, 3)
    with torch.no_grad():
        whole.sae.W_enc.fill_(0.1)
    rows = torch.ones(6, 3)
    with ThreadGroup(2, split) as group:
        learner = GroupLearner(group, config, 3)
        learner.load_state_dict(whole.state_dict())
        result = learner.step(rows, torch.ones(6))
        assert result is not None
        assert result.active == 12


def test_a_learner_that_is_gone_is_forgotten_by_the_ranks() -> None:
    with ThreadGroup(2, "latents") as group:
        for _ in range(2):
            trainer = _trainer(group)
            _feed(trainer, 0, 4)
            del trainer
        told = [(command["do"], command["key"]) for command in group.told]
        assert [key for do, key in told if do == "new"] == [1, 2]
        assert ("forget", 1) in told


@pytest.mark.parametrize("name", ["sae.W_enc", "adam.W_enc.exp_avg", "sae.b_enc", "sae.threshold",
                                  "adam.W_dec.row_steps", "adam.W_enc.row_steps",
                                  "dead.silent_rows", "sae.W_dec"])  # fmt: skip
def test_a_state_in_parts_is_the_whole_again(name: str) -> None:
    axis = feature_axis(name)
    assert axis is not None
    shape = (5, 7) if axis else (7, 5) if name.endswith("W_dec") else (7,)
    whole = torch.arange(math.prod(shape)).view(shape)
    parts = [part_of(name, whole, slice(begin, end)) for begin, end in ((0, 2), (2, 4), (4, 7))]
    assert [part.shape[axis] for part in parts] == [2, 2, 3]
    assert torch.equal(joined(name, parts), whole)


@pytest.mark.parametrize("name", ["sae.b_dec", "adam.b_dec.exp_avg", "adam.b_dec.row_steps",
                                  "sae.W_skip", "adam.W_skip.row_steps", "rng", "center"])  # fmt: skip
def test_what_every_rank_has_is_not_taken_apart(name: str) -> None:
    assert feature_axis(name) is None
