"""Text models under torch.compile and torch.export: the same rows and labels, one graph, nothing raised."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

pytestmark = pytest.mark.rest
WORDS, WIDTH = 1000, 8


class Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(WORDS, WIDTH)
        with torch.no_grad():
            self.embed.weight.copy_(torch.arange(float(WORDS))[:, None].expand(-1, WIDTH))
        self.mid, self.pool = torch.nn.Identity(), torch.nn.Identity()

    def forward(self, input_ids, attention_mask=None):
        return self._run(input_ids)

    def _run(self, ids):
        hidden = self.mid(self.embed(ids) * 1.0)
        return hidden.sum(1) + self.pool(hidden[:, 0])


class Plain(Named):
    def forward(self, ids):
        return self._run(ids)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def batch(length=12, padded=True):
    ids = torch.randint(1, WORDS, (4, length))
    mask = torch.ones_like(ids)
    if padded:
        mask[:2, length // 2 :] = 0
    return ids, mask


def wrapper(model):
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def in_place(model):
    model.compile(fullgraph=True, backend="aot_eager")
    return model


@pytest.mark.parametrize("first", ["hooks", "compile"])
@pytest.mark.parametrize("how", [wrapper, in_place])
@pytest.mark.parametrize("kind", [Named, Plain])
def test_rows_and_labels_are_those_of_the_model_that_is_not_compiled(watch, kind, how, first):
    model = kind().eval()
    hooks = ("mid", "pool", {"match": "embed", "capture": ["activation"]})
    if first == "hooks":
        observed, called = watch(model, *hooks), how(model)
    else:
        called = how(model)
        observed = watch(model, *hooks, called=called)
    wanted = 0
    with torch.no_grad():
        for length in (12, 12, 9, 7):
            ids, mask = batch(length)
            called(ids, mask) if kind is Named else called(ids)
            observed.clock.step()
            wanted += int(mask.sum()) if kind is Named else ids.numel()
    packets = observed.packets()
    tokens = {(p.step, p.microbatch, p.text): p.tensor for p in packets if p.name == "tokens"}
    assert len(tokens) == 4
    for hook in ("embed", "mid"):
        found = [p for p in packets if p.name == hook]
        assert sum(p.tensor.reshape(-1, WIDTH).shape[0] for p in found) == wanted
        for p in found:
            ids = tokens[p.step, p.microbatch, p.text][:, 0]
            assert p.tensor.reshape(-1, WIDTH)[:, 0].int().tolist() == ids.tolist(), hook
    assert [p.text for p in packets if p.name == "pool"] == [0] * 4, "one row per text"
    assert sum(counters["graph_break"].values()) == 0


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", [Named, Plain])
def test_a_text_model_is_exported_while_it_is_observed(watch, kind, strict):
    model = kind().eval()
    observed = watch(model, "mid", "pool")
    ids, mask = batch()
    given = (ids, mask) if kind is Named else (ids,)
    before = model(*given)
    exported = torch.export.export(model, given, strict=strict)
    assert "asys" not in str(exported.graph)
    assert torch.equal(exported.module()(*given), before)
    assert torch.equal(model(*given), before)
    assert [
        p.tensor.reshape(-1, WIDTH).shape[0] for p in observed.packets() if p.name == "mid"
    ] == [int(mask.sum()) if kind is Named else ids.numel()] * 2


class Beside(Named):
    """A picture of as many places as there are tokens comes with the text."""

    def __init__(self):
        super().__init__()
        self.vision = torch.nn.Identity()

    def forward(self, input_ids, pixels):
        return self._run(input_ids) + self.vision(pixels * 1.0).sum(1)


def test_what_comes_beside_a_text_is_not_labelled_with_it(watch):
    model = Beside().eval()
    observed, called = watch(model, "vision", "mid"), wrapper(model)
    with torch.no_grad():
        for _ in range(2):
            called(batch()[0], torch.rand(4, 12, WIDTH))
    packets = observed.packets()
    assert [(p.name, p.text) for p in packets] == [("mid", 0), ("vision", 0)] * 2
    assert sum(counters["graph_break"].values()) == 0
