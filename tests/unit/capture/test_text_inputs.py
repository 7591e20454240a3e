"""Padding is left out, and every captured row has its token and position, or none."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.capture.tags.padding_mask import real_tokens
from asys_bench.capture.tags.text_inputs import TextInputs

WORDS, WIDTH = 1000, 8


class Cache:
    def __init__(self, length):
        self.length = length

    def get_seq_length(self):
        return self.length


def embedding():
    """Its rows are their token id."""
    made = torch.nn.Embedding(WORDS, WIDTH)
    with torch.no_grad():
        made.weight.copy_(torch.arange(float(WORDS))[:, None].expand(-1, WIDTH))
    return made


class Text(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = embedding()
        self.mid = torch.nn.Identity()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None):
        return self.mid(self.embed(input_ids))


def labelled(packets, hook="mid"):
    """(value of a row, its token) for each row of `hook` that says which token it is."""
    tokens = {}
    for packet in packets:
        if packet.name == "tokens":
            key = (packet.step, packet.microbatch, packet.text)
            assert key not in tokens, "two texts of one number"
            tokens[key] = packet.tensor
    found = []
    for packet in packets:
        if packet.name == hook and packet.text:
            rows = packet.tensor.reshape(-1, packet.tensor.shape[-1])
            ids = tokens[packet.step, packet.microbatch, packet.text][:, 0]
            assert len(rows) == len(ids)
            found += zip(rows[:, 0].int().tolist(), ids.tolist(), strict=True)
    return found


def rows(packets, hook="mid"):
    return [
        value
        for packet in packets
        if packet.name == hook
        for value in packet.tensor.reshape(-1, packet.tensor.shape[-1])[:, 0].int().tolist()
    ]


def token_rows(packets):
    return [packet.tensor.tolist() for packet in packets if packet.name == "tokens"]


def random_batch(batch=4, length=12, padded=True):
    """(ids, mask) with padding of 0."""
    ids = torch.randint(1, WORDS, (batch, length))
    mask = torch.ones_like(ids)
    if padded:
        mask[: batch // 2, length // 2 :] = 0
    return ids * mask, mask


def test_rows_are_tokens_in_order_with_their_positions(watch):
    model = Text()
    observed = watch(model, "mid")
    model(torch.tensor([[5, 6, 7], [8, 9, 10]]))
    packets = observed.packets()
    assert token_rows(packets) == [[[5, 0], [6, 1], [7, 2], [8, 0], [9, 1], [10, 2]]]
    assert labelled(packets) == [(i, i) for i in range(5, 11)]


def test_padding_on_either_side_is_left_out_and_positions_start_at_the_first_token(watch):
    model = Text()
    observed = watch(model, "mid")
    ids, mask = torch.tensor([[5, 6, 0], [0, 9, 10]]), torch.tensor([[1, 1, 0], [0, 1, 1]])
    model(ids, attention_mask=mask)
    model(torch.tensor([[1, 2]]))
    packets = observed.packets()
    assert token_rows(packets) == [[[5, 0], [6, 1], [9, 0], [10, 1]], [[1, 0], [2, 1]]]
    assert rows(packets) == [5, 6, 9, 10, 1, 2], "the mask of an earlier call"
    assert labelled(packets) == [(i, i) for i in (5, 6, 9, 10, 1, 2)]


def test_with_a_cache_only_new_tokens_count_and_positions_go_on(watch):
    model = Text()
    observed = watch(model, "mid")
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    model(input_ids=torch.tensor([[7], [8]]), attention_mask=mask)
    model(torch.tensor([[7, 8]]), past_key_values=Cache(5))
    assert token_rows(observed.packets()) == [[[7, 2], [8, 3]], [[7, 5], [8, 6]]]


def test_positions_that_are_given_are_taken(watch):
    model = Text()
    observed = watch(model, "mid")
    model(torch.tensor([[7, 8], [1, 2]]), position_ids=torch.tensor([[4, 5]]))
    assert token_rows(observed.packets()) == [[[7, 4], [8, 5], [1, 4], [2, 5]]]


def test_rows_of_a_single_sequence_carry_its_position_and_later_calls_do_not(watch):
    model = Text()
    observed = watch(model, "mid")
    model(torch.tensor([[7]]), past_key_values=Cache(12))
    model(torch.tensor([[7, 8], [1, 2], [3, 4]]))
    assert [p.position for p in observed.packets() if p.name == "mid"] == [12, -1]


class Broken:
    def get_seq_length(self):
        raise RuntimeError("no")


def test_trouble_costs_its_own_call_the_tokens_and_never_reaches_the_host(watch, caplog):
    model = Text()
    observed = watch(model, "mid")
    ids = torch.tensor([[5, 6]])
    for _ in range(20):
        assert model(ids, past_key_values=Broken()).shape == (1, 2, WIDTH)
        model(ids)
        observed.clock.step()
    texts = [packet.text for packet in observed.packets() if packet.name == "mid"]
    assert texts == [0, 1] * 20
    assert caplog.text.count("could not be read (RuntimeError: no)") == 1
    assert "no longer read" not in caplog.text


def test_where_every_call_is_trouble_the_reading_of_text_switches_itself_off(watch, caplog):
    model = Text()
    observed = watch(model, "mid")
    ids = torch.tensor([[5, 6]])
    for _ in range(20):
        assert model(ids, past_key_values=Broken()).shape == (1, 2, WIDTH)
    assert caplog.text.count("no longer read") == 1
    model(ids)
    assert {packet.text for packet in observed.packets()} == {0}


@pytest.mark.parametrize("mask", [torch.tensor([[1, 1, 0], [1, 1, 1]]), object()])
def test_a_mask_that_cannot_be_read_is_said_and_its_rows_stay(watch, caplog, mask):
    model = Text()
    observed = watch(model, "mid")
    for _ in range(2):
        model(torch.tensor([[5, 6]]), attention_mask=mask)
    assert rows(observed.packets()) == [5, 6, 5, 6]
    assert caplog.text.count("cannot be read") == 1


@pytest.mark.parametrize("counting", [False, True], ids=["marked", "not marked"])
def test_tokens_are_those_of_the_same_call_whether_steps_are_marked_or_not(watch, counting):
    model = Text()
    observed = watch(model, "mid")
    if counting:
        observed.clock.count_calls()
    for _ in range(20):
        model(torch.randint(1, WORDS, (4, 12)))
        if not counting:
            observed.clock.step()
    found = labelled(observed.packets())
    assert len(found) == 960
    assert all(value == token for value, token in found)


@pytest.mark.parametrize("backend", ["cpp_spmc", "mp_queue"])
@pytest.mark.parametrize("counting", [False, True], ids=["marked", "not marked"])
def test_threads_have_masks_and_tokens_of_their_own(watch, counting, backend):
    class Slow(Text):
        def forward(self, input_ids, attention_mask=None):
            hidden = self.embed(input_ids)
            met.wait()  # all are in their calls now
            return self.mid(hidden)

    model = Slow()
    met = threading.Barrier(3)
    observed = watch(model, "mid", backend=backend, on_full="block")
    if counting:
        observed.clock.count_calls()
    batches = [random_batch(4, 6 + 3 * n) for n in range(3)]

    def work(ids, mask):
        for _ in range(10):
            model(ids, mask)

    threads = [threading.Thread(target=work, args=batch) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    packets = observed.packets()
    found = labelled(packets)
    assert len(found) == len(rows(packets)) == 10 * sum(int(m.sum()) for _, m in batches)
    assert 0 not in rows(packets), "padding"
    assert all(value == token for value, token in found)


def test_calls_of_several_threads_never_share_a_key(rig):
    """Inputs and outputs of one module join by step, microbatch and call, whoever called."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Identity()

        def forward(self, x):
            met.wait()
            self.layer(x)
            return self.layer(x)

    model = Net()
    met = threading.Barrier(3)
    observed = rig(model, {"match": "layer", "capture": ["activation", "input"]}, on_full="block")

    def work(number):
        for index in range(8):
            x = torch.full((2, 3), 100.0 * number + index)
            model(x)
            model.layer(x)  # and outside of a call

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sides = {"layer": {}, "layer:input": {}}
    for p in observed.packets():
        key = (p.step, p.microbatch, p.call)
        assert key not in sides[p.name], "two packets of one key"
        sides[p.name][key] = p.tensor[0, 0].item()
    assert len(sides["layer"]) == 72
    outputs, inputs = sides["layer"], sides["layer:input"]
    assert all(outputs[key] == inputs[key] for key in outputs.keys() & inputs.keys())
    in_calls = {key for key in outputs if key[2] < 2**31}
    assert len(in_calls) == 48
    assert in_calls <= inputs.keys()


