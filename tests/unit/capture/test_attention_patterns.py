"""What a module returns beside its output is captured by its place in the tuple: attention patterns."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers")


def gpt2(attention):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=60, n_positions=16, n_embd=24, n_layer=2, n_head=3,
        attn_implementation=attention,
    )  # fmt: skip
    return transformers.GPT2Model(config).eval()


@torch.no_grad()
def test_a_row_is_what_one_query_looks_at(rig):
    model = gpt2("eager")
    observed = rig(model, {"match": "h.*.attn", "select": 1, "rows": "last"})
    ids_BT = torch.randint(0, 60, (2, 7))
    patterns = model(ids_BT, output_attentions=True).attentions
    packets = observed.packets()
    assert [packet.name for packet in packets] == ["h.0.attn", "h.1.attn"]
    for packet, pattern_BHQK in zip(packets, patterns, strict=True):
        assert torch.equal(packet.tensor, pattern_BHQK)
        assert packet.tensor.shape == (2, 3, 7, 7)
        assert torch.allclose(packet.tensor.sum(-1), torch.ones(2, 3, 7))


@torch.no_grad()
def test_a_fused_attention_has_none_and_says_so(rig, caplog):
    model = gpt2("sdpa")
    observed = rig(model, {"match": "h.0.attn", "select": 1, "rows": "last"})
    model(torch.randint(0, 60, (2, 7)))
    assert observed.packets() == []
    assert "select 1 is not in" in caplog.text
    assert observed.is_accounted_for("h.0.attn")


@torch.no_grad()
def test_heads_of_an_attention_are_its_modules_own(rig):
    model = gpt2("eager")
    rule = {"match": "h.1.attn.c_proj", "capture": "input"}
    observed = rig(model, {**rule, "preprocess": [{"heads": {"count": 3}}]})
    seen = []
    model.h[1].attn.c_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    model(torch.randint(0, 60, (2, 7)))
    (packet,) = observed.packets()
    assert torch.equal(packet.tensor, seen[0].reshape(2, 7, 3, 8))
    assert packet.encoding == "heads.3"


@torch.no_grad()
def test_heads_that_do_not_divide_are_said_and_end_nothing(rig, caplog):
    model = gpt2("eager")
    observed = rig(model, {"match": "h.0.mlp", "preprocess": [{"heads": {"count": 5}}]})
    for _ in range(20):
        model(torch.randint(0, 60, (2, 7)))
    assert observed.packets() == []
    assert "rows of 24 do not divide into 5 heads" in caplog.text
    assert observed.is_accounted_for("h.0.mlp")
