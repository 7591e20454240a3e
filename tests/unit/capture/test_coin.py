"""One coin for all hooks of a call: they keep the same calls, each at its rate, and stay unbiased."""

from __future__ import annotations

import threading

import pytest
import torch

from asys_bench.backends.cpp_spmc.bus import CppSpmcProducer
from asys_bench.capture import hook_stream, sampling
from asys_bench.capture.sampling import Coin, FillController
from asys_bench.config.schema import MasterConfig
from asys_bench.config.sections.hooks import SamplingConfig
from asys_bench.contracts.coin import coin_key, toss
from asys_bench.run.streams import coin_keys, plan_streams
from asys_bench.sae.training.held_out import PacketKey
from asys_bench.sae.training.pairing import HookRows, Moment, MomentMatcher

from .conftest import usable_bus
from .test_text_inputs import EncoderDecoder, random_batch

KINDS = ["activation", "input", "gradient", "input_gradient"]


@pytest.fixture(params=["compiled", "general", "mp_queue"])
def backend(request, monkeypatch):
    """The compiled hook call, the general path of the same bus, and that of another."""
    if request.param == "mp_queue":
        return "mp_queue"
    if request.param == "general":
        monkeypatch.setattr(CppSpmcProducer, "capture_port", lambda *_: None)
    return usable_bus("cpp_spmc")


def test_a_coin_without_a_compiler_falls_the_same(monkeypatch):
    calls = [((step, 0, microbatch, -1), index)
             for step in range(3) for microbatch in range(2) for index in (0, 0, 1, 0)]  # fmt: skip
    expected = [Coin(5).toss(*call) for call in calls]
    monkeypatch.setattr(sampling, "compiled_toss", None)
    coin = Coin(5)
    assert [coin.toss(*call) for call in calls] == expected
    assert expected == [toss(5, *tags[:3], index) for tags, index in calls]


def rule(match, rate, **more):
    fields = {"sampling": {"max_rate": rate, "min_rate": rate}, **more}
    return {"match": match, **fields}


def chain(layers):
    return torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(layers)))


def kept(packets, name):
    return {(p.step, p.version, p.microbatch, p.call) for p in packets if p.name == name}


def test_the_hook_with_the_lower_rate_keeps_calls_that_the_other_keeps_too(rig, backend):
    observed = rig(model := chain(3), rule("0", 0.3), rule("1", 0.6), rule("2", 0.3),
                   backend=backend, capacity_packets=4096)  # fmt: skip
    for _ in range(200):
        for _ in range(5):
            model(torch.ones(1, 3))
        observed.clock.weights_updated()
        observed.clock.step()
    packets = observed.packets()
    low, high, same = (kept(packets, name) for name in "012")
    assert low == same
    assert low < high
    expected = {
        (step, step, microbatch, 0)
        for step in range(200)
        for microbatch in range(5)
        if toss(1, step, step, microbatch, 0) < 0.6
    }
    assert high == expected
    assert len(low) / 1000 == pytest.approx(0.3, abs=0.06)
    assert all(observed.is_accounted_for(name) for name in "012")


@pytest.mark.parametrize("rate", [0.3, 0.8])
def test_gradients_are_kept_with_the_activation_of_their_forward_call(rig, backend, rate):
    model = chain(2)
    observed = rig(model, rule("1", rate, capture=KINDS), backend=backend, capacity_packets=2048)
    losses = []
    for step in range(60):
        losses += [model(torch.ones(1, 3, requires_grad=True)).sum() for _ in range(2)]
        if step % 2:
            while losses:  # two steps late, the last first
                losses.pop().backward()
        observed.clock.step()
    packets = observed.packets()
    activations = kept(packets, "1")
    assert len(activations) == len([p for p in packets if p.name == "1"])
    assert 0 < len(activations) < 120
    names = [point.name for point in observed.points]
    assert len(names) == len(KINDS)
    for name in names:
        assert kept(packets, name) == activations, name


