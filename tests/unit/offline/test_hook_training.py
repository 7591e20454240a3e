"""Offline training: as good as it should be, and the same however often it was stopped."""

import pytest
import torch
from safetensors.torch import load_file

from asys_bench.offline import HookTraining, Job, Position
from asys_bench.sae import SAEConfig, SAETrainer, load_sae
from asys_bench.sae.exchange import ExchangeError
from asys_bench.sae.training.held_out import held_out_run
from asys_bench.sinks.archive import open_archive

HOOK = "policy.mlp"


def config(**more):
    base = {"d_sae": 24, "k": 3, "batch_rows": 256, "buffer_rows": 2048, "passes": 2, "threads": 1}
    return SAEConfig.model_validate({**base, **more})


def job(**more):
    return Job(HOOK, HOOK, config(**more))


def train(archive, folder, *, epochs=2, **more):
    return HookTraining(archive, job(), folder, epochs=epochs, **more).run()


def test_it_learns_and_writes_a_checkpoint_that_says_where_it_came_from(archive, tmp_path):
    seen = []
    result = train(archive, tmp_path / "out", model_name="run-1", on_progress=seen.append)
    assert result.finished
    assert result.held_out is not None
    assert result.held_out.fvu < 0.2
    assert result.held_out.l0 < 3.001
    assert seen[-1].rows_ingested == 24_000
    assert result.running.rows_over_budget == 0
    _, metadata = load_sae(result.checkpoint)
    assert metadata["hook_name"] == HOOK
    assert metadata["model_name"] == "run-1"
    assert metadata["offline"] == {"epoch": 2, "packets": 0}
    assert metadata["held_out_fvu"] == pytest.approx(result.held_out.fvu)


@pytest.mark.rest
def test_a_training_stopped_anywhere_ends_with_the_weights_of_one_that_ran_through(
    archive, tmp_path
):
    whole = train(archive, tmp_path / "whole")
    calls = 0

    def stop_now_and_then():
        nonlocal calls
        calls += 1
        return calls % 5 == 0

    runs = 0
    while True:
        runs += 1
        part = train(archive, tmp_path / "parts", should_stop=stop_now_and_then)
        if part.finished:
            break
        assert runs < 50
    assert runs > 2
    one, other = (load_file(r.checkpoint / "sae_weights.safetensors") for r in (whole, part))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert part.steps == whole.steps


def test_more_epochs_go_on_and_the_same_number_changes_nothing(archive, tmp_path):
    once = train(archive, tmp_path / "out", epochs=1)
    again = train(archive, tmp_path / "out", epochs=1)
    assert again.finished
    assert again.checkpoint == once.checkpoint
    assert again.steps == once.steps
    more = train(archive, tmp_path / "out", epochs=2)
    assert more.steps == train(archive, tmp_path / "two", epochs=2).steps > once.steps


@pytest.mark.rest
def test_it_can_go_on_from_a_known_sae(archive, tmp_path):
    good = train(archive, tmp_path / "good", epochs=3)
    assert good.checkpoint is not None
    begun = HookTraining(
        archive, job(learning_rate=1e-9), tmp_path / "begun",
        epochs=1, start_from=good.checkpoint,
    )  # fmt: skip
    result = begun.run()
    assert result.held_out is not None
    assert good.held_out is not None
    assert result.held_out.fvu < good.held_out.fvu * 1.2 + 0.01
    wrong = HookTraining(
        archive, job(d_sae=30), tmp_path / "wrong", epochs=1, start_from=good.checkpoint
    )
    with pytest.raises(ExchangeError, match="set architecture: topk and d_sae: 24"):
        wrong.run()


def test_the_position_survives_in_the_checkpoint(archive, tmp_path):
    stops = iter([False, True])
    HookTraining(
        archive, job(), tmp_path / "out", epochs=2, should_stop=lambda: next(stops, True)
    ).run()
    resumed = HookTraining(archive, job(), tmp_path / "out", epochs=2)
    assert resumed.position.epoch == 0
    assert Position(0, 0) != resumed.position


def test_a_transcoder_is_trained_on_packets_of_one_moment(make_run, tmp_path):
    run = make_run("pair", rows=9_000, hooks=(1, 3))
    coder = Job(
        f"{HOOK}->encoder", HOOK, config(architecture="skip_transcoder"), others=("encoder",)
    )
    result = HookTraining(open_archive(run), coder, tmp_path / "out", epochs=1).run()
    assert result.running.rows_ingested == 9_000
    assert result.held_out is not None
    assert result.held_out.fvu < 0.2
    sae, metadata = load_sae(result.checkpoint)
    assert sae.name == "skip_transcoder"
    assert metadata["hook_name"] == HOOK


