"""Lives of features: what begins one, what a checkpoint keeps, what a rollback takes back."""

from __future__ import annotations

import pytest
import torch

from asys_bench.sae import SAEConfig, SAETrainer
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError, read_tensors
from asys_bench.sae.checkpoint.lives import LIVES_FILE, read_lives
from asys_bench.sae.checkpoint.trainer_state import STATE_TENSORS
from asys_bench.sae.training.learner import Learner
from asys_bench.sae.training.lives import NOT_TURNED, WINDOWS, FeatureLives


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def energy(*sums: float) -> torch.Tensor:
    return torch.tensor(sums, dtype=torch.float32)


def test_resampling_ends_a_life_and_begins_another_at_its_step() -> None:
    lives = FeatureLives(torch.eye(3))
    lives.start(torch.eye(3))
    lives.observe(energy(4, 0, 1), 10, host_step=70)
    lives.observe(energy(4, 0, 1), 10, host_step=90)
    lives.begin(torch.tensor([1]), torch.eye(3).roll(1, 0), step=2)
    assert lives.generation_F.tolist() == [0, 1, 0]
    assert lives.born_host_step_F.tolist() == [0, 90, 0]
    assert lives.born_rows_F.tolist() == [0, 20, 0]
    assert lives.begun == 4
    assert lives.share_younger_than(1) == pytest.approx(1 / 3)


def test_a_decoder_past_cosine_one_half_is_turned_and_the_step_is_kept() -> None:
    lives = FeatureLives(torch.eye(2))
    lives.start(torch.eye(2))
    lives.observe(energy(1, 1), 1, host_step=5)
    lives.look_for_turned(torch.tensor([[1.0, 0.0], [0.9, 0.45]]))  # cosines 1 and 0.447
    lives.observe(energy(1, 1), 1, host_step=9)
    lives.look_for_turned(torch.tensor([[0.51, 0.86], [0.0, 1.0]]))  # 0.51 and 1
    assert lives.turned_host_step_F.tolist() == [NOT_TURNED, 5]


@pytest.mark.parametrize("steps", [1, WINDOWS, WINDOWS + 1, 5 * WINDOWS + 3])
def test_windows_of_energy_join_in_pairs_and_lose_nothing(steps: int) -> None:
    lives = FeatureLives(torch.eye(2))
    for step in range(steps):
        lives.observe(energy(1, step), 3, host_step=10 * step)
    used = lives.windows
    assert 1 <= used <= WINDOWS
    assert lives.energy_WF[:used].sum(0).tolist() == [steps, sum(range(steps))]
    assert int(lives.window_rows_W.sum()) == 3 * steps
    begins = lives.window_step_W[:used].tolist()
    assert begins == [10 * lives.steps_per_window * index for index in range(used)]


def test_a_rollback_takes_back_the_lives_that_began_since() -> None:
    learner = Learner(SAEConfig(d_sae=16, k=2), 8)
    learner.step(rows(32), torch.ones(32), 3)
    learner.mark_good()
    learner.lives.begin(torch.tensor([5]), learner.sae.W_dec.detach(), 1)
    assert learner.lives.begun == 17
    learner._roll_back("a test")
    assert learner.lives.begun == 16
    assert torch.equal(learner.lives.birth_FD[5], learner.sae.W_dec.detach()[5].to(torch.bfloat16))


def trained(packets: int = 80) -> SAETrainer:
    config = SAEConfig(d_sae=32, k=2, batch_rows=64, buffer_rows=256, dead_after_rows=500)
    trainer = SAETrainer(config, hook_name="a")
    for packet in range(packets):
        trainer.ingest(rows(64, packet), (0, 0, packet), host_step=10 * packet)
        trainer.train(wait_for_fill=False)
    return trainer


def test_a_checkpoint_keeps_lives_and_a_resumed_training_goes_on_with_them(tmp_path) -> None:
    trainer = trained()
    checkpoint = trainer.save(tmp_path, sync=False)
    assert trainer.lives is not None
    kept = read_lives(checkpoint)
    assert kept is not None
    assert all(
        torch.equal(a, b)
        for a, b in zip(vars(kept).values(), vars(trainer.lives).values(), strict=True)
    )
    assert int(kept.generation.sum()) == trainer.metrics.features_resampled > 0
    assert int(kept.window_rows.sum()) == trainer.metrics.rows_trained
    assert bool((kept.born_host_step[kept.generation > 0] > 0).all())
    again = SAETrainer(trainer.config, hook_name="a")
    again.restore(checkpoint)
    for one in (trainer, again):
        for packet in range(80, 120):
            one.ingest(rows(64, packet), (0, 0, packet), host_step=10 * packet)
            one.train(wait_for_fill=False)
    assert all(
        torch.equal(a, b)
        for a, b in zip(vars(again.lives).values(), vars(trainer.lives).values(), strict=True)
    )


def test_a_state_says_which_features_had_turned_when_it_was_written(tmp_path) -> None:
    trainer = trained(8)
    assert trainer._hook is not None
    learner = trainer._hook.learner
    learner.lives.birth_FD[3] = -learner.decoder[3].to(torch.bfloat16)  # since the look before
    checkpoint = trainer.save(tmp_path, sync=False)
    assert checkpoint is not None
    state = read_tensors(checkpoint / STATE_TENSORS)
    turned_F = state["learner.lives.turned_host_step"]
    assert int(turned_F[3]) == 70
    assert torch.equal(turned_F, read_lives(checkpoint).turned_host_step)


def test_a_checkpoint_without_lives_is_of_generation_0_and_says_so(tmp_path) -> None:
    trainer = trained(packets=8)
    checkpoint = trainer.save(tmp_path, sync=False)
    (checkpoint / LIVES_FILE).unlink()
    assert read_lives(checkpoint) is None
    learner = trainer._hook.learner
    learner.lives.load_state_dict({}, learner.sae.W_dec.detach())
    assert learner.lives.begun == 32


def test_a_file_of_lives_that_is_none_is_refused(tmp_path) -> None:
    checkpoint = trained(packets=8).save(tmp_path, sync=False)
    good = vars(read_lives(checkpoint))
    from safetensors.torch import save_file

    for name, value in {
        "generation": -torch.ones(32, dtype=torch.int64),
        "energy": torch.zeros(1, 32),
        "born_rows": torch.zeros(31, dtype=torch.int64),
    }.items():
        save_file(good | {name: value}, checkpoint / LIVES_FILE)
        with pytest.raises(CheckpointError, match="no lives of one SAE"):
            read_lives(checkpoint)
