"""Labels of a host's rows: which forward call they are of, what travels, and that the host never notices."""

from __future__ import annotations

import gc
import math
import weakref

import numpy as np
import pytest
import torch

from asys_bench.contracts.labels import calls_of, label_names, text_code, text_of
from asys_bench.contracts.names import LABELS


class Policy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mid = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.mid(x)


class Reader(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 4)
        self.mid = torch.nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask=None):
        return self.mid(self.embed(input_ids))


def sent(rig):
    """[(names, key, values)] of the packets of labels."""
    return [
        (label_names(p.encoding), (p.step, p.version, p.microbatch), p.tensor.tolist())
        for p in rig.packets()
        if p.name == LABELS
    ]


def test_a_label_has_the_tags_of_the_forward_call_that_came_last(rig):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    one.clock.step(3)
    policy(torch.randn(2, 4))
    policy(torch.randn(2, 4))
    one.clock.weights_updated()  # an optimizer steps before the loss is known
    one.clock.label(loss=0.5)
    one.clock.step()
    one.clock.label(done=[True, False])  # and the step is over
    assert sent(one) == [(("loss",), (3, 0, 1), [0.5]), (("done",), (3, 0, 1), [[1.0], [0.0]])]
    assert one.is_accounted_for(LABELS)


@pytest.mark.parametrize("aside", ["constant", "paused"])
def test_a_label_is_never_of_a_call_on_the_constant_batch_or_in_a_pause(rig, aside):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    one.clock.step(3)
    policy(torch.randn(2, 4))
    setattr(one.clock, aside, True)
    policy(torch.randn(5, 4))
    one.clock.label(loss=0.1)
    setattr(one.clock, aside, False)
    one.clock.label(loss=0.5)
    assert sent(one) == [(("loss",), (3, 0, 0), [0.5])]


def test_a_constant_batch_within_another_is_no_call_that_a_label_is_of(rig):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    policy(torch.randn(2, 4))
    one.clock.constant = True
    one.clock.paused = False  # as `observation.constant()` does when it begins
    one.clock.constant = True
    policy(torch.randn(5, 4))
    one.clock.constant = False
    one.clock.label(loss=0.5)
    assert sent(one) == [(("loss",), (0, 0, 0), [0.5])]


def test_a_step_of_more_calls_than_are_remembered_still_has_a_last_one(rig, monkeypatch):
    monkeypatch.setattr("asys_bench.capture.tags.moments.MOST_MOMENTS", 3)
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    for _ in range(5):
        policy(torch.randn(2, 4))
        one.clock.label(loss=0.5)
    assert [key for _, key, _ in sent(one)] == [(0, 0, call) for call in range(5)]
    one.clock.step()
    policy(torch.randn(2, 4))
    one.clock.label(step=0, microbatch=4, loss=0.5)
    assert [key for _, key, _ in sent(one)] == [(0, 0, 4)]


def test_values_of_one_shape_travel_in_one_packet_under_their_names(rig):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    policy(torch.randn(2, 4))
    one.clock.label(
        reward=np.array([1.0, 2.0], np.float32), done=[False, True], loss=torch.tensor(0.25),
        action=torch.tensor([3, 2**40]), nothing=None,
    )  # fmt: skip
    packets = [p for p in one.packets() if p.name == LABELS]
    assert [label_names(p.encoding) for p in packets] == [("reward", "done", "action"), ("loss",)]
    assert packets[0].tensor.dtype is torch.float64, "2^40 is no float32 of every neighbour"
    assert packets[0].tensor.tolist() == [[1.0, 0.0, 3.0], [2.0, 1.0, 2.0**40]]
    assert packets[1].tensor.dtype is torch.float32
    assert packets[1].tensor.tolist() == [0.25]


