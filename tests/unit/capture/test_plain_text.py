"""A model whose token ids have no name: recognised by the embedding that they go into, or left alone."""

from __future__ import annotations

import pytest
import torch

from asys_bench.capture.tags.text_inputs import TextInputs

WORDS, WIDTH = 1000, 8


def embedding(padding=None):
    """Its rows are their token id."""
    made = torch.nn.Embedding(WORDS, WIDTH, padding_idx=padding)
    with torch.no_grad():
        made.weight.copy_(torch.arange(float(WORDS))[:, None].expand(-1, WIDTH))
    return made


def labelled(packets, hook="mid"):
    """(value of a row, its token) for each row of `hook` that says which token it is."""
    tokens = {(p.step, p.microbatch, p.text): p.tensor for p in packets if p.name == "tokens"}
    found = []
    for p in packets:
        if p.name == hook and p.text:
            rows = p.tensor.reshape(-1, p.tensor.shape[-1])
            ids = tokens[p.step, p.microbatch, p.text][:, 0]
            assert len(rows) == len(ids)
            found += zip(rows[:, 0].int().tolist(), ids.tolist(), strict=True)
    return found


def rows(packets, hook="mid"):
    return sum(p.tensor.shape[:-1].numel() for p in packets if p.name == hook)


def right(packets, hook="mid"):
    found = labelled(packets, hook)
    assert all(value == token for value, token in found), hook
    return len(found)


def ids(batch=4, length=12):
    return torch.randint(1, WORDS, (batch, length))


class Plain(torch.nn.Module):
    """As nanoGPT: a name of its own for the ids, and positions in an embedding beside."""

    def __init__(self, padding=None):
        super().__init__()
        self.wte, self.wpe = embedding(padding), torch.nn.Embedding(64, WIDTH)
        self.mid = torch.nn.Identity()

    def forward(self, idx, targets=None):
        hidden = self.mid(self.wte(idx))
        return hidden + self.wpe(torch.arange(idx.shape[1]).expand(idx.shape))


@pytest.mark.parametrize("call", [lambda m, x: m(x), lambda m, x: m(targets=x.flip(0), idx=x)])
def test_integers_that_an_embedding_takes_are_text_from_the_first_call_on(watch, call):
    model = Plain()
    observed = watch(model, "wte", "mid", "wpe")
    for _ in range(3):
        call(model, ids())
        observed.clock.step()
    packets = observed.packets()
    assert right(packets) == rows(packets) == right(packets, "wte") == 3 * 48
    sent = [p.tensor for p in packets if p.name == "tokens"]
    assert len(sent) == 3
    assert sent[0][:, 1].tolist() == list(range(12)) * 4, "positions"


def test_padding_idx_says_which_rows_are_padding(watch):
    model = Plain(padding=0)
    with torch.no_grad():
        model.wte.weight[0] = 0
    observed = watch(model, "mid")
    text = ids()
    text[0, 5:] = 0
    text[1, :3] = 0
    model(text)
    packets = observed.packets()
    assert right(packets) == rows(packets) == 48 - 7 - 3
    positions = next(p.tensor[:, 1].tolist() for p in packets if p.name == "tokens")
    assert positions == [*range(5), *range(9), *range(12), *range(12)]


def test_the_module_that_takes_the_ids_may_be_inside_of_the_model(watch):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Plain()

        def training_step(self, batch):
            return self.net(batch["tokens"])

    model = Module()
    observed = watch(model, "net.mid")
    for _ in range(2):
        model.training_step({"tokens": ids()})
    packets = observed.packets()
    assert right(packets, "net.mid") == rows(packets, "net.mid") == 96


class Labels(torch.nn.Module):
    """A picture, or a row of noise, for a class."""

    def __init__(self):
        super().__init__()
        self.label, self.mid = torch.nn.Embedding(10, WIDTH), torch.nn.Identity()

    def forward(self, x, labels):
        return self.mid(x.flatten(2).transpose(1, 2) + self.label(labels)[:, None])


@pytest.mark.parametrize("picture", [torch.rand(4, WIDTH, 3, 4), torch.rand(4, WIDTH, 4)])
def test_class_labels_and_pictures_are_no_text(watch, caplog, picture):
    model = Labels()
    observed = watch(model, "mid", "label")
    for _ in range(2):
        model(picture, torch.tensor([3, 1, 4, 1]))
        observed.clock.step()
    packets = observed.packets()
    observed.hooker.review()
    assert not any(p.text or p.name == "tokens" for p in packets)
    assert rows(packets) == 2 * picture.flatten(2).shape[2] * 4
    assert caplog.text == ""


def test_pictures_beside_the_ids_are_not_taken_for_text(watch):
    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vision, self.language = torch.nn.Identity(), Plain()

        def forward(self, tokens, pixels):
            hidden = self.language(tokens)
            return hidden + self.vision(pixels.flatten(2))

    model = Both()
    observed = watch(model, "vision", "language.mid")
    model(ids(4, 12), torch.rand(4, 12, 2, 4))  # as many channels as tokens
    packets = observed.packets()
    assert right(packets, "language.mid") == 48
    assert labelled(packets, "vision") == []


def test_integers_that_no_embedding_takes_as_they_are_are_said_to_be_no_text(watch, caplog):
    class Tabular(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.mid = torch.nn.Embedding(300, WIDTH), torch.nn.Identity()

        def forward(self, categories):
            return self.mid(self.table(categories + torch.tensor([0, 100, 200])))

    model = Tabular()
    observed = watch(model, "mid")
    for _ in range(3):
        model(torch.randint(0, 100, (5, 3)))
    packets = observed.packets()
    assert not any(p.text or p.name == "tokens" for p in packets)
    assert rows(packets) == 45
    assert caplog.text.count("it is not taken for text") == 1
    assert len(caplog.records) == 1


class TwoTexts(torch.nn.Module):
    """An encoder and a decoder around one embedding, in one forward."""

    def __init__(self, one_by_one):
        super().__init__()
        self.embed, self.one_by_one = embedding(), one_by_one
        self.encoder, self.decoder = torch.nn.Identity(), torch.nn.Identity()

    def forward(self, source, target):
        memory = self.encoder(self.embed(source))
        if self.one_by_one:
            steps = [self.embed(target[:, t]) for t in range(target.shape[1])]
            hidden = torch.stack(steps, 1)
        else:
            hidden = self.embed(target.roll(1, 1))
        return self.decoder(hidden), memory


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_second_text_of_the_same_size_is_never_labelled_with_the_first(watch, caplog, one_by_one):
    model = TwoTexts(one_by_one)
    observed = watch(model, "encoder", "decoder")
    for _ in range(3):
        model(ids(), ids())
    packets = observed.packets()
    right(packets, "encoder")
    assert labelled(packets, "decoder") == []
    assert caplog.text.count("beside the text") == 1


def test_a_model_without_an_embedding_is_left_alone():
    assert TextInputs.of(torch.nn.Sequential(torch.nn.Linear(2, 2))) is None
    assert TextInputs.of(torch.nn.Embedding(3, 2)) is None
