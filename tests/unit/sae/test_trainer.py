"""The online trainer: budget, intake, faults, resume."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asys_bench.sae import AUTOENCODERS, CheckpointError, SAEConfig, SAETrainer
from asys_bench.sae.checkpoint.checkpoint_store import seal
from asys_bench.sae.config import PENALISED
from asys_bench.sae.kernels.sparse_codes import SparseCodes
from asys_bench.sae.training.held_out import split_rows

D = 16


def _config(**fields: object) -> SAEConfig:
    base = {
        "d_sae": 64,
        "k": 4,
        "batch_rows": 64,
        "buffer_rows": 512,
        "min_buffer_fill_ratio": 0.25,
        "passes": 2.0,
        "dead_after_rows": 500,
        "resample_every_steps": 7,
        "held_out_fraction": 0.1,
    }
    return SAEConfig.model_validate(base | fields)


def _packet(seq: int, rows: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seq)
    low_ND = torch.randn(rows, 6, generator=generator)
    basis_DD = torch.randn(6, D, generator=torch.Generator().manual_seed(77))
    return torch.tanh(low_ND @ basis_DD) + 0.5


def _feed(trainer: SAETrainer, first: int, last: int) -> None:
    for seq in range(first, last):
        _ingest(trainer, seq)
        trainer.train(max_steps=3)


def _ingest(trainer: SAETrainer, seq: int) -> None:
    trainer.ingest(
        _packet(seq), (0, 0, seq), weight=1.0 + seq % 3, host_step=2 * seq, weights_version=seq
    )


def _weights(trainer: SAETrainer) -> dict[str, torch.Tensor]:
    assert trainer.sae is not None
    return trainer.sae.state_dict()


def test_a_checkpoint_with_fields_that_were_removed_since_is_resumed(tmp_path: Path) -> None:
    first = SAETrainer(_config())
    _feed(first, 0, 40)
    written = first.save(tmp_path)
    assert written is not None
    path = written / "trainer_state.json"
    state = json.loads(path.read_text())
    state["config"] |= {"lr_tracking": True, "lr_decay_steps": None, "survival_cosine": 0.8}
    state["numbers"] |= {"hook.learner.tracker.factor": 0.7, "hook.learner.tracker.best": -1.0}
    path.write_text(json.dumps(state))
    seal(path.parent)
    second = SAETrainer(_config())
    assert second.load(tmp_path) is not None
    assert second.steps == first.steps > 20
    assert second.metrics.learning_rate == first.metrics.learning_rate


@pytest.mark.parametrize(
    "architecture",
    [
        name if name == "topk" else pytest.param(name, marks=pytest.mark.rest)
        for name in AUTOENCODERS
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resumed_training_is_bitwise_the_uninterrupted_one(
    tmp_path: Path, architecture: str, dtype: str
) -> None:
    extra: dict[str, object] = {"max_row_age_versions": 25, "window_rows": 1000}
    if architecture in PENALISED:
        extra |= {"target_l0": 3.0, "l1_coefficient": 20.0, "l0_coefficient": 20.0}
    config = _config(architecture=architecture, dtype=dtype, **extra)
    straight = SAETrainer(config)
    _feed(straight, 0, 40)
    straight.save(tmp_path / "looked")  # which looks for features that have turned
    _feed(straight, 40, 80)
    assert straight.metrics.dead_fraction > 0 or straight.metrics.features_resampled > 0

    first = SAETrainer(config)
    _feed(first, 0, 40)
    _ingest(first, 40)
    first.save(tmp_path / "first")
    torch.manual_seed(1234)
    second = SAETrainer(config)
    assert second.load(tmp_path / "first") is not None
    assert second.steps == first.steps > 20
    second.train(max_steps=3)
    _feed(second, 41, 80)

    assert second.steps == straight.steps
    for name, tensor in _weights(straight).items():
        assert torch.equal(tensor, _weights(second)[name]), name
    assert second.evaluate() == straight.evaluate()
    assert second.metrics == straight.metrics


def test_training_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    trainer = SAETrainer(_config(architecture="relu"))
    _feed(trainer, 0, 40)
    assert torch.equal(before, torch.get_rng_state())


def test_training_spends_the_data_budget_and_no_more() -> None:
    trainer = SAETrainer(_config(held_out_fraction=0.0))
    for seq in range(100):
        trainer.ingest(_packet(seq, 13), (0, 0, seq))
    steps = trainer.train()
    assert steps == trainer.steps == 2 * 512 // 64
    assert trainer.train() == 0
    assert trainer.metrics.rows_over_budget == 2 * 1300 - 2 * 512


def test_the_first_step_waits_for_the_buffer_unless_told_otherwise() -> None:
    trainer = SAETrainer(_config(min_buffer_fill_ratio=1.0, held_out_fraction=0.0))
    assert trainer.train() == 0
    trainer.ingest(_packet(0, 100), (0, 0, 0))
    assert trainer.train() == 0
    assert trainer.train(wait_for_fill=False) == 3


def test_a_time_budget_of_nothing_takes_no_step() -> None:
    trainer = SAETrainer(_config(held_out_fraction=0.0))
    trainer.ingest(_packet(0, 400), (0, 0, 0))
    assert trainer.train(budget_s=0.0) == 0
    beats: list[int] = []
    assert trainer.train(max_steps=2, between_steps=lambda: beats.append(1)) == len(beats) == 2


def test_held_out_rows_are_never_trained_on() -> None:
    trainer = SAETrainer(_config(held_out_fraction=0.5))
    marked = 0
    for seq in range(40):
        rows_ND = torch.ones(8, D)
        for part in split_rows((1, 2, seq), 8, 0.5)[0]:
            rows_ND[part] = 7.0
            marked += part.stop - part.start
        trainer.ingest(rows_ND, (1, 2, seq))
    trainer.train()
    hook = trainer._hook
    assert hook is not None
    assert (hook.buffer.rows == 1.0).all()
    assert (hook.held_out.rows == 7.0).all()
    assert trainer.metrics.rows_held_out == marked > 0


def test_rows_are_copied_flattened_and_converted() -> None:
    trainer = SAETrainer(_config(held_out_fraction=0.0))
    block = _packet(0, 60)
    trainer.ingest(block.view(3, 20, D).to(torch.bfloat16), (0, 0, 0))
    trainer.ingest(block[0].double(), (0, 0, 1))
    trainer.ingest(block, (0, 0, 2))
    want = block.clone()
    block.zero_()
    trainer.train()
    hook = trainer._hook
    assert hook is not None
    rows_ND = hook.buffer.rows
    assert len(rows_ND) == 121
    torch.testing.assert_close(
        rows_ND.sort(0).values[:, 0].sum(), (2 * want.sum(0)[0] + want[0, 0]), rtol=0.02, atol=0.1
    )
    assert trainer.d_in == D


def test_another_width_and_a_bad_weight_are_refused() -> None:
    trainer = SAETrainer(_config())
    trainer.ingest(_packet(0), (0, 0, 0))
    with pytest.raises(ValueError, match="8 wide; earlier ones of this hook were 16"):
        trainer.ingest(torch.zeros(2, 8), (0, 0, 1))
    for weight in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive finite"):
            trainer.ingest(_packet(0), (0, 0, 0), weight=weight)
    with pytest.raises(ValueError, match="complex"):
        trainer.ingest(torch.zeros(2, D, dtype=torch.complex64), (0, 0, 1))


def test_non_finite_rows_are_dropped_counted_and_never_reach_a_checkpoint(tmp_path: Path) -> None:
    trainer = SAETrainer(_config())
    bad = 0
    for seq in range(60):
        rows_ND = _packet(seq)
        rows_ND[seq % 48, seq % D] = (math.nan, math.inf, -math.inf, 1e30)[seq % 4]
        trainer.ingest(rows_ND, (0, 0, seq))
        bad += 1
        trainer.train(max_steps=3)
    assert trainer.metrics.rows_refused == bad
    assert trainer.metrics.steps_skipped == 0
    measured = trainer.evaluate()
    assert measured is not None
    assert math.isfinite(measured.fvu)
    folder = trainer.save(tmp_path)
    assert folder is not None
    assert SAETrainer(_config()).load(tmp_path) == folder


def test_a_step_with_non_finite_gradients_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = SAETrainer(_config(held_out_fraction=0.0, rollback_after_skips=1000))
    trainer.ingest(_packet(0, 400), (0, 0, 0))
    trainer.train(max_steps=2)
    before, hook = _weights(trainer), trainer._hook
    assert hook is not None
    with monkeypatch.context() as patch:
        patch.setattr(hook.learner.kernels, "top_k", _poisoned(hook.learner.kernels.top_k))
        assert trainer.train(max_steps=1) == 0
    for name, tensor in _weights(trainer).items():
        assert torch.equal(tensor, before[name])
    assert trainer.metrics.steps_skipped > 0
    trainer.ingest(_packet(1, 400), (0, 0, 1))
    assert trainer.train(max_steps=2) == 2


def _poisoned(top_k: Callable[..., SparseCodes]) -> Callable[..., SparseCodes]:
    def wrapper(*arguments: object) -> SparseCodes:
        codes = top_k(*arguments)
        return codes.with_values(torch.full_like(codes.value_N, math.inf))

    return wrapper


def test_non_finite_weights_are_never_written(tmp_path: Path) -> None:
    trainer = SAETrainer(_config())
    _feed(trainer, 0, 20)
    good = trainer.save(tmp_path)
    hook = trainer._hook
    assert hook is not None
    with torch.no_grad():
        hook.learner.sae.b_enc[3] = math.nan
    with pytest.raises(CheckpointError, match="b_enc' is not finite"):
        trainer.save(tmp_path)
    assert SAETrainer(_config()).load(tmp_path) == good


def test_a_drifting_input_scale_is_followed() -> None:
    trainer = SAETrainer(_config(normalizer_window_rows=500))
    for seq in range(150):
        trainer.ingest(_packet(seq) * (1.0 if seq < 50 else 30.0), (0, 0, seq))
        trainer.train()
    first = SAETrainer(_config())
    _feed(first, 0, 50)
    assert trainer.metrics.input_scale < first.metrics.input_scale / 20
    measured = trainer.evaluate()
    assert measured is not None
    assert measured.fvu < 0.5


def test_constant_and_zero_rows_train_without_harm(tmp_path: Path) -> None:
    for value in (0.0, 3.0):
        trainer = SAETrainer(_config(held_out_fraction=0.3))
        for seq in range(30):
            trainer.ingest(torch.full((48, D), value), (0, 0, seq))
            trainer.train()
        assert trainer.metrics.steps_skipped == 0
        assert trainer.steps > 0
        trainer.save(tmp_path / str(value))


def test_nothing_to_measure_or_save_before_the_first_row(tmp_path: Path) -> None:
    trainer = SAETrainer(_config())
    assert trainer.evaluate() is None
    assert trainer.save(tmp_path) is None
    assert trainer.load(tmp_path) is None
    assert trainer.sae is None
    assert math.isnan(trainer.metrics.loss)


def test_resume_without_the_reservoir_fills_it_again(tmp_path: Path) -> None:
    config = _config(checkpoint_buffer=False)
    trainer = SAETrainer(config)
    _feed(trainer, 0, 30)
    trainer.save(tmp_path)
    again = SAETrainer(config)
    again.load(tmp_path)
    assert again.steps == trainer.steps
    assert again.metrics.buffer_fill_ratio == 0
    _feed(again, 30, 60)
    assert again.steps > trainer.steps


def test_resume_with_another_k_or_size_says_so(tmp_path: Path) -> None:
    trainer = SAETrainer(_config())
    _feed(trainer, 0, 10)
    trainer.save(tmp_path)
    with pytest.raises(CheckpointError, match="k is 4, configured 5"):
        SAETrainer(_config(k=5)).load(tmp_path)
    with pytest.raises(CheckpointError, match="does not fit this configuration"):
        SAETrainer(_config(d_sae=32)).load(tmp_path)