def test_a_late_label_finds_the_call_of_its_step_with_the_weights_of_then(rig):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    for _ in range(4):
        policy(torch.randn(2, 4))
        one.clock.step(2)
    one.clock.weights_updated()
    policy(torch.randn(2, 4))
    for step in (2, 8):
        one.clock.label(step=step, advantage=[0.5, -0.5])
    assert [(key, values) for _, key, values in sent(one)] == [
        ((2, 0, 0), [[0.5], [-0.5]]),
        ((8, 1, 0), [[0.5], [-0.5]]),
    ]


def test_a_label_names_the_microbatch_that_it_is_of(rig):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    for _ in range(3):
        policy(torch.randn(2, 4))
    one.clock.label(microbatch=1, loss=1.0)
    one.clock.step()
    one.clock.label(step=0, microbatch=2, loss=2.0)
    assert [key for _, key, _ in sent(one)] == [(0, 0, 1), (0, 0, 2)]


def by_call(packet):
    """[(key, values)] of a packet of several calls."""
    key = packet.step, packet.version, packet.microbatch
    return [(tags, values.tolist()) for tags, values in calls_of(key, packet.tensor.numpy())]


def test_labels_of_several_steps_are_one_packet_that_says_which_calls_they_are_of(rig):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    for step in range(4):
        policy(torch.randn(2, 4))
        one.clock.step(2)
        if step == 2:
            one.clock.weights_updated()
    reward = np.arange(8, dtype=np.float32).reshape(4, 2)
    one.clock.label(step=range(0, 8, 2), reward=reward, done=reward > 3, loss=[0.5, 1.5, 2.5, 3.5])
    each, whole = [p for p in one.packets() if p.name == LABELS]
    assert (each.encoding, whole.encoding) == ("labels(reward,done)", "labels(loss)")
    assert (each.tensor.dtype, tuple(each.tensor.shape)) == (torch.float32, (4, 2, 5))
    assert by_call(each) == [
        ((0, 0, 0), [[0.0, 0.0], [1.0, 0.0]]),
        ((2, 0, 0), [[2.0, 0.0], [3.0, 0.0]]),
        ((4, 0, 0), [[4.0, 1.0], [5.0, 1.0]]),
        ((6, 1, 0), [[6.0, 1.0], [7.0, 1.0]]),
    ]
    assert by_call(whole) == [
        ((0, 0, 0), [0.5]), ((2, 0, 0), [1.5]), ((4, 0, 0), [2.5]), ((6, 1, 0), [3.5]),
    ]  # fmt: skip
    assert one.is_accounted_for(LABELS)


def test_steps_that_are_far_apart_or_come_backwards_keep_their_numbers(rig):
    one = rig(policy := Policy(), {"match": "mid"}, labels=1 << 40)
    far = [0, 2**24 + 1, 2**33 + 1]
    for step in far:
        one.clock.step_to(step)
        policy(torch.randn(2, 4))
    one.clock.label(step=far[::-1], reward=np.ones((3, 2), np.float32))
    (packet,) = [p for p in one.packets() if p.name == LABELS]
    assert [key[0] for key, _ in by_call(packet)] == far[::-1]


def test_of_several_steps_those_that_came_too_late_are_counted_and_the_others_sent(rig):
    one = rig(policy := Policy(), {"match": "mid"}, labels=4)
    for _ in range(10):
        policy(torch.randn(2, 4))
        one.clock.step()
    one.clock.label(step=[2, 7, 8, 99], reward=[[1, 2], [3, 4], [5, 6], [7, 8]])
    (packet,) = [p for p in one.packets() if p.name == LABELS]
    assert by_call(packet) == [((7, 0, 0), [[3.0], [4.0]]), ((8, 0, 0), [[5.0], [6.0]])]
    assert one.slot.metrics()["labels_unsent"].value == 2


def test_a_label_that_has_not_one_entry_for_each_step_is_refused(rig, caplog):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    for _ in range(3):
        policy(torch.randn(2, 4))
        one.clock.step()
    one.clock.label(step=[0, 1, 2], good=[1.0, 2.0, 3.0], short=[1.0, 2.0], single=4.0)
    (packet,) = [p for p in one.packets() if p.name == LABELS]
    assert packet.encoding == "labels(good)"
    assert one.slot.metrics()["labels_unsent"].value == 2
    assert any("label short of 3 steps has the shape (2,)" in line for line in caplog.messages)


