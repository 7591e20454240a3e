"""Rows of far larger norm: which are outliers, what is trained without them, what an SAE does to them."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from asys_bench.sae import AUTOENCODERS, CheckpointError, SAEConfig, SAETrainer, build_sae, load_sae
from asys_bench.sae.checkpoint.checkpoint_store import seal
from asys_bench.sae.evaluation import SyntheticFeatures
from asys_bench.sae.training.outliers import WINDOW_ROWS, OutlierGate

D = 32
SINK_D = torch.nn.functional.normalize(
    torch.randn(D, generator=torch.Generator().manual_seed(5)), dim=0
)


def usual_rows(count: int, seed: int = 0) -> torch.Tensor:
    """Sums of a few features of 48, which 64 can learn; norms within a factor of 3 or so."""
    made = SyntheticFeatures(48, D, mean_l0=4.0, seed=3).rows(count, stream=seed)
    return made + 0.5 * torch.randn(D, generator=torch.Generator().manual_seed(1))


def with_sinks(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, which are sinks): one row in a hundred has 150 times the median norm, in one direction."""
    x_ND = usual_rows(count, seed)
    is_sink_N = torch.arange(count) % 100 == 0
    size = 150 * float(torch.linalg.vector_norm(x_ND, dim=1).median())
    x_ND[is_sink_N] = size * SINK_D + x_ND[is_sink_N]
    return x_ND, is_sink_N


def gated(
    x_ND: torch.Tensor, *, block: int = 500, text: bool = False, mode: str = "auto"
) -> list[int]:
    """Rows beyond the limit, of each block."""
    gate, left_out = OutlierGate(x_ND.shape[1], mode, 10.0, text=text), []  # type: ignore[arg-type]
    for part_ND in x_ND.split(block):
        norm_N = gate.norms(part_ND)
        gate.observe(part_ND, norm_N)
        left_out.append(int((norm_N > gate.limit).sum()))
    return left_out


def config(**more: object) -> SAEConfig:
    base = {"d_sae": 64, "k": 4, "batch_rows": 256, "buffer_rows": 4096}
    return SAEConfig.model_validate(base | more)


def trained(x_ND: torch.Tensor, packet: int = 100, **more: object) -> SAETrainer:
    trainer = SAETrainer(config(**more))
    for seq, part_ND in enumerate(x_ND.split(packet)):
        trainer.ingest(part_ND, (0, 0, seq))
        trainer.train()
    return trainer


# What is an outlier


