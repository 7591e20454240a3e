"""The trainer worker: several SAEs from one pull, transcoders from two hooks, and staying present."""

import json
import time

import pytest
import torch

from asys_bench.contracts.run_files import RUN_FILE, RUN_SCHEMA
from asys_bench.contracts.stats import StatsPage
from asys_bench.sae import SAETrainer, load_sae


def _train(rig, worker, first, last, hooks=(1,)):
    for seq in range(first, last):
        rig.feed(worker, *(rig.packet(rig.rows(seq + 100 * hook), seq, hook) for hook in hooks))
        worker.idle()


def test_every_variant_of_a_hook_is_trained_from_the_same_packets(rig) -> None:
    worker = rig.start(variants={"a": {"k": 2}, "b": {"architecture": "batchtopk", "k": 4}})
    _train(rig, worker, 0, 30)
    worker.close()
    assert rig.labels("sae_steps") == {"layer.0#a", "layer.0#b"}
    for label in ("layer.0#a", "layer.0#b"):
        assert rig.figure("sae_rows", label) == 30 * 64
        assert rig.figure("sae_steps", label) > 5
        assert rig.figure("sae_checkpoints", label) == 1
    folders = [path / "latest" for path in (rig.run_dir / "sae").iterdir()]
    names = {load_sae(folder)[1]["training_architecture"] for folder in folders}
    assert names == {"topk", "batchtopk"}
    assert {load_sae(folder)[1]["hook_name"] for folder in folders} == {"layer.0"}


def test_a_new_incarnation_resumes_each_variant(rig) -> None:
    variants = {"a": {}, "b": {"k": 3}}
    worker = rig.start(variants=variants)
    _train(rig, worker, 0, 20)
    worker.close()
    steps = {label: rig.figure("sae_steps", label) for label in rig.labels("sae_steps")}
    again = rig.start(incarnation=1, variants=variants)
    _train(rig, again, 20, 24)
    again.close()
    for label, before in steps.items():
        assert rig.figure("sae_steps", label) > before > 0


def test_packets_that_are_too_old_are_skipped_and_counted(rig) -> None:
    worker = rig.start(max_lag_s=60.0)
    old_ns = time.monotonic_ns() - 100_000_000_000
    rig.feed(worker, *(rig.packet(rig.rows(n), n, timestamp_ns=old_ns) for n in range(3)))
    rig.feed(worker, rig.packet(rig.rows(9), 9))
    worker.idle()
    worker.close()
    assert rig.figure("sae_skipped_packets", "layer.0") == 3
    assert rig.figure("sae_rows", "layer.0") == 64


def test_what_is_left_at_the_end_of_a_run_is_taken_however_old(rig) -> None:
    worker = rig.start(max_lag_s=60.0)
    rig.left_s = 3.0
    old_ns = time.monotonic_ns() - 100_000_000_000
    rig.feed(worker, rig.packet(rig.rows(0), 0, timestamp_ns=old_ns))
    worker.close()
    assert rig.figure("sae_skipped_packets", "layer.0") == 0
    assert rig.figure("sae_rows", "layer.0") == 64


def _transcoder(**more: object) -> dict[str, object]:
    return {"transcoders": [{"input": "layer.0", "output": "layer.1"}], "plain_saes": False} | more


def test_a_transcoder_is_trained_from_the_packets_of_two_hooks(rig) -> None:
    worker = rig.start(**_transcoder())
    _train(rig, worker, 0, 30, hooks=(1, 2))
    worker.close()
    label = "layer.0->layer.1"
    assert rig.labels("sae_steps") == {label}
    assert rig.figure("sae_rows", label) == 30 * 64
    assert rig.figure("sae_steps", label) > 5
    (folder,) = (rig.run_dir / "sae").iterdir()
    sae, _ = load_sae(folder / "latest")
    assert sae.name == "skip_transcoder"
    assert sae(torch.zeros(3, 8)).shape == (3, 8)


def test_a_crosscoder_is_trained_from_the_packets_of_its_hooks(rig) -> None:
    worker = rig.start(crosscoders=[{"hooks": ["layer.1", "layer.0"]}], plain_saes=False)
    _train(rig, worker, 0, 30, hooks=(1, 2))
    worker.close()
    label = "layer.1+layer.0"
    assert rig.labels("sae_steps") == {label}
    assert rig.figure("sae_rows", label) == 30 * 64
    (folder,) = (rig.run_dir / "sae").iterdir()
    sae, metadata = load_sae(folder / "latest")
    assert (sae.name, sae.config.hook_widths) == ("crosscoder", (8, 8))
    assert metadata["hook_names"] == ["layer.1", "layer.0"]
    assert sae(torch.zeros(3, 16)).shape == (3, 16)


def test_rows_that_wait_for_other_hooks_are_copied_once_for_all_that_want_them(rig) -> None:
    both = {"crosscoders": [{"hooks": ["layer.0", "layer.1"]}]}
    worker = rig.start(**_transcoder(), **both)
    rig.feed(worker, rig.packet(rig.rows(0), 0, 1))
    (first,), (second,) = (
        [held[0] for held in joint.matcher._waiting.values()] for joint in worker._joint.values()
    )
    assert first is second
    worker.close()