def test_a_crosscoder_is_trained_on_packets_of_one_moment(make_run, tmp_path):
    run = make_run("joint", rows=9_000, hooks=(1, 3))
    job = Job("both", HOOK, config(architecture="crosscoder"), others=("encoder",))
    result = HookTraining(open_archive(run), job, tmp_path / "out", epochs=1).run()
    assert result.running.rows_ingested == 9_000
    assert result.held_out is not None
    assert result.held_out.fvu < 0.3
    assert len(result.held_out.fvu_of_hooks) == 2
    sae, metadata = load_sae(result.checkpoint)
    assert sae.name == "crosscoder"
    assert metadata["hook_names"] == [HOOK, "encoder"]


def test_a_packet_larger_than_the_reservoir_is_trained_on_whole(tmp_path, rig_class):
    rig = rig_class(tmp_path / "large")
    worker = rig.start()
    generator = torch.Generator().manual_seed(0)
    for seq in range(3):
        rig.feed(worker, rig.packet(torch.randn(9000, 12, generator=generator), seq))
    worker.close()
    rig.page.close()
    archive = open_archive(tmp_path / "large")
    training = HookTraining(archive, job(held_out_fraction=0.0), tmp_path / "out", epochs=1)
    result = training.run()
    assert result.running.rows_ingested == 27_000
    assert result.running.rows_over_budget == 0
    assert result.running.rows_trained == 27_000 // 256 * 256


def test_an_epoch_trains_on_each_row_once_whatever_passes_says(archive, tmp_path):
    for epochs in (1, 3):
        training = HookTraining(
            archive, job(passes=4, held_out_fraction=0.05), tmp_path / str(epochs), epochs=epochs
        )
        running = training.run().running
        trainable = running.rows_ingested - running.rows_held_out
        assert running.rows_ingested == epochs * 12_000
        assert 0 <= trainable - running.rows_trained < 256
        assert running.rows_over_budget == 0


def test_held_out_rows_of_a_packet_in_parts_are_those_of_the_whole(tmp_path, rig_class):
    rig = rig_class(tmp_path / "large")
    worker = rig.start()
    rig.feed(worker, rig.packet(torch.arange(9000.0 * 12).reshape(9000, 12), 3))
    worker.close()
    rig.page.close()
    training = HookTraining(
        open_archive(tmp_path / "large"), job(held_out_rows=16384), tmp_path / "out", epochs=2
    )
    training.run()
    first, count = held_out_run((7, 0, 3), 9000, 0.05)
    hook = training.trainer._hook
    held_out = {int(row) for row in hook.held_out.rows[:, 0] / 12}
    trained = {int(row) for row in hook.buffer.rows[:, 0] / 12}
    assert held_out <= {row % 9000 for row in range(first, first + count)}
    assert held_out
    assert not held_out & trained


def test_the_known_number_of_steps_settles_the_rate_unless_a_schedule_is_asked_for(
    archive, tmp_path
):
    training = HookTraining(archive, job(held_out_fraction=0.0), tmp_path / "out", epochs=2)
    known = training.trainer.config
    assert (known.total_steps, known.lr_half_steps) == (24_000 // 256, 50)
    assert training.run().steps == known.total_steps
    asked = job(lr_half_steps=70)
    kept = HookTraining(archive, asked, tmp_path / "asked", epochs=2).trainer.config
    assert (kept.total_steps, kept.lr_half_steps) == (None, 70)


def test_batches_are_smaller_than_live_ones_unless_a_number_is_asked_for(archive, tmp_path):
    live = SAEConfig.model_fields["batch_rows"].default
    left = Job(HOOK, HOOK, config(batch_rows=live, held_out_fraction=0.0))
    known = HookTraining(archive, left, tmp_path / "left", epochs=2).trainer.config
    assert (known.batch_rows, known.total_steps) == (512, 24_000 // 512)
    asked = HookTraining(archive, job(batch_rows=700), tmp_path / "asked", epochs=2).trainer.config
    assert asked.batch_rows == 700


def test_a_training_goes_on_with_the_batches_it_began_with(archive, tmp_path):
    """The schedule counts steps, so half a training of larger ones may not become one of many."""
    begun = SAETrainer(config(batch_rows=1024, d_sae=24, held_out_fraction=0.0))
    begun.ingest(torch.randn(4096, 12, generator=torch.Generator().manual_seed(0)), (0, 0, 0))
    begun.train()
    begun.save(tmp_path / "out", {"offline": {"epoch": 0, "packets": 585}})
    left = Job(HOOK, HOOK, config(batch_rows=1024, held_out_fraction=0.0))
    known = HookTraining(archive, left, tmp_path / "out", epochs=2).trainer.config
    assert (known.batch_rows, known.total_steps) == (1024, 24_000 // 1024)