def test_an_inner_module_called_alone_is_cut_with_no_mask_and_labelled_with_nothing(watch, caplog):
    model = Text()
    observed = watch(model, "mid")
    ids, mask = random_batch()
    model(ids, mask)
    model.mid(torch.ones(4, 12, WIDTH))
    *_, last = observed.packets()
    assert (last.text, last.tensor.shape) == (0, (4, 12, WIDTH))
    assert "outside of what takes the text" in caplog.text


class Parts(torch.nn.Module):
    """A text model and the forms that its hidden states take on the way."""

    def __init__(self):
        super().__init__()
        self.embed = embedding()
        for name in PARTS:
            setattr(self, name, torch.nn.Identity())

    def forward(self, input_ids, attention_mask=None):
        hidden = self.block(self.embed(input_ids))
        batch, length, width = hidden.shape
        flat = self.router(hidden.reshape(-1, width))
        self.expert(flat[1::3])
        self.shuffled(flat[torch.randperm(len(flat))])
        self.pooler(hidden[:, -1])
        self.time_first(hidden.transpose(0, 1).contiguous())
        self.channels_first(hidden.transpose(1, 2).contiguous())
        self.flat_time_first(hidden.transpose(0, 1).reshape(-1, width))
        self.heads(hidden.view(batch, length, 2, -1).transpose(1, 2).contiguous())
        self.last(hidden[:, -1:])
        return hidden