@pytest.mark.parametrize("text", [False, True])
def test_one_row_in_a_hundred_of_150_times_the_norm_is_found_and_nothing_else(text: bool) -> None:
    x_ND, is_sink_N = with_sinks(20_000)
    before = 0 if text else 5  # of the first block, which has too few to be sure
    assert sum(gated(x_ND, text=text)) == int(is_sink_N.sum()) - before == 200 - before
    gate = OutlierGate(D, "auto", 10.0, text=text)
    norm_N = gate.norms(x_ND)
    gate.observe(x_ND, norm_N)
    assert gate.median == pytest.approx(float(norm_N.median()), rel=0.02)
    assert gate.limit == pytest.approx(10 * float(norm_N.median()), rel=0.02)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_a_heavy_tail_loses_nothing(sigma: float, text: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(100_000, 8, generator=generator)
    x_ND *= (sigma * torch.randn(100_000, 1, generator=generator)).exp()
    assert sum(gated(x_ND, text=text, block=64)) == 0


@pytest.mark.parametrize("text", [False, True])
def test_a_power_law_loses_nothing(text: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.nn.functional.normalize(torch.randn(50_000, 8, generator=generator), dim=1)
    x_ND /= torch.rand(50_000, 1, generator=generator).clamp_min(1e-9)
    assert sum(gated(x_ND, text=text, block=256)) == 0


def test_large_rows_that_differ_are_kept_where_no_token_ids_travel() -> None:
    """Rare states of an agent: one row in a hundred has 50 to 150 times the norm, in any direction,
    or in one direction with norms that differ: there is something to learn of both."""
    generator = torch.Generator().manual_seed(0)
    large_ND = torch.randn(20_000, D, generator=generator)
    factor_N1 = 50 + 100 * torch.rand(20_000, 1, generator=generator)
    rare_N1 = (torch.arange(20_000) % 100 == 7).unsqueeze(1)
    anywhere_ND = torch.where(rare_N1, factor_N1, 1.0) * large_ND
    assert sum(gated(anywhere_ND)) == 0
    spread_N1 = 40 * (2 * torch.rand(20_000, 1, generator=generator)).exp()
    one_way_ND = torch.where(rare_N1, spread_N1 * SINK_D * D**0.5, large_ND)
    assert sum(gated(one_way_ND)) == 0
    assert sum(gated(anywhere_ND, text=True)) == 200


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("rows", [5_000, 50_000, 500_000])
def test_a_scale_that_grows_a_hundredfold_loses_nothing(rows: int, text: bool) -> None:
    growth_N1 = 100 ** (torch.arange(rows) / rows).unsqueeze(1)
    x_ND = (torch.randn(rows, 8, generator=torch.Generator().manual_seed(0)) + 1) * growth_N1
    assert sum(gated(x_ND, text=text, block=1000)) == 0


@pytest.mark.parametrize("text", [False, True])
def test_a_scale_that_jumps_a_hundredfold_is_back_within_a_third_of_the_window(text: bool) -> None:
    x_ND = torch.randn(60_000, 8, generator=torch.Generator().manual_seed(0)) * 0.1 + SINK_D[:8]
    x_ND[30_000:] *= 100
    left_out = gated(x_ND, text=text, block=100)
    assert sum(left_out[:300]) == 0
    assert sum(left_out) <= WINDOW_ROWS / 3
    assert sum(left_out[300 + WINDOW_ROWS // 300 + 1 :]) == 0


def test_skip_always_has_the_limit_and_keep_never() -> None:
    x_ND = torch.randn(10_000, 8, generator=torch.Generator().manual_seed(0))
    x_ND *= (2 * torch.randn(10_000, 1, generator=torch.Generator().manual_seed(1))).exp()
    assert sum(gated(x_ND, mode="skip")) > 500
    assert sum(gated(with_sinks(10_000)[0], mode="keep")) == 0


def test_zeros_and_a_single_row_have_no_limit() -> None:
    assert sum(gated(torch.zeros(1000, 4), mode="skip")) == 0
    assert sum(gated(torch.full((1, 4), 1e15), mode="skip")) == 0


# Training


@pytest.mark.rest
def test_an_sae_learns_the_other_rows_as_if_the_sinks_were_not_there() -> None:
    x_ND, is_sink_N = with_sinks(8_000)
    trainer, alone = trained(x_ND), trained(x_ND[~is_sink_N])
    found, wanted = trainer.evaluate(), alone.evaluate()
    assert found is not None
    assert wanted is not None
    assert found.fvu == pytest.approx(wanted.fvu, rel=0.2)
    assert found.outlier_share == pytest.approx(0.01, abs=0.004)
    assert 0 < found.fvu_all < 0.01 * found.fvu
    left_out, held_out = trainer.metrics.rows_outlying, trainer.metrics.rows_held_out
    assert left_out == pytest.approx(80 * (1 - held_out / 8_000), abs=8)
    kept = trained(x_ND, outliers="keep").evaluate()
    assert kept is not None
    assert kept.fvu == kept.fvu_all < 0.01

    sae = trainer.sae
    assert sae is not None
    norm_N = torch.linalg.vector_norm(x_ND, dim=1)
    assert sae.outlier_norm == pytest.approx(10 * float(norm_N.median()), rel=0.05)
    fresh_ND = usual_rows(4000, seed=9)
    error = (fresh_ND - sae(fresh_ND)).square().sum() / (fresh_ND - fresh_ND.mean(0)).square().sum()
    assert float(error.detach()) == pytest.approx(found.fvu, rel=0.1)


def test_rows_that_came_before_the_limit_leave_the_reservoir() -> None:
    x_ND, _ = with_sinks(4000)
    trainer = trained(x_ND, packet=7, passes=0.25, held_out_fraction=0.0)
    hook = trainer._hook
    assert hook is not None
    assert float(torch.linalg.vector_norm(hook.buffer.rows, dim=1).max()) < hook.outliers.limit
    assert trainer.metrics.rows_outlying == 40
    assert hook.normalizer.variance < 100


def test_resumed_training_with_outliers_is_bitwise_the_uninterrupted_one(tmp_path: Path) -> None:
    x_ND, _ = with_sinks(8_000)
    first = trained(x_ND[:5_050], packet=100)
    first.save(tmp_path)
    second = SAETrainer(config())
    assert second.load(tmp_path) is not None
    first_half = math.ceil(5_050 / 100)
    for trainer in (first, second):
        for seq, part_ND in enumerate(x_ND[5_050:].split(100), start=first_half):
            trainer.ingest(part_ND, (0, 0, seq))
            trainer.train()
    one, two = first.sae, second.sae
    assert one is not None
    assert two is not None
    assert one.outlier_norm == two.outlier_norm < math.inf
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert first.metrics == second.metrics
    assert first.evaluate() == second.evaluate()
    assert first.metrics.rows_outlying > 60


def test_a_checkpoint_of_before_goes_on_without_a_limit_and_with_whole_packets_held_out(
    tmp_path: Path,
) -> None:
    x_ND, _ = with_sinks(12_000)
    before = trained(x_ND[:6000], outliers="keep")
    folder = before.save(tmp_path)
    assert folder is not None
    path = folder / "trainer_state.json"
    document = json.loads(path.read_text())
    for field in ("outliers", "outlier_ratio"):
        del document["config"][field]
    new = ("outliers.", "held_out.whole_packets", "counts.rows_outlying")
    document["numbers"] = {k: v for k, v in document["numbers"].items() if not k.startswith(new)}
    path.write_text(json.dumps(document))
    tensors = load_file(folder / "trainer_state.safetensors")
    kept = {k: v for k, v in tensors.items() if not k.startswith("outliers.")}
    save_file(kept, folder / "trainer_state.safetensors")
    seal(folder)

    resumed = SAETrainer(config())
    resumed.load(tmp_path)
    held_out = resumed.metrics.rows_held_out
    for seq, part_ND in enumerate(x_ND[6000:].split(100), start=60):
        resumed.ingest(part_ND, (0, 0, seq))
        resumed.train()
    assert resumed.metrics.rows_outlying == 0
    assert (resumed.metrics.rows_held_out - held_out) % 100 == 0
    resumed.save(tmp_path)
    again = SAETrainer(config())
    again.load(tmp_path)
    again.ingest(x_ND[:500], (0, 0, 1000))
    again.train()
    assert again.metrics.rows_outlying == 0
    assert again.sae is not None
    assert again.sae.outlier_norm == math.inf


# What an SAE does to outliers


@pytest.mark.parametrize("architecture", AUTOENCODERS)
def test_an_outlier_has_no_activations_and_comes_back_as_it_is(
    architecture: str, tmp_path: Path
) -> None:
    x_ND, is_sink_N = with_sinks(6000)
    trainer = trained(x_ND, architecture=architecture)
    checkpoint = trainer.save(tmp_path)
    assert checkpoint is not None
    sae, metadata = load_sae(checkpoint)
    assert trainer.sae is not None
    assert sae.outlier_norm == metadata["outlier_norm"] == trainer.sae.outlier_norm < math.inf
    with torch.no_grad():
        acts_NF, made_ND = sae.encode(x_ND), sae(x_ND)
    assert float(acts_NF[is_sink_N].abs().sum()) == 0
    assert torch.equal(made_ND[is_sink_N], x_ND[is_sink_N])
    assert not torch.equal(made_ND[~is_sink_N], x_ND[~is_sink_N])
    assert float(acts_NF[~is_sink_N].sum()) > 0


def test_an_sae_without_a_limit_leaves_no_row_alone() -> None:
    sae = build_sae(config(), D)
    x_ND, is_sink_N = with_sinks(500)
    assert sae.outlying(x_ND) is None
    with torch.no_grad():
        assert float(sae.encode(x_ND)[is_sink_N].sum()) > 0


@pytest.mark.parametrize("value", ["12", -1.0, True])
def test_a_limit_that_is_no_norm_is_refused(tmp_path: Path, value: object) -> None:
    checkpoint = trained(usual_rows(1000), buffer_rows=512).save(tmp_path)
    assert checkpoint is not None
    path = checkpoint / "cfg.json"
    cfg = json.loads(path.read_text())
    assert "outlier_norm" not in cfg["metadata"]
    cfg["metadata"]["outlier_norm"] = value
    path.write_text(json.dumps(cfg))
    with pytest.raises(CheckpointError, match="outlier_norm"):
        load_sae(checkpoint)


def test_a_transcoder_is_trained_without_the_outliers_of_its_input(tmp_path: Path) -> None:
    x_ND, is_sink_N = with_sinks(8000)
    y_ND = x_ND @ torch.randn(D, 12, generator=torch.Generator().manual_seed(2))
    trainer = SAETrainer(config(architecture="skip_transcoder"))
    for seq, (x, y) in enumerate(zip(x_ND.split(100), y_ND.split(100), strict=True)):
        trainer.ingest(x, (0, 0, seq), target_ND=y)
        trainer.train()
    found = trainer.evaluate()
    assert found is not None
    assert found.fvu < 0.1
    assert found.fvu_all < found.fvu
    assert trainer.metrics.rows_outlying > 60
    assert trainer.sae is not None
    assert float(trainer.sae.encode(x_ND)[is_sink_N].detach().sum()) == 0
