"""Skip transcoders: pairs of hooks, their scalings, and what a trained one predicts."""

import re
from pathlib import Path

import pytest
import torch

from asys_bench.sae import SAEConfig, SAETrainer, build_sae, load_sae
from asys_bench.sae.training.pairing import HookRows, Moment, MomentMatcher

D_IN, D_OUT = 12, 7


def _map(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer: linear, plus what 24 features add when they are on; both sides off-centre."""
    fixed = torch.Generator().manual_seed(7)
    linear = torch.randn(D_OUT, D_IN, generator=fixed)
    read, write = torch.randn(24, D_IN, generator=fixed), torch.randn(24, D_OUT, generator=fixed)
    x = torch.randn(count, D_IN, generator=torch.Generator().manual_seed(seed))
    y = x @ linear.t() + torch.relu(x @ read.t() - 5.0) @ write
    return 3.0 * x + 1.0, 0.2 * y - 4.0


def _config(**fields: object) -> SAEConfig:
    base = {
        "architecture": "skip_transcoder", "d_sae": 64, "k": 4, "batch_rows": 256,
        "buffer_rows": 4096, "passes": 6, "held_out_fraction": 0.1,
    }  # fmt: skip
    return SAEConfig.model_validate(base | fields)


def _trained(config: SAEConfig, packets: int = 60) -> SAETrainer:
    trainer = SAETrainer(config)
    for seq in range(packets):
        x, y = _map(seq, 300)
        trainer.ingest(x, (0, 0, seq), target_ND=y)
        trainer.train()
    return trainer


@pytest.mark.rest
def test_a_transcoder_predicts_the_other_hook_better_than_the_best_affine_map() -> None:
    trainer = _trained(_config())
    measured = trainer.evaluate()
    x, y = _map(999, 4000)
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    affine = design @ torch.linalg.lstsq(design, y).solution
    affine_fvu = float((y - affine).square().sum() / (y - y.mean(0)).square().sum())
    assert measured is not None
    assert measured.fvu < 0.7 * affine_fvu
    sae = trainer.sae
    assert sae is not None
    with torch.no_grad():
        error = float((sae(x) - y).square().sum() / (y - y.mean(0)).square().sum())
    assert error == pytest.approx(measured.fvu, rel=0.3)


def test_the_first_steps_know_the_linear_part_already() -> None:
    sae = build_sae(_config(), D_IN, D_OUT)
    x, y = _map(0, 4000)
    x, y = (x - x.mean(0)) / x.std(), (y - y.mean(0)) / y.std()
    sae.start_(x, y)
    with torch.no_grad():
        skip_alone = sae.reconstruct(x, torch.zeros(len(x), sae.d_sae))
    best = x @ torch.linalg.lstsq(x, y).solution
    left, least = ((y - guess).square().sum() for guess in (skip_alone, best))
    assert float(left) == pytest.approx(float(least), rel=1e-3)


def test_a_resumed_transcoder_is_bitwise_the_uninterrupted_one(tmp_path: Path) -> None:
    straight = _trained(_config(), 24)
    first = _trained(_config(), 16)
    first.save(tmp_path)
    second = SAETrainer(_config())
    assert second.load(tmp_path) is not None
    for seq in range(16, 24):
        x, y = _map(seq, 300)
        second.ingest(x, (0, 0, seq), target_ND=y)
        second.train()
    assert straight.sae is not None
    assert second.sae is not None
    for name, tensor in straight.sae.state_dict().items():
        assert torch.equal(tensor, second.sae.state_dict()[name]), name
    assert second.evaluate() == straight.evaluate()


def test_its_checkpoint_maps_raw_rows_to_raw_rows(tmp_path: Path) -> None:
    trainer = _trained(_config(), 30)
    folder = trainer.save(tmp_path)
    assert folder is not None
    loaded, metadata = load_sae(folder)
    x, _ = _map(999, 50)
    assert trainer.sae is not None
    torch.testing.assert_close(loaded(x), trainer.sae(x))
    assert loaded(x).shape == (50, D_OUT)
    assert metadata["training_architecture_details"] == {"k": 4.0}


def test_rows_that_are_no_pairs_are_refused() -> None:
    x, y = _map(0, 10)
    with pytest.raises(ValueError, match="needs the rows of a second hook"):
        SAETrainer(_config()).ingest(x, (0, 0, 0))
    with pytest.raises(ValueError, match="takes one hook's rows"):
        SAETrainer(SAEConfig()).ingest(x, (0, 0, 0), target_ND=y)
    with pytest.raises(ValueError, match="10 input rows cannot be paired with 9"):
        SAETrainer(_config()).ingest(x, (0, 0, 0), target_ND=y[:9])
    trainer = SAETrainer(_config())
    trainer.ingest(x, (0, 0, 0), target_ND=y)
    with pytest.raises(ValueError, match="12 -> 6 wide; earlier ones of this hook were 12 -> 7"):
        trainer.ingest(x, (0, 0, 1), target_ND=y[:, :6])


INPUT, OUTPUT = 0, 1


def _half(number: int, weight: float = 1.0) -> HookRows:
    return HookRows(torch.full((2, 1), float(number)), (0, 0, number), weight, 0)


def _moment(step: int, call: int = 0) -> Moment:
    return Moment(0, 0, step, 0, 0, call)


def test_packets_of_one_moment_are_paired_in_either_order() -> None:
    matcher = MomentMatcher("ab", shared_coin=True)
    assert matcher.offer(INPUT, _moment(1), _half(1, 2.0)) is None
    assert matcher.offer(OUTPUT, _moment(2), _half(2)) is None
    pair = matcher.offer(OUTPUT, _moment(1), _half(3, 5.0))
    assert pair is not None
    assert (*(hook.key[2] for hook in pair.hooks), pair.weight) == (1, 3, 5.0)
    pair = matcher.offer(INPUT, _moment(2), _half(4))
    assert pair is not None
    assert [hook.key[2] for hook in pair.hooks] == [4, 2]
    assert matcher.offer(INPUT, _moment(1, call=1), _half(5)) is None
    assert (matcher.matched, matcher.unmatched) == (2, 0)


@pytest.mark.parametrize(("shared_coin", "weight"), [(True, 5.0), (False, 10.0)])
def test_a_pair_stands_for_one_over_the_smaller_rate_or_over_the_product_with_two_coins(
    shared_coin: bool, weight: float
) -> None:
    matcher = MomentMatcher("ab", shared_coin=shared_coin)
    matcher.offer(OUTPUT, _moment(1), _half(1, 5.0))
    pair = matcher.offer(INPUT, _moment(1), _half(2, 2.0))
    assert pair is not None
    assert pair.weight == weight


def test_packets_of_two_weights_versions_of_one_step_are_no_pair() -> None:
    matcher = MomentMatcher("ab", shared_coin=True)
    matcher.offer(INPUT, _moment(1), _half(1))
    assert matcher.offer(OUTPUT, _moment(1)._replace(weights_version=1), _half(2)) is None
    assert matcher.matched == 0


def test_waiting_packets_are_bounded_and_given_up_oldest_first() -> None:
    matcher = MomentMatcher("ab", shared_coin=True, most_waiting=3)
    for step in range(5):
        matcher.offer(INPUT, _moment(step), _half(step))
    assert matcher.unmatched == 2
    assert matcher.offer(OUTPUT, _moment(0), _half(9)) is None
    assert matcher.offer(OUTPUT, _moment(4), _half(9)) is not None


@pytest.mark.parametrize(
    ("sides", "reason"),
    [
        ([INPUT], r"no packet of 'b' in 10 of the others of \['a', 'b'\]: hook all"),
        ([INPUT, OUTPUT], r"no packets of \['a', 'b'\] are of one moment, in 10"),
    ],
)
def test_hooks_that_cannot_be_paired_are_refused_with_the_reason(
    sides: list[int], reason: str
) -> None:
    matcher = MomentMatcher("ab", shared_coin=True, refuse_after=10)
    for number in range(10):
        assert matcher.problem is None
        matcher.offer(sides[number % len(sides)], _moment(number), _half(number))
    assert matcher.problem is not None
    assert re.search(reason, matcher.problem)