PARTS = ("block", "router", "expert", "shuffled", "pooler", "time_first", "channels_first",
         "flat_time_first", "heads", "last")  # fmt: skip
TOKEN_ROWS = {"embed", "block", "router"}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("batch", "length"), [(4, 12), (5, 5), (8, 8), (2, 8), (8, 3), (3, 1), (1, 6), (1, 8), (2, 4)]
)
def test_no_row_is_labelled_wrong_whatever_sizes_are_equal(watch, caplog, batch, length, padded):
    """The width is 8: B = T, T = E, B = E, B * T = E and B = T = E are among them."""
    model = Parts()
    observed = watch(model, *PARTS, "embed")
    ids, mask = random_batch(batch, length, padded)
    for _ in range(2):
        model(ids, mask)
    packets = observed.packets()
    for hook in ("embed", *PARTS):
        found = labelled(packets, hook)
        if hook != "heads" and not (length == 1 and hook in ("pooler", "last")):
            assert all(value == token for value, token in found), hook
        if hook not in TOKEN_ROWS:
            assert not found or length == 1 or batch == 1, hook
        elif hook == "embed" or len({batch, length, WIDTH, batch * length}) == 4:
            assert len(found) == len(rows(packets, hook)) == 2 * int(mask.sum())
        if not found and int(mask.sum()):
            assert f"hook {hook}:" in caplog.text, "left out, and not a word"


def test_a_hook_that_was_seen_to_follow_its_text_is_believed_where_sizes_are_equal(watch):
    model = Parts()
    observed = watch(model, *PARTS)
    for batch, length in ((4, 12), (8, 8), (5, 5), (3, 8)):
        ids, mask = random_batch(batch, length)
        model(ids, mask)
    packets = observed.packets()
    real = 36 + 48 + 25 - 2 * 3 + 24 - 4
    for hook in PARTS:
        found = labelled(packets, hook)
        assert all(value == token for value, token in found)
        assert len(found) == (real if hook in TOKEN_ROWS else 0), hook


