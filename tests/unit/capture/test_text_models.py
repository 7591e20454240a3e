"""Models of the libraries, tiny and random: each labelled row is the one that the model made of its token.

The truth comes from hooks of the test's own, over the same weights and inputs.
"""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers")

VOCABULARY, WIDTH = 200, 32


def batch(shape=(4, 12), *, left=False):
    """ids and mask; the first half of the sequences is half padding."""
    ids = torch.randint(3, VOCABULARY, shape)
    mask = torch.ones_like(ids)
    half = shape[1] // 2
    mask[: shape[0] // 2, slice(0, half) if left else slice(half, None)] = 0
    return ids * mask, mask


class Truth:
    """The outputs of modules, in the order of their calls, as the host has them."""

    def __init__(self, model, hooks):
        self.outputs = {hook: [] for hook in hooks}
        for hook, outputs in self.outputs.items():
            module = model.get_submodule(hook)

            def keep(_module, _args, output, outputs=outputs):
                outputs.append((output if isinstance(output, torch.Tensor) else output[0]).clone())

            module.register_forward_hook(keep)


def check(packets, truth, hook, ids, masks):
    """Each call's packet of `hook` has the real rows, in order, and their tokens. Returns the rows."""
    tokens = {(p.step, p.microbatch, p.text): p.tensor[:, 0] for p in packets if p.name == "tokens"}
    mine = [p for p in packets if p.name == hook]
    assert len(mine) == len(truth.outputs[hook]) == len(ids)
    rows = 0
    for packet, output, ids_BT, mask_BT in zip(mine, truth.outputs[hook], ids, masks, strict=True):
        real = mask_BT.bool().reshape(-1)
        expected = output.reshape(len(real), -1)[real]
        assert packet.text, hook
        assert torch.equal(packet.tensor.reshape(expected.shape), expected), hook
        mine_N = tokens[packet.step, packet.microbatch, packet.text]
        assert mine_N.tolist() == ids_BT.reshape(-1)[real].tolist(), hook
        rows += len(expected)
    return rows


@torch.no_grad()
def run(model, hooks, watch, *calls):
    observed = watch(model, *hooks)
    truth = Truth(model, hooks)
    for call in calls:
        call()
        observed.clock.step()
    return observed.packets(), truth


def test_bert_has_its_tokens_and_the_pooler_has_none(watch, caplog):
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48,
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    ids, mask = batch()
    hooks = ("embeddings", "encoder.layer.0", "encoder.layer.1", "pooler")
    packets, truth = run(
        model, hooks, watch, *[lambda: model(input_ids=ids, attention_mask=mask)] * 2
    )
    for hook in hooks[:3]:
        assert check(packets, truth, hook, [ids] * 2, [mask] * 2) == 72
    assert [p.text for p in packets if p.name == "pooler"] == [0, 0]
    assert "hook pooler:" in caplog.text


@pytest.mark.parametrize("length", [7, 12])
def test_t5_has_ids_and_masks_of_both_its_texts(watch, length):
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_ff=48, num_layers=2, num_heads=2, d_kv=16
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    (ids, mask), (targets, target_mask) = batch(), batch((4, length))
    hooks = ("encoder.block.0", "decoder.block.1", "lm_head")
    packets, truth = run(
        model,
        hooks,
        watch,
        lambda: model(
            input_ids=ids,
            attention_mask=mask,
            decoder_input_ids=targets,
            decoder_attention_mask=target_mask,
        ),
    )
    assert check(packets, truth, "encoder.block.0", [ids], [mask]) == int(mask.sum())
    decoder = [p for p in packets if p.name == "decoder.block.1"]
    if decoder[0].text or length == 7:
        check(packets, truth, "decoder.block.1", [targets], [target_mask])
    assert [p.text for p in packets if p.name == "lm_head"] == [0], "outside of both"


def test_the_flattened_rows_of_a_mixture_of_experts_are_tokens_too(watch):
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config).eval()
    ids, mask = batch()
    layer = "model.layers.0"
    hooks = (layer, f"{layer}.mlp", f"{layer}.mlp.gate", f"{layer}.mlp.experts", "lm_head")
    packets, truth = run(model, hooks, watch, lambda: model(input_ids=ids, attention_mask=mask))
    for hook in hooks:
        assert check(packets, truth, hook, [ids], [mask]) == 36


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_gpt2_generates_from_padding_on_the_left_and_every_row_has_its_token(watch, cache):
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=64,
        bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    ids, mask = batch(left=True)
    made = []
    hooks = ("transformer.h.0", "transformer.h.1")
    kind = {} if cache == "dynamic" else {"cache_implementation": "static"}
    packets, truth = run(
        model,
        hooks,
        watch,
        lambda: made.append(
            model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, **kind
            )
        ),
    )
    steps = [made[0][:, 12 + n : 13 + n] for n in range(4)]
    for hook in hooks:
        masks = [mask, *[torch.ones_like(step) for step in steps]]
        assert check(packets, truth, hook, [ids, *steps], masks) == 36 + 16


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_peft_passes_the_hooks_of_the_model_and_its_rows_have_tokens(watch):
    peft = pytest.importorskip("peft")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48,
    )  # fmt: skip
    inner = transformers.BertModel(config)
    model = peft.get_peft_model(inner, peft.LoraConfig(r=2, target_modules=["query"])).eval()
    ids, mask = batch()
    hook = "base_model.model.encoder.layer.1"
    packets, truth = run(
        model, [hook], watch,
        lambda: model(input_ids=ids, attention_mask=mask), lambda: model(ids, mask),
    )  # fmt: skip
    assert check(packets, truth, hook, [ids] * 2, [mask] * 2) == 72


def test_sentence_transformers_take_a_dict_of_features_and_rows_have_tokens(watch):
    sentences = pytest.importorskip("sentence_transformers")
    models = pytest.importorskip("sentence_transformers.models")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48,
    )  # fmt: skip
    text = models.Transformer.__new__(models.Transformer)
    torch.nn.Module.__init__(text)
    text.auto_model = transformers.BertModel(config).eval()

    class Features(torch.nn.Module):
        """Calls as its module `Transformer` does, which needs a folder of files."""

        def __init__(self):
            super().__init__()
            self.auto_model = text.auto_model

        def forward(self, features, **_):
            hidden = self.auto_model(
                input_ids=features["input_ids"], attention_mask=features["attention_mask"]
            )
            features["token_embeddings"] = hidden.last_hidden_state
            return features

    pooling = models.Pooling(WIDTH, pooling_mode="mean")
    model = sentences.SentenceTransformer(modules=[Features(), pooling], device="cpu").eval()
    ids, mask = batch()
    hook = "0.auto_model.encoder.layer.1"
    packets, truth = run(
        model, [hook], watch, lambda: model({"input_ids": ids, "attention_mask": mask})
    )
    assert check(packets, truth, hook, [ids], [mask]) == 36


def test_lightning_calls_training_step_and_rows_have_tokens(watch):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            config = transformers.GPT2Config(
                vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=1, n_head=2, n_positions=64
            )
            self.model = transformers.GPT2LMHeadModel(config).eval()

        def training_step(self, features, _index=0):
            return self.model(**features).logits.sum()

    model = Module()
    ids, mask = batch()
    features = {"input_ids": ids, "attention_mask": mask}
    hook = "model.transformer.h.0"
    packets, truth = run(model, [hook], watch, *[lambda: model.training_step(features)] * 2)
    assert check(packets, truth, hook, [ids] * 2, [mask] * 2) == 72
