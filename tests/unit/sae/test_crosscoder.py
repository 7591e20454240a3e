"""Crosscoders: features of several hooks at once, which of them share a feature, and joint rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asys_bench.sae import SAEConfig, SAETrainer, build_sae, load_sae
from asys_bench.sae.architectures.crosscoder import Crosscoder
from asys_bench.sae.architectures.scaling import InputScaling, JointScaling
from asys_bench.sae.exchange import ExchangeError, import_sae
from asys_bench.sae.training.pairing import HookRows, Moment, MomentMatcher

HOOKS, D, SHARED, PRIVATE = 3, 24, 24, 8
WIDTHS = (D,) * HOOKS
UNITS = (0.1, 1.0, 10.0)
"""Every hook has a scale of its own."""


class Planted:
    """Three hooks whose rows have features in common and features of their own."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def unit(count: int) -> torch.Tensor:
            drawn = torch.randn(count, D, generator=generator)
            return torch.nn.functional.normalize(drawn, dim=1)

        self.shared_HSD = [unit(SHARED) for _ in WIDTHS]
        """A shared feature writes another direction in each hook."""
        self.private_HPD = [unit(PRIVATE) for _ in WIDTHS]

    def rows(self, count: int, seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(1000 + seed)
        features = SHARED + HOOKS * PRIVATE
        active = torch.rand(count, features, generator=generator) < 4.0 / features
        value = active * (torch.rand(count, features, generator=generator) + 0.5)
        shared, private = value[:, :SHARED], value[:, SHARED:].split(PRIVATE, 1)
        return [
            unit * (shared @ self.shared_HSD[hook] + private[hook] @ self.private_HPD[hook]) + hook
            for hook, unit in enumerate(UNITS)
        ]


def _config(**fields: object) -> SAEConfig:
    base = {
        "architecture": "crosscoder", "d_sae": 96, "k": 4, "batch_rows": 256,
        "buffer_rows": 8192, "passes": 2, "held_out_fraction": 0.1,
    }  # fmt: skip
    return SAEConfig.model_validate(base | fields)


def _feed(trainer: SAETrainer, planted: Planted, seqs: range) -> None:
    for seq in seqs:
        rows = torch.cat(planted.rows(1024, seq), 1)
        trainer.ingest(rows, (0, 0, seq), hook_widths=WIDTHS)
        trainer.train()


@pytest.fixture(scope="module")
def trained() -> tuple[Planted, SAETrainer]:
    planted, trainer = Planted(), SAETrainer(_config())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps this small only wait for a second one
    try:
        _feed(trainer, planted, range(40))
    finally:
        torch.set_num_threads(threads)
    return planted, trainer


def _own_units(trainer: SAETrainer) -> Crosscoder:
    assert trainer._hook is not None
    sae = trainer._hook.learner.sae
    assert isinstance(sae, Crosscoder)
    return sae


@pytest.mark.rest
def test_shared_and_private_features_are_both_found(trained: tuple[Planted, SAETrainer]) -> None:
    planted, trainer = trained
    sae = _own_units(trainer)
    truth = [torch.nn.functional.normalize(torch.cat(planted.shared_HSD, 1), dim=1)]
    for hook, directions_PD in enumerate(planted.private_HPD):
        alone = torch.zeros(PRIVATE, HOOKS * D)
        alone[:, hook * D : (hook + 1) * D] = directions_PD
        truth.append(alone)
    W_dec_FD = sae.W_dec.detach()
    for kind, directions in zip(("shared", "0", "1", "2"), truth, strict=True):
        cosine, _ = (directions @ W_dec_FD.t()).max(1)
        assert float((cosine > 0.9).float().mean()) >= 0.9, kind


def test_a_features_decoder_norms_say_whose_it_is(trained: tuple[Planted, SAETrainer]) -> None:
    planted, trainer = trained
    sae = _own_units(trainer)
    share_HF = sae.decoder_shares
    torch.testing.assert_close(share_HF.sum(0), torch.ones(sae.d_sae))
    both = torch.nn.functional.normalize(torch.cat(planted.shared_HSD, 1), dim=1)
    of_shared = (both @ sae.W_dec.detach().t()).argmax(1)
    assert float(share_HF[:, of_shared].max()) < 0.6
    for hook, directions_PD in enumerate(planted.private_HPD):
        part_FD = sae.W_dec.detach()[:, sae.parts[hook]]
        of_private = (directions_PD @ part_FD.t()).argmax(1)
        assert float(share_HF[hook, of_private].median()) > 0.95


def test_every_hook_counts_alike_whatever_its_units(trained: tuple[Planted, SAETrainer]) -> None:
    measured = trained[1].evaluate()
    assert measured is not None
    assert len(measured.fvu_of_hooks) == HOOKS
    assert max(measured.fvu_of_hooks) < 0.05
    assert measured.fvu == pytest.approx(sum(measured.fvu_of_hooks) / HOOKS)
    assert 0.0 < trained[1].metrics.fvu < 0.05


def test_a_checkpoint_takes_the_hooks_raw_rows_side_by_side(
    trained: tuple[Planted, SAETrainer], tmp_path: Path
) -> None:
    planted, trainer = trained
    written = trainer.save(tmp_path)
    assert written is not None
    loaded, metadata = load_sae(written)
    assert isinstance(loaded, Crosscoder)
    assert loaded.config.hook_widths == WIDTHS
    assert metadata["training_architecture"] == "crosscoder"
    rows = torch.cat(planted.rows(2000, 999), 1)
    with torch.no_grad():
        error = (loaded(rows) - rows).split(D, 1)
    for hook, part in enumerate(error):
        own = rows[:, hook * D : (hook + 1) * D]
        fvu = float(part.square().sum() / (own - own.mean(0)).square().sum())
        assert fvu < 0.05, hook
    with pytest.raises(ExchangeError, match="crosscoder"):
        import_sae(written)


def test_a_resumed_crosscoder_is_bitwise_the_uninterrupted_one(tmp_path: Path) -> None:
    planted = Planted()
    straight, first, second = (SAETrainer(_config()) for _ in range(3))
    _feed(straight, planted, range(8))
    _feed(first, planted, range(5))
    first.save(tmp_path)
    assert second.load(tmp_path) is not None
    _feed(second, planted, range(5, 8))
    assert straight.sae is not None
    assert second.sae is not None
    assert straight.steps == second.steps > 0
    for name, tensor in straight.sae.state_dict().items():
        assert torch.equal(tensor, second.sae.state_dict()[name]), name


@pytest.mark.parametrize(
    ("widths", "reason"),
    [
        (None, "needs the rows of several hooks"),
        ((4, 4), "do not add up to rows of width 10"),
        ((10, 0), "do not add up"),
        ((), "do not add up"),
    ],
)
def test_rows_that_are_not_those_of_the_hooks_are_refused(
    widths: tuple[int, ...] | None, reason: str
) -> None:
    trainer = SAETrainer(_config())
    with pytest.raises(ValueError, match=reason):
        trainer.ingest(torch.zeros(5, 10), (0, 0, 0), hook_widths=widths)
    assert trainer.d_in is None


def test_another_split_than_before_is_refused() -> None:
    trainer = SAETrainer(_config())
    trainer.ingest(torch.randn(5, 10), (0, 0, 0), hook_widths=(4, 6))
    with pytest.raises(ValueError, match=r"rows are 6 \+ 4 wide; earlier ones .* were 4 \+ 6"):
        trainer.ingest(torch.randn(5, 10), (0, 0, 1), hook_widths=(6, 4))
    plain = SAETrainer(_config(architecture="batchtopk"))
    with pytest.raises(ValueError, match="takes one hook's rows"):
        plain.ingest(torch.randn(5, 10), (0, 0, 0), hook_widths=(4, 6))


def test_a_checkpoint_of_another_split_is_let_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = SAETrainer(_config()), SAETrainer(_config())
    first.ingest(torch.randn(900, 10), (0, 0, 0), hook_widths=(4, 6))
    first.train(wait_for_fill=False)
    first.save(tmp_path)
    assert second.load(tmp_path) is not None
    second.ingest(torch.randn(5, 10), (0, 0, 1), hook_widths=(5, 5))
    assert second.steps == 0
    assert second.config.hook_widths == (5, 5)
    assert "its rows were 4 + 6 wide, and these are 5 + 5" in caplog.text


def test_widths_that_do_not_add_up_make_no_crosscoder() -> None:
    with pytest.raises(ValueError, match=r"width 10 needs hook_widths that add up .* not \[4, 4\]"):
        build_sae(_config(hook_widths=(4, 4)), 10)
    with pytest.raises(ValueError, match="hook_widths needs crosscoder"):
        SAEConfig(hook_widths=(4, 4))


def test_a_joint_scaling_undoes_what_it_applies() -> None:
    scaling = JointScaling((InputScaling(2.0, torch.ones(2)), InputScaling(0.5, torch.zeros(3))))
    rows = torch.arange(10.0).reshape(2, 5)
    scaled = scaling.apply(rows)
    torch.testing.assert_close(scaled[0], torch.tensor([-2.0, 0.0, 1.0, 1.5, 2.0]))
    torch.testing.assert_close(scaling.undo(scaled), rows)


def _rows(number: int, weight: float = 1.0, count: int = 2) -> HookRows:
    return HookRows(torch.full((count, 3), float(number)), (0, 0, number), weight, 7)


@pytest.mark.parametrize("places", [[0, 3], [1, 2], None])
def test_hooks_that_sampled_other_rows_of_a_call_have_no_joint_rows(places) -> None:
    matcher = MomentMatcher("ab", shared_coin=True)
    for step in range(16):
        assert matcher.problem is None
        own = replace(_rows(1), places=np.array([0, 3]))
        other = replace(_rows(2), places=None if places is None else np.array(places))
        matcher.offer(0, _moment(step), own)
        assert (matcher.offer(1, _moment(step), other) is None) == (places != [0, 3])
    if places != [0, 3]:
        assert matcher.problem is not None
        assert "token_sample draws for each packet" in matcher.problem


def test_all_rows_in_order_are_the_same_however_that_is_said() -> None:
    matcher = MomentMatcher("ab", shared_coin=True)
    matcher.offer(0, _moment(0), replace(_rows(1), places=np.array([0, 1])))
    assert matcher.offer(1, _moment(0), _rows(2)) is not None


def _moment(step: int) -> Moment:
    return Moment(0, 0, step, 0, 0, 0)


def test_a_moment_is_complete_when_all_its_hooks_have_come_in_any_order() -> None:
    matcher = MomentMatcher("abc", shared_coin=True)
    assert matcher.offer(2, _moment(1), _rows(12, 5.0)) is None
    assert matcher.offer(0, _moment(2), _rows(20)) is None
    assert matcher.offer(0, _moment(1), _rows(10, 2.0)) is None
    joint = matcher.offer(1, _moment(1), _rows(11, 3.0))
    assert joint is not None
    assert [hook.key[2] for hook in joint.hooks] == [10, 11, 12]
    assert (joint.key, joint.weight, joint.widths) == ((0, 0, 10), 5.0, (3, 3, 3))
    assert joint.side_by_side()[0].tolist() == [10.0] * 3 + [11.0] * 3 + [12.0] * 3
    assert (matcher.matched, matcher.unmatched) == (1, 0)
    assert [hook.rows.shape[0] for hook in joint[:1].hooks] == [1, 1, 1]


def test_hooks_with_coins_of_their_own_multiply_their_weights() -> None:
    matcher = MomentMatcher("abc", shared_coin=False)
    found = [matcher.offer(index, _moment(1), _rows(index, 2.0)) for index in range(3)]
    assert found[:2] == [None, None]
    assert found[2] is not None
    assert found[2].weight == 8.0


def test_waiting_packets_of_three_hooks_are_bounded() -> None:
    matcher = MomentMatcher("abc", shared_coin=True, most_waiting=4)
    for step in range(4):
        matcher.offer(0, _moment(step), _rows(step))
        matcher.offer(1, _moment(step), _rows(step))
    assert matcher.unmatched == 4
    assert matcher.offer(2, _moment(3), _rows(3)) is not None
    assert matcher.offer(2, _moment(0), _rows(0)) is None


def test_hooks_that_never_meet_are_refused_by_name() -> None:
    matcher = MomentMatcher("abc", shared_coin=True, refuse_after=6)
    for step in range(3):
        assert matcher.problem is None
        matcher.offer(0, _moment(step), _rows(step))
        matcher.offer(2, _moment(step), _rows(step))
    assert matcher.problem is not None
    assert "no packet of 'b' in 6 of the others" in matcher.problem


def test_a_moment_with_other_numbers_of_rows_is_left_out_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    matcher = MomentMatcher("ab", shared_coin=True)
    for step in range(100):
        matcher.offer(0, _moment(step), _rows(1))
        joint = matcher.offer(1, _moment(step), _rows(2, count=2 + step % 3 // 2))
        assert (joint is None) == (step % 3 == 2)
    assert (matcher.matched, matcher.unmatched, matcher.problem) == (67, 66, None)
    assert [record.getMessage() for record in caplog.records] == [
        "['a', 'b'] have [2, 3] rows in one call (host step 2): such calls are left out and counted"
    ]


def test_hooks_whose_rows_differ_in_most_calls_are_refused() -> None:
    matcher = MomentMatcher("ab", shared_coin=True)
    for step in range(16):
        assert matcher.problem is None
        matcher.offer(0, _moment(step), _rows(1))
        matcher.offer(1, _moment(step), _rows(2, count=3))
    assert matcher.problem is not None
    assert "different numbers of rows in most of their calls ([2, 3] in the last one)" in (
        matcher.problem
    )