class Stack(torch.nn.Module):
    """As T5's: encoder and decoder are of one class."""

    def __init__(self):
        super().__init__()
        self.embed, self.block, self.cross = embedding(), torch.nn.Identity(), Cross()

    def forward(self, input_ids=None, attention_mask=None, encoder_hidden_states=None):
        hidden = self.block(self.embed(input_ids))
        if encoder_hidden_states is not None:
            hidden = self.cross(hidden, encoder_hidden_states)
        return hidden


class Cross(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.keys = torch.nn.Identity()

    def forward(self, hidden, states):
        self.keys(states)
        return hidden


class EncoderDecoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.head = Stack(), Stack(), torch.nn.Identity()

    def forward(self, input_ids, attention_mask, decoder_input_ids, decoder_attention_mask=None):
        states = self.encoder(input_ids, attention_mask)
        return self.head(self.decoder(decoder_input_ids, decoder_attention_mask, states))


@pytest.mark.parametrize("length", [7, 12], ids=["another length", "the same length"])
def test_encoder_and_decoder_have_ids_and_masks_of_their_own(watch, length):
    model = EncoderDecoder()
    hooks = ("encoder.block", "decoder.block", "decoder.cross", "decoder.cross.keys", "head")
    observed = watch(model, *hooks)
    (ids, mask), (targets, target_mask) = random_batch(4, 12), random_batch(4, length)
    model(ids, mask, targets, target_mask)
    packets = observed.packets()
    for hook, real in (("encoder.block", mask), ("decoder.cross", target_mask)):
        found = labelled(packets, hook)
        assert len(found) == int(real.sum())
        assert all(value == token for value, token in found)
    assert len(labelled(packets, "decoder.block")) == (int(target_mask.sum()) if length == 7 else 0)
    assert labelled(packets, "decoder.cross.keys") == labelled(packets, "head") == []


class Wrapped(torch.nn.Module):
    def __init__(self, how):
        super().__init__()
        self.model, self.how = Text(), how

    def training_step(self, batch):
        return self.model(**batch)

    def forward(self, *args, **kwargs):
        return getattr(self, self.how)(*args, **kwargs)

    def features(self, features, **_):
        return self.model(**features)

    def arguments(self, *args, **kwargs):
        return self.model.forward(*args, **kwargs)  # as PEFT's, past the hooks of the model


@pytest.mark.parametrize(
    ("how", "call"),
    [
        ("", lambda m, ids, mask: m.training_step({"input_ids": ids, "attention_mask": mask})),
        ("features", lambda m, ids, mask: m({"input_ids": ids, "attention_mask": mask})),
        ("arguments", lambda m, ids, mask: m(input_ids=ids, attention_mask=mask)),
        ("arguments", lambda m, ids, mask: m(ids, mask)),
    ],
    ids=["Lightning", "sentence-transformers", "PEFT by name", "PEFT by place"],
)
def test_the_text_is_found_wherever_the_module_sits_that_takes_it(watch, how, call):
    model = Wrapped(how)
    observed = watch(model, "model.mid")
    ids, mask = random_batch()
    for _ in range(3):
        call(model, ids, mask)
        observed.clock.step()
    packets = observed.packets()
    found = labelled(packets, "model.mid")
    assert len(found) == len(rows(packets, "model.mid")) == 3 * int(mask.sum())
    assert all(value == token for value, token in found)


def test_one_call_of_nested_roots_sends_its_tokens_once(watch):
    model = Wrapped("features")
    observed = watch(model, "model.mid")
    ids, mask = random_batch()
    model({"input_ids": ids, "attention_mask": mask})
    assert len(token_rows(observed.packets())) == 1


def test_two_texts_in_one_call_are_told_apart(watch):
    class Twins(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = Text()

        def forward(self, left, right):
            return self.tower(left), self.tower(right)

    model = Twins()
    observed = watch(model, "tower.mid")
    model(random_batch(padded=False)[0], random_batch(padded=False)[0])
    found = labelled(observed.packets(), "tower.mid")
    assert len(found) == 96
    assert all(value == token for value, token in found)


def test_beside_pictures_only_the_module_that_takes_the_text_alone_decides(watch):
    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vision, self.language = torch.nn.Identity(), Text()

        def forward(self, input_ids, pixel_values, attention_mask=None):
            self.vision(pixel_values.flatten(2))
            return self.language(input_ids, attention_mask)

    model = Both()
    observed = watch(model, "vision", "language.mid")
    ids, mask = random_batch(4, 12)
    model(ids, torch.randn(4, 12, 2, 2), mask)  # as many channels as tokens
    packets = observed.packets()
    assert labelled(packets, "vision") == []
    assert len(labelled(packets, "language.mid")) == len(token_rows(packets)[0]) == 36


def test_gradients_have_the_tokens_of_their_own_forward_call(watch):
    class Loss(Text):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Linear(WIDTH, WIDTH, bias=False)

        def forward(self, input_ids, attention_mask=None):
            hidden = self.mid(self.scale(self.embed(input_ids)))
            return (hidden * input_ids[..., None]).sum()

    model = Loss()
    observed = watch(model, {"match": "mid", "capture": ["gradient", "input_gradient"]})
    losses = [model(*random_batch(4, length)) for length in (12, 10)]
    for loss in losses:  # as in pipeline parallelism: both forward passes first
        loss.backward()
    packets = observed.packets()
    for hook in ("mid:gradient", "mid:input_gradient"):
        found = labelled(packets, hook)
        assert len(found) == 36 + 30
        assert all(value == token for value, token in found), hook


def test_models_without_text_are_left_alone():
    assert TextInputs.of(torch.nn.Linear(2, 2)) is None


def causal(mask_BT, static=0):
    """bool[B, 1, T, S] as transformers makes it, for a call without cached tokens."""
    length = mask_BT.shape[1]
    causal_TT = torch.ones(length, length).tril().bool()
    open_BTT = causal_TT & mask_BT.bool()[:, None]
    return torch.nn.functional.pad(open_BTT, (0, static))[:, None]


@pytest.mark.parametrize("static", [0, 9])
@given(bits=st.integers(0, 2**12 - 1), left=st.booleans())
def test_masks_of_queries_and_keys_say_the_same_as_those_of_keys(static, bits, left):
    lengths = [1 + (bits >> (3 * i)) % 6 for i in range(4)]
    mask = torch.tensor(
        [[0] * (6 - n) + [1] * n if left else [1] * n + [0] * (6 - n) for n in lengths]
    )
    square = causal(mask, static)
    additive = torch.zeros(square.shape).masked_fill(~square, torch.finfo(torch.float32).min)
    opened = square | ~square.any(-1, keepdim=True)  # rows that would see nothing see everything
    for form in (
        mask,
        mask.bool(),
        mask.float(),
        square,
        additive,
        opened,
        {"full_attention": square},
    ):
        assert torch.equal(real_tokens(form, (4, 6), 0).real_BT, mask.bool())
    decoded = square[:, :, -1:, :]  # the last token alone, the others are cached
    for seen in (5, torch.tensor(5)):
        found = real_tokens(decoded, (4, 1), seen).real_BT
        assert torch.equal(found[:, 0], mask[:, -1].bool())


@pytest.mark.parametrize("mask", [torch.zeros(1, 2), torch.ones(2, 2), torch.ones(1, 1), None, "x"])
def test_what_is_no_padding_mask_is_not_read_as_one(mask):
    found = real_tokens(mask, (1, 2), 0)
    assert found is None or not found.is_of_a_mask
    assert found is None or bool(found.real_BT.all())