def test_labels_of_many_steps_are_shared_out_over_packets_of_a_bounded_size(rig, monkeypatch):
    monkeypatch.setattr("asys_bench.capture.labels.PACKET_BYTES", 3 * 2 * 4 * 8)
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    for _ in range(8):
        policy(torch.randn(2, 4))
        one.clock.step()
    one.clock.label(step=range(8), reward=np.arange(16.0).reshape(8, 2))
    packets = [p for p in one.packets() if p.name == LABELS]
    assert [len(p.tensor) for p in packets] == [3, 3, 2]
    assert [call for p in packets for call in by_call(p)] == [
        ((step, 0, 0), [[2.0 * step], [2.0 * step + 1]]) for step in range(8)
    ]


def test_whether_a_call_is_captured_can_be_asked_before_its_labels_are_known(rig):
    one = rig(
        policy := Policy(),
        {"match": "mid", "sampling": {"max_rate": 0.3, "min_rate": 0.3}},
        labels=1000,
    )
    for _ in range(200):
        policy(torch.randn(2, 4))
        one.clock.label(step=one.clock.host_step)
        one.clock.step()
    one.clock.label(step=range(200), reward=np.ones((200, 2)))
    packets = one.packets()
    captured = {p.step for p in packets if p.name == "mid"}
    labelled = [key[0] for p in packets if p.name == LABELS for key, _ in by_call(p)]
    assert labelled == sorted(captured)
    assert 30 < len(captured) < 100
    assert one.is_accounted_for(LABELS)


def test_labels_of_several_texts_are_those_of_their_tokens(watch):
    one = watch(model := Reader(), "mid", labels=100)
    mask_BT = torch.tensor([[1, 1, 1], [0, 1, 1]])
    for _ in range(2):
        model(input_ids=torch.arange(6).view(2, 3), attention_mask=mask_BT)
        one.clock.step()
    one.clock.label(step=[0, 1], loss=torch.arange(12.0).view(2, 2, 3))
    packets = [p for p in one.packets() if p.name == LABELS]
    assert [(p.step, p.encoding) for p in packets] == [(0, "label(loss)"), (1, "label(loss)")]
    assert [p.tensor.squeeze(1).tolist() for p in packets] == [[0, 1, 2, 4, 5], [6, 7, 8, 10, 11]]


def test_what_comes_after_the_horizon_is_counted_and_said_once(rig, caplog):
    one = rig(policy := Policy(), {"match": "mid"}, labels=10)
    for _ in range(30):
        policy(torch.randn(2, 4))
        one.clock.step()
    policy(torch.randn(2, 4))
    one.clock.label(step=5, reward=1.0)
    one.clock.label(step=6, reward=1.0)
    one.clock.label(step=21, reward=1.0)
    assert [key[0] for _, key, _ in sent(one)] == [21]
    assert one.slot.metrics()["labels_unsent"].value == 2
    assert len([line for line in caplog.messages if "labels.horizon" in line]) == 1


def test_a_host_that_calls_parts_of_its_model_labels_the_step_that_it_is_in(rig):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    for step in range(3):
        policy.mid(torch.randn(2, 4))  # the policy as a whole is never called
        one.clock.label(reward=float(step))
        one.clock.step()
    one.clock.label(step=1, advantage=7.0)
    assert [(names, key[0]) for names, key, _ in sent(one)] == [
        (("reward",), 0), (("reward",), 1), (("reward",), 2), (("advantage",), 1),
    ]  # fmt: skip