@pytest.mark.parametrize(("coin", "weight"), [("shared", 4.0), ("own", 8.0), (None, 8.0)])
def test_a_pair_has_the_weight_of_the_coin_that_the_run_was_sampled_with(
    rig, monkeypatch, coin: str | None, weight: float
) -> None:
    streams = [{"name": name, "coin": coin} for name in ("layer.0", "layer.1")]
    run = {"schema": RUN_SCHEMA, "run_id": "r", "hooks": [], "host_pid": 1, "streams": streams}
    (rig.run_dir / RUN_FILE).write_text(json.dumps(run))
    weights = []
    ingest = SAETrainer.ingest
    monkeypatch.setattr(
        SAETrainer,
        "ingest",
        lambda self, rows, key, weight, **more: (
            weights.append(weight) or ingest(self, rows, key, weight, **more)
        ),
    )
    worker = rig.start(**_transcoder())
    rig.feed(
        worker,
        rig.packet(rig.rows(0), 0, hook=1, sampling_rate=0.5),
        rig.packet(rig.rows(1), 0, hook=2, sampling_rate=0.25),
    )
    worker.close()
    assert weights == [weight]


def test_plain_saes_and_a_transcoder_share_a_pull(rig) -> None:
    worker = rig.start(**_transcoder(plain_saes=True))
    _train(rig, worker, 0, 10, hooks=(1, 2))
    worker.close()
    assert rig.labels("sae_rows") == {"layer.0", "layer.1", "layer.0->layer.1"}


@pytest.mark.parametrize("unequal", [1, 16])
def test_calls_with_other_numbers_of_rows_are_left_out_and_hooks_that_have_no_others_refused(
    rig, caplog, unequal: int
) -> None:
    worker = rig.start(**_transcoder())
    for seq in range(unequal):
        rig.feed(
            worker,
            rig.packet(rig.rows(0, count=64), seq, hook=1),
            rig.packet(rig.rows(0, count=32), seq, hook=2),
        )
    assert "have [64, 32] rows in one call" in caplog.text
    _train(rig, worker, unequal, unequal + 3, hooks=(1, 2))
    worker.close()
    label, refused = "layer.0->layer.1", unequal > 1
    assert rig.figure("sae_unpaired_packets", label) == 2 * unequal
    assert rig.figure("sae_rows", label) == (0 if refused else 3 * 64)
    assert rig.figure("sae_rejected_packets", label) == (6 if refused else 0)
    assert ("different numbers of rows in most of their calls" in caplog.text) == refused


def test_one_sae_that_cannot_be_trained_does_not_stop_the_others(rig, caplog) -> None:
    worker = rig.start(variants={"fits": {"k": 2}, "too_small": {"d_sae": 2, "k": 2}})
    _train(rig, worker, 0, 4)
    rig.feed(worker, rig.packet(rig.rows(0, width=5), 4))
    assert "not trained any more" in caplog.text
    worker.idle()
    worker.close()


def test_the_new_figures_of_a_stream_are_published(rig) -> None:
    worker = rig.start(sae={"window_rows": 256})
    _train(rig, worker, 0, 30)
    worker.close()
    assert 0 < rig.figure("sae_window_fvu", "layer.0") < 2
    assert abs(rig.figure("sae_mixing_autocorrelation", "layer.0")) < 0.5
    assert rig.figure("sae_row_age_versions", "layer.0") > 0
    assert rig.figure("sae_rollbacks", "layer.0") == 0


def test_a_full_stats_page_costs_figures_and_not_the_training(rig) -> None:
    _train(rig, rig.start(), 0, 1)
    metrics = rig.page.slot("trainer-0").metrics()
    name, first_optional = next(m for m in metrics.items() if m[0].startswith("sae_skipped"))
    room = 8 * (first_optional.cell - 2 - -(-len(name) // 8))  # up to what every SAE must report
    rig.page.close()
    rig.page = StatsPage.create({"trainer-0": room})
    worker = rig.start()
    _train(rig, worker, 0, 20)
    worker.close()
    assert rig.figure("sae_steps", "layer.0") > 5
    assert rig.labels("sae_window_fvu") == set()


def sinks(rig, seq: int) -> torch.Tensor:
    """64 rows, the first of them with about 30 times the norm of the others, and like no other's."""
    rows = rig.rows(seq)
    rows[0] *= 30
    return rows


def test_beside_tokens_the_first_rows_of_sequences_are_left_out_and_counted(rig) -> None:
    rig.names = (*rig.names, "tokens")
    worker = rig.start(final_train_s=5.0)
    for seq in range(60):
        rig.feed(worker, rig.packet(sinks(rig, seq), seq))
    worker.close()
    left_out = rig.figure("sae_outlier_rows", "layer.0")
    assert 50 <= left_out <= 60
    assert 20 < rig.figure("sae_outlier_norm", "layer.0") < 35
    fvu, fvu_all = (rig.figure(name, "layer.0") for name in ("sae_fvu", "sae_fvu_all"))
    assert 0 < fvu_all < fvu < 1


def test_the_same_rows_without_tokens_are_all_trained_on(rig) -> None:
    worker = rig.start(final_train_s=5.0)
    for seq in range(60):
        rig.feed(worker, rig.packet(sinks(rig, seq), seq))
    worker.close()
    assert rig.figure("sae_outlier_rows", "layer.0") == 0
    assert rig.figure("sae_fvu", "layer.0") == rig.figure("sae_fvu_all", "layer.0") > 0


def test_a_run_of_25_packets_has_a_held_out_figure_for_every_hook(rig) -> None:
    worker = rig.start(sae={"held_out_fraction": 0.05}, final_train_s=5.0)
    for seq in range(25):
        rig.feed(worker, *(rig.packet(rig.rows(seq), 2 * seq + hook, hook + 1) for hook in (0, 1)))
    worker.close()
    assert all(0 < rig.figure("sae_fvu", hook) < 1 for hook in ("layer.0", "layer.1"))