class Often(torch.nn.Module):
    """Calls `first` three times before it calls `second` three times."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

    def forward(self, x):
        for layer in (self.first, self.second):
            for _ in range(3):
                x = layer(x)
        return x


def test_the_nth_calls_of_two_modules_that_are_called_often_belong_together(rig, backend):
    model = Often()
    observed = rig(model, rule(["first", "second"], 0.5), backend=backend, capacity_packets=2048)
    for _ in range(100):
        model(torch.ones(1, 3))
    packets = observed.packets()
    assert kept(packets, "first") == kept(packets, "second")
    by_call = [sum(call == n for *_, call in kept(packets, "first")) for n in range(3)]
    assert all(30 <= count <= 70 for count in by_call)
    whole = sum(
        all(toss(1, 0, 0, microbatch, n) < 0.5 for n in range(3)) for microbatch in range(100)
    )
    assert whole < 30, "calls of one forward pass are drawn one by one"


def test_minibatches_that_differ_in_the_weights_alone_are_drawn_one_by_one(rig, backend):
    """As PPO's, whose step counts the environment's."""
    model = chain(2)
    observed = rig(model, rule("*", 0.5), backend=backend, capacity_packets=2048)
    observed.clock.microbatch = 0
    for _ in range(200):
        model(torch.ones(1, 3))
        observed.clock.weights_updated()
    packets = observed.packets()
    assert kept(packets, "0") == kept(packets, "1")
    assert 70 <= len(kept(packets, "0")) <= 130


def test_pairs_of_hooks_at_a_rate_of_0_3_lose_no_partner(rig, backend):
    """On a bus that refuses nothing: each packet that was captured finds its partner."""
    model = chain(3)
    observed = rig(model, rule("*", 0.3), backend=backend, capacity_packets=4096)
    for _ in range(1500):
        model(torch.ones(1, 3))
        observed.clock.step()
    matcher = MomentMatcher("02", shared_coin=True)
    captured, weights = 0, []
    for p in observed.packets():
        if p.name == "1":
            continue
        captured += p.name == "0"
        key: PacketKey = (0, 0, 0)
        moment = Moment(0, 0, p.step, p.version, p.microbatch, p.call)
        side = "02".index(p.name)
        pair = matcher.offer(side, moment, HookRows(p.tensor, key, 1 / p.rate, p.version))
        weights += [pair.weight] if pair is not None else []
    assert observed.value("dropped", "0") == observed.value("dropped", "2") == 0
    assert matcher.matched == captured > 350
    assert sum(weights) == pytest.approx(1500, rel=0.15)


class Follows(FillController):
    """Checks at each call: the lowest rate while anything is on the bus, the highest otherwise."""

    def observe(self, fill, now_ns):
        self.rate = self._policy.min_rate if fill > 0.02 else self._policy.max_rate
        self.calls_to_next = 1

    @property
    def calm_fill(self):
        return -1.0


@pytest.fixture
def follows(rig, backend, monkeypatch):
    """follows(model, names): a rig whose last hook has a rate of 0.6 or 0.3, the others `rate`."""
    if backend == "mp_queue":
        pytest.skip("what is on it is known a moment later")
    monkeypatch.setattr(hook_stream, "FillController", Follows)

    def make(model, *names, rate=0.5):
        *others, last = names
        lively = {"match": last, "sampling": {"max_rate": 0.6, "min_rate": 0.3}}
        return rig(model, *(rule(name, rate) for name in others), lively, backend=backend,
                   capacity_packets=32, on_full="sample")  # fmt: skip

    return make


def drain(observed):
    """(hook, rate) of what is on the bus."""
    with observed.bus.pull_batch("g", 64, timeout_s=0.0) as lease:
        return [(observed.bus.name_of(p.hook_id), p.sampling_rate) for p in lease]


def test_a_hooks_rate_does_not_depend_on_whether_another_kept_the_same_call(follows):
    """It checks the bus after the other has filled it. Were it to go by that, the weights of its rows
    would add up to 1.17 of the calls, and of those that both kept to 1."""
    model = chain(2)
    observed = follows(model, "0", "1")
    weights, both, seen = 0.0, 0.0, set()
    for _ in range(2500):
        model(torch.ones(1, 3))
        rates = dict(drain(observed))
        if "1" in rates:
            seen.add(round(rates["1"], 3))
            weights += 1 / rates["1"]
            both += 1 / min(rates.values()) if len(rates) == 2 else 0
    assert seen == {0.3, 0.6}
    assert weights / 2500 == pytest.approx(1, abs=0.07)
    assert both / 2500 == pytest.approx(1, abs=0.07)


def test_nor_on_any_coin_that_was_tossed_before_it_checked(follows):
    model = Often()
    observed = follows(model, "first", "second", rate=0.2)
    weights = [0.0] * 2
    for _ in range(1200):
        model(torch.ones(1, 3))
        packets = drain(observed)
        assert len({rate for name, rate in packets if name == "second"}) <= 1
        for name, rate in packets:
            weights[name == "second"] += 1 / rate
    assert [weight / 3600 for weight in weights] == pytest.approx([1, 1], abs=0.06)


def test_within_one_step_a_rate_falls_at_once_for_a_hook_that_is_ahead_of_the_others(follows):
    model = chain(1)
    observed = follows(model, "0")
    observed.clock.microbatch = 0
    for _ in range(60):
        model(torch.ones(1, 3))
    rates = [round(rate, 3) for _, rate in drain(observed)]
    assert rates[0] == 0.6
    assert set(rates[1:]) == {0.3}


def test_an_encoder_and_a_decoder_keep_the_tokens_of_the_calls_that_they_keep(watch):
    model = EncoderDecoder()
    hooks = [rule(name, 0.4) for name in ("encoder.block", "decoder.cross")]
    observed = watch(model, *hooks, capacity_packets=2048)
    tokens = next(s for s in observed.hooker._streams if s.name == "tokens")
    tokens.fill = FillController(SamplingConfig(max_rate=0.4, min_rate=0.4))
    observed.hooker.detach()
    observed.hooker.attach()
    observed.clock.microbatch = 0
    for _ in range(40):
        for _ in range(2):
            (ids, mask), (targets, target_mask) = random_batch(2, 5), random_batch(2, 6)
            model(ids, mask, targets, target_mask)
        observed.clock.step()
    packets = observed.packets()
    of = {
        name: sorted((p.step, p.text) for p in packets if p.name == name)
        for name in ("encoder.block", "decoder.cross", "tokens")
    }
    both = sorted(of["encoder.block"] + of["decoder.cross"])
    assert of["tokens"] == both
    assert 20 < len(both) < 120
    assert kept(packets, "encoder.block") == kept(packets, "decoder.cross")


def test_all_hooks_have_one_key_but_those_that_ask_for_their_own():
    model = chain(3)

    def keys(rank=0, **run):
        config = MasterConfig.model_validate(
            {
                "host": {"kind": "synthetic"},
                "hooks": [{"match": "0", "sampling": {"coin": "own"}}, {"match": "*"}],
                "run": run,
            }
        )
        return coin_keys(config, plan_streams(config, model).points, rank)

    own, first, second = keys()
    assert first == second == coin_key(0, 0)
    assert own == coin_key(0, 0, "0") != first
    assert len({*keys(), *keys(rank=1), *keys(seed=1)}) == 6


def test_threads_side_by_side_draw_calls_of_their_own_and_hooks_of_each_agree(rig, backend):
    model = chain(2)
    observed = rig(model, rule("*", 0.5), backend=backend, capacity_packets=4096)

    def call():
        for _ in range(150):
            model(torch.ones(1, 3))

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    packets = observed.packets()
    first, second = kept(packets, "0"), kept(packets, "1")
    assert len(first) == sum(p.name == "0" for p in packets)
    assert len(first ^ second) <= 6, "a call goes from alone to side by side, or back"
    assert 150 < len(first) < 300