def test_a_text_travels_as_its_number_and_says_once_what_it_is(rig):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    for _ in range(2):
        policy(torch.randn(2, 4))
        one.clock.label(domain=["code", "prose"], language=np.array(["en", "en"]))
    packets = [p for p in one.packets() if p.name == LABELS]
    said = [text_of(bytes(p.tensor[0].tolist())) for p in packets if p.encoding == "label_text"]
    assert said == ["code", "prose", "en"]
    (row, other), _ = (p.tensor.tolist() for p in packets if label_names(p.encoding))
    assert row == [text_code("code"), text_code("en")]
    assert other == [text_code("prose"), text_code("en")]
    assert text_code("code") != text_code("prose")
    assert text_code("code") > 2**32


def test_labels_of_a_padded_text_are_those_of_its_tokens(watch):
    one = watch(model := Reader(), "mid", labels=100)
    ids_BT = torch.arange(10).view(2, 5)
    mask_BT = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    model(input_ids=ids_BT, attention_mask=mask_BT)
    one.clock.label(loss=ids_BT.float(), domain=torch.tensor([10.0, 20.0]), total=3.0)
    packets = one.packets()
    (hook,) = [p for p in packets if p.name == "mid"]
    per_token, per_sequence, spread, whole = [p for p in packets if p.name == LABELS]
    assert per_token.tensor.squeeze(1).tolist() == [0, 1, 2, 3, 4, 7, 8, 9]
    assert len(hook.tensor) == 8
    assert per_token.text == spread.text == hook.text == 1
    assert per_sequence.tensor.tolist() == [[10.0], [20.0]]
    assert per_sequence.text == 0
    assert spread.tensor.squeeze(1).tolist() == [10.0] * 5 + [20.0] * 3
    assert whole.tensor.tolist() == [3.0]


