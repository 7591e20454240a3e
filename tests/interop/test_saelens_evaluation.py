"""SAELens's own evaluation of one of our SAEs gives what `asys-run evaluate` says: same SAE, tokens, rule."""

from __future__ import annotations

import warnings

import pytest
import torch

from asys_bench.sae import SAEConfig, SAETrainer
from asys_bench.sae.evaluation import Place, Subject, language_damage, language_rows
from asys_bench.sae.exchange import import_saelens

pytestmark = [pytest.mark.interop, pytest.mark.rest, pytest.mark.filterwarnings("ignore")]
WIDTH, WORDS, LENGTH, SEQUENCES = 32, 61, 24, 16
HOOK = "transformer.h.1"


@pytest.fixture(scope="module")
def sae_lens():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens", exc_type=ImportError)


@pytest.fixture(scope="module")
def model():
    """A GPT-2 with random weights, sharp enough that its layers matter."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=LENGTH, n_embd=WIDTH, n_layer=3, n_head=2,
        initializer_range=0.3,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def batches(model):
    """Text that the model itself draws, so that it predicts better than chance."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, WORDS, (SEQUENCES, 1), generator=generator)
    with torch.no_grad():
        while ids.shape[1] < LENGTH:
            p = model(ids).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], 1)
    return list(ids.split(4))


@pytest.fixture(scope="module")
def checkpoint(model, batches, tmp_path_factory):
    """A SAELens folder of an SAE that has learnt a little of the model's rows."""
    config = SAEConfig(d_sae=96, k=8, batch_rows=64, buffer_rows=512, outliers="keep")
    trainer = SAETrainer(config, hook_name=HOOK)
    kept = []
    handle = model.transformer.h[1].register_forward_hook(lambda m, i, o: kept.append(_first(o)))
    with torch.no_grad():
        for ids in batches:
            model(ids)
    handle.remove()
    for seq, rows in enumerate(kept * 8):
        trainer.ingest(rows.flatten(0, 1), (0, 0, seq))
        trainer.train()
    return trainer.save(tmp_path_factory.mktemp("sae"))


def _first(output):
    return output[0] if isinstance(output, tuple) else output


class Store:
    """As much of SAELens's ActivationsStore as its evaluation asks for."""

    store_batch_size_prompts, context_size = 4, LENGTH

    def __init__(self, batches):
        self._batches = batches
        self.reset_input_dataset()

    def reset_input_dataset(self):
        self._left = iter(self._batches)

    def get_batch_tokens(self, size):
        return next(self._left)


def theirs(model, batches, checkpoint):
    from sae_lens import SAE
    from sae_lens.evals import get_eval_everything_config, run_evals
    from sae_lens.load_model import HookedProxyLM
    from sae_lens.training.activation_scaler import ActivationScaler

    found, _ = run_evals(
        SAE.load_from_disk(str(checkpoint)),
        Store(batches),
        HookedProxyLM(model, None, hook_names=[HOOK]),
        ActivationScaler(),
        get_eval_everything_config(4, len(batches), len(batches)),
        exclude_special_tokens=False,
    )
    return {name: value for group in found.values() for name, value in group.items()}


def test_saelens_own_evaluation_says_the_same(sae_lens, model, batches, checkpoint):
    expected = theirs(model, batches, checkpoint)
    sae, _ = import_saelens(checkpoint)
    subjects = {"a": Subject(Place(model.transformer.h[1]), sae)}
    pairs = [(ids, torch.ones_like(ids)) for ids in batches]
    rows = language_rows(lambda ids, mask: model(ids), pairs, subjects)["a"]
    found = language_damage(
        lambda ids, mask: model(ids).logits, pairs, subjects, {"a": rows.mean_D}
    )["a"]
    assert found.passed is None
    ours = found.replaced
    assert expected["ce_loss_score"] < 0.99, "an SAE without an error would show nothing"
    assert expected["ce_loss_with_ablation"] > expected["ce_loss_without_sae"] + 0.05
    assert {
        "ce_loss_score": ours.ce_recovered,
        "ce_loss_with_sae": ours.spliced.ce,
        "ce_loss_without_sae": ours.ce_clean,
        "ce_loss_with_ablation": ours.zero.ce,
        "kl_div_score": ours.kl_recovered,
        "kl_div_with_sae": ours.spliced.kl_mean,
        "kl_div_with_ablation": ours.zero.kl_mean,
        "explained_variance": 1 - rows.report.fvu,
        "cossim": rows.report.cosine,
        "l2_ratio": rows.report.l2_ratio,
        "l0": rows.report.l0,
    } == {name: pytest.approx(expected[name], abs=1e-3) for name in (
        "ce_loss_score", "ce_loss_with_sae", "ce_loss_without_sae", "ce_loss_with_ablation",
        "kl_div_score", "kl_div_with_sae", "kl_div_with_ablation", "explained_variance", "cossim",
        "l2_ratio", "l0",
    )}  # fmt: skip
    assert found.predicted == SEQUENCES * (LENGTH - 1)
