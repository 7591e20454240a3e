"""What SAEs do to a language model: figures that can be said beforehand, padding, and attention sinks."""

from __future__ import annotations

import math

import pytest
import torch

from asys_bench.sae import SAEConfig, build_sae
from asys_bench.sae.evaluation import (
    Place,
    Subject,
    evaluate,
    language_damage,
    language_rows,
)

WORDS, WIDTH = 11, 8


class Bigram(torch.nn.Module):
    """The smallest language model: an embedding and a head."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = torch.nn.Embedding(WORDS, WIDTH)
        self.head = torch.nn.Linear(WIDTH, WORDS, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, ids, mask=None):
        return self.head(self.embed(ids))


def exact_sae(shrink=1.0):
    """An SAE with a feature for each direction and its opposite: it gives back `shrink` times x."""
    sae = build_sae(SAEConfig(architecture="topk", d_sae=2 * WIDTH, k=WIDTH), WIDTH)
    both = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    with torch.no_grad():
        sae.W_enc.copy_(both.t())
        sae.W_dec.copy_(shrink * both)
    return sae


def likely_text(model, length=20, sequences=6):
    """Text that the model draws itself, so that it knows more than nothing."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, WORDS, (sequences, 1), generator=generator)
    with torch.no_grad():
        while ids.shape[1] < length:
            p = model(ids)[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], 1)
    return ids


def measure(model, batches, sae, mean_D=None):
    mean_D = torch.zeros(WIDTH) if mean_D is None else mean_D
    subjects = {"a": Subject(Place(model.embed), sae)}
    return language_damage(model, batches, subjects, {"a": mean_D})["a"]


def whole(ids):
    return ids, torch.ones_like(ids)


def test_a_perfect_reconstruction_recovers_everything_and_zeros_nothing():
    model = Bigram()
    ids = likely_text(model)
    found = measure(model, [whole(ids), whole(ids[:, :1])], exact_sae())
    assert (found.tokens, found.predicted) == (6 * 20 + 6, 6 * 19)
    assert found.passed is None
    assert found.own is found.replaced
    one = found.replaced
    assert one.ce_recovered == pytest.approx(1.0, abs=1e-5)
    assert one.kl_recovered == pytest.approx(1.0, abs=1e-5)
    assert one.spliced.ce == pytest.approx(found.ce_clean, abs=1e-5)
    assert (one.spliced.kl_mean, one.spliced.kl_p95) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert one.zero.ce == pytest.approx(math.log(WORDS)), "without an embedding all words are alike"


def test_figures_are_those_of_the_whole_text_at_once():
    model = Bigram()
    ids = likely_text(model)
    mean_D = model.embed(ids).mean((0, 1)).detach()
    found = measure(model, [whole(part) for part in ids.split(4)], exact_sae(0.5), mean_D).replaced
    clean = model(ids).log_softmax(-1)
    for kind, rows in (
        ("spliced", 0.5 * model.embed(ids)),
        ("zero", 0 * model.embed(ids)),
        ("mean", mean_D.expand(*ids.shape, WIDTH)),
    ):
        changed = model.head(rows).log_softmax(-1)
        nll = -changed[:, :-1].gather(-1, ids[:, 1:, None]).mean()
        kl = (clean.exp() * (clean - changed)).sum(-1).flatten()
        one = getattr(found, kind)
        assert one.ce == pytest.approx(float(nll.detach()), rel=1e-5)
        assert one.kl_mean == pytest.approx(float(kl.mean().detach()), rel=1e-4)
        assert one.kl_p95 == pytest.approx(float(kl.detach().quantile(0.95)), rel=1e-4)
    lost = found.zero.ce - found.ce_clean
    assert found.ce_recovered == pytest.approx((found.zero.ce - found.spliced.ce) / lost)
    lost = found.mean.ce - found.ce_clean
    assert found.ce_recovered_from_mean == pytest.approx((found.mean.ce - found.spliced.ce) / lost)
    assert 0 < found.ce_recovered < 1


def test_ablation_that_does_no_harm_recovers_nothing_that_has_a_number():
    model = Bigram()
    with torch.no_grad():
        model.head.weight.zero_()
    found = measure(model, [whole(likely_text(model))], exact_sae(0.5)).replaced
    assert math.isnan(found.ce_recovered)
    assert math.isnan(found.kl_recovered)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_left_out(side):
    model = Bigram()
    ids = likely_text(model)
    padding = torch.full((6, 3), 7)
    parts = [ids, padding] if side == "right" else [padding, ids]
    masks = [torch.ones_like(ids), torch.zeros_like(padding)]
    padded = torch.cat(parts, 1), torch.cat(masks if side == "right" else masks[::-1], 1)
    sae = exact_sae(0.5)
    assert measure(model, [padded], sae) == measure(model, [whole(ids)], sae)
    subjects = {"a": Subject(Place(model.embed), sae)}
    with_padding = language_rows(model, [padded], subjects)["a"]
    without = language_rows(model, [whole(ids)], subjects)["a"]
    assert with_padding.report == without.report
    assert torch.equal(with_padding.mean_D, without.mean_D)