def test_labels_of_a_call_that_no_hook_captured_stay_in_the_host(rig):
    one = rig(
        policy := Policy(),
        {"match": "mid", "sampling": {"max_rate": 0.3, "min_rate": 0.3}},
        labels=100,
    )
    for _ in range(200):
        policy(torch.randn(2, 4))
        one.clock.label(reward=1.0)
        one.clock.step()
    packets = one.packets()
    captured = {p.step for p in packets if p.name == "mid"}
    assert {p.step for p in packets if p.name == LABELS} == captured
    assert 30 < len(captured) < 100
    assert {round(p.rate, 6) for p in packets} == {0.3}
    assert one.is_accounted_for(LABELS)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {"a": 1},
        [1, [2, 3]],
        torch.empty(3, device="meta"),
        torch.eye(3).to_mkldnn(),
        torch.tensor([1j]),
        np.array([1j]),
        np.datetime64("2026-01-01"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_label_costs_the_host_nothing_and_is_said(rig, caplog, value):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    policy(torch.randn(2, 4))
    one.clock.label(good=1.0, bad=value)
    assert sent(one) == [(("good",), (0, 0, 0), [1.0])]
    assert one.slot.metrics()["labels_unsent"].value == 1
    assert any("labels" in line for line in caplog.messages)


def test_names_that_are_none_are_refused(rig, caplog):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    policy(torch.randn(2, 4))
    one.clock.label(**{"a,b": 1.0, "a)": 1.0, "x" * 65: 1.0, "fine_1": 2.0})
    assert [names for names, *_ in sent(one)] == [("fine_1",)]
    assert one.slot.metrics()["labels_unsent"].value == 3


def test_many_names_are_shared_out_over_packets(rig):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    policy(torch.randn(2, 4))
    labels = {f"a_rather_long_name_of_a_label_{n}": float(n) for n in range(12)}
    one.clock.label(**labels)
    found = {
        name: value
        for names, _, values in sent(one)
        for name, value in zip(names, values, strict=True)
    }
    assert found == labels


def test_nothing_of_the_host_is_kept_drawn_or_changed(rig):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    reward = torch.randn(2, requires_grad=True)
    before, state = reward.detach().clone(), torch.get_rng_state()
    policy(torch.zeros(2, 4))
    with torch.inference_mode():
        one.clock.label(reward=reward)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one.clock.label(reward=reward * 1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(reward, before)
    gone = weakref.ref(reward)
    del reward
    gc.collect()
    assert gone() is None
    values = [values for *_, values in sent(one)]
    assert values[0] == values[1] == [[x] for x in before.tolist()]


def test_in_a_pause_and_after_the_end_labels_go_nowhere(rig):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100)
    policy(torch.randn(2, 4))
    one.clock.paused = True
    one.clock.label(reward=1.0)
    one.clock.paused = False
    one.hooker.detach()
    one.clock.label(reward=1.0)
    assert sent(one) == []


def test_a_full_bus_refuses_a_label_and_counts_it(rig):
    one = rig(policy := Policy(), {"match": "mid"}, labels=100, capacity_packets=16, on_full="drop")
    policy(torch.randn(2, 4))
    for _ in range(200):
        one.clock.label(reward=1.0)
    assert one.value("calls", LABELS) == 200
    assert one.value("dropped", LABELS) > 100
    assert one.is_accounted_for(LABELS)


def test_without_anybody_who_wants_labels_there_are_none(rig):
    one = rig(policy := Policy(), {"match": "mid"})
    policy(torch.randn(2, 4))
    one.clock.label(reward=math.pi)
    assert [p.name for p in one.packets()] == ["mid"]
    assert not any(LABELS in name for name in one.slot.metrics())


def one_call_per_step(rig, policy, **hook):
    return rig(policy, {"match": "mid", **hook}, labels=100, one_call=True)


def test_a_host_of_one_call_per_step_labels_calls_of_which_nobody_took_note(rig):
    one = one_call_per_step(rig, policy := Policy())
    assert not policy._forward_pre_hooks
    for step in range(6):
        one.clock.step_to(step)
        if step in (2, 3, 5):
            one.clock.weights_updated()  # before the call of that step, as SB3's training does
        policy(torch.randn(2, 4))
        one.clock.label(step=step)
    one.clock.step_to(6)
    one.clock.weights_updated()  # of the step that nobody asks for
    one.clock.label(step=list(range(6)), reward=np.arange(12.0).reshape(6, 2))
    (packet,) = [p for p in one.packets() if p.name == LABELS]
    key = packet.step, packet.version, packet.microbatch
    found = list(calls_of(key, packet.tensor.numpy()))
    assert [key for key, _ in found] == [(s, v, 0) for s, v in enumerate((0, 0, 1, 2, 2, 3))]
    assert [values[..., 0].tolist() for _, values in found] == [
        [2 * s, 2 * s + 1] for s in range(6)
    ]


def test_such_a_host_cannot_label_what_was_no_call_of_it_or_too_long_ago(rig):
    one = one_call_per_step(rig, Policy())
    one.clock.step_to(500)
    for step, microbatch in ((399, None), (501, None), (450, 1)):
        one.clock.label(step=step, microbatch=microbatch, loss=0.5)
    assert sent(one) == []
    assert one.slot.metrics()["labels_unsent"].value == 3
    one.clock.label(step=400, loss=0.5)
    assert sent(one) == [(("loss",), (400, 0, 0), [0.5])]


def test_such_a_host_sends_no_label_of_a_call_that_was_left_out(rig):
    one = one_call_per_step(rig, policy := Policy(), sampling={"max_rate": 0.3})
    captured = set()
    for step in range(200):
        one.clock.step_to(step)
        policy(torch.randn(1, 4))
        one.clock.label(step=step)
        if step % 50 == 49:
            one.clock.step_to(step + 1)
            one.clock.label(step=list(range(step - 49, step + 1)), reward=np.ones((50, 1)))
    labelled = set()
    for packet in one.packets():
        if packet.name == LABELS:
            tags = packet.step, packet.version, packet.microbatch
            labelled |= {key[0] for key, _ in calls_of(tags, packet.tensor.numpy())}
        else:
            captured.add(packet.step)
    assert 30 < len(captured) < 90
    assert labelled == captured