class Sinks(Bigram):
    """Position 0 holds one huge vector that every other position looks at, and without which all is
    lost: its last number is the scale of the head."""

    HUGE = 1000.0

    def __init__(self):
        super().__init__()
        self.block = torch.nn.Identity()

    def forward(self, ids, mask=None):
        x_BTD = self.embed(ids).clone()
        x_BTD[:, 0] = 0.0
        x_BTD[:, 0, -1] = self.HUGE
        x_BTD = self.block(x_BTD)
        return self.head(x_BTD) * (x_BTD[:, :1, -1:] / self.HUGE)


def test_attention_sinks_are_measured_passed_through_and_replaced():
    model, sae = Sinks(), exact_sae(0.5)
    ids = likely_text(model)
    subjects = {"a": Subject(Place(model.block), sae)}

    def measured():
        rows = language_rows(model, [whole(ids)], subjects)["a"]
        return rows, language_damage(model, [whole(ids)], subjects, {"a": rows.mean_D})["a"]

    _, every = measured()
    assert every.passed is None
    sae.outlier_norm = 100.0
    rows, found = measured()
    assert rows.report.outlier_share == pytest.approx(1 / 20)
    assert rows.report.fvu_all < 0.01 * rows.report.fvu
    assert rows.fvu_by_position[0] is None, "only outliers are there"
    assert found.replaced.spliced == every.replaced.spliced, "with and without a rule for outliers"
    assert found.own is found.passed
    with torch.no_grad():
        x_BTD = model.embed(ids)
        kept = model.head(0.5 * x_BTD[:, 1:]).log_softmax(-1)
        nll = -kept[:, :-1].gather(-1, ids[:, 2:, None]).sum()
        first = (model.head(torch.tensor([0.0] * (WIDTH - 1) + [Sinks.HUGE]))).log_softmax(-1)
        nll = nll - first[ids[:, 1]].sum()
    assert found.passed.spliced.ce == pytest.approx(float(nll) / (6 * 19), rel=1e-4)
    assert found.passed.spliced.kl_mean < found.replaced.spliced.kl_mean


def test_rows_are_measured_as_the_sae_is_and_by_position():
    model, sae = Bigram(), exact_sae(0.5)
    ids = likely_text(model)
    subjects = {"a": Subject(Place(model.embed), sae)}
    found = language_rows(model, [whole(part) for part in ids.split(4)], subjects)["a"]
    x_BTD = model.embed(ids).detach()
    plain = evaluate(sae, [x_BTD.flatten(0, 1)])
    assert found.report.fvu == pytest.approx(plain.fvu)
    assert found.report.cosine == pytest.approx(1.0)
    assert found.report.l2_ratio == pytest.approx(0.5)
    assert found.report.rows == 120
    spread = (x_BTD - x_BTD.mean((0, 1))).square().sum(-1).mean()
    error_T = (0.5 * x_BTD).square().sum(-1).mean(0)
    assert found.fvu_by_position == pytest.approx((error_T / spread).tolist(), rel=1e-4)
    assert sum(found.fvu_by_position) / 20 == pytest.approx(found.report.fvu)


def test_what_cannot_be_measured_says_why():
    model = Bigram()
    with pytest.raises(ValueError, match="no sequence of the text has two tokens"):
        measure(model, [whole(likely_text(model)[:, :1])], exact_sae())
    unused = {"a": Subject(Place(torch.nn.Identity()), exact_sae())}
    with pytest.raises(ValueError, match="a: its module was not called"):
        language_rows(model, [whole(likely_text(model))], unused)
    wide = {"a": Subject(Place(model.head), exact_sae())}
    with pytest.raises(ValueError, match="rows are 11 wide, and the SAE takes 8"):
        language_rows(model, [whole(likely_text(model))], wide)


def test_measuring_draws_no_random_number_and_leaves_the_model_as_it_was():
    model = Bigram()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = likely_text(model)
    state = torch.random.get_rng_state()
    measure(model, [whole(ids)], exact_sae(0.5))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert not model.embed._forward_hooks
