"""Hooks that capture nothing in a short run: one warning each, with the cause."""

import sys

import pytest
import torch

EVERYTHING_UNUSED = pytest.mark.parametrize(
    ("hook", "cause"),
    [
        ({"match": "unused"}, "the module is not called"),
        ({"match": "used", "phase": "eval"}, "never called in the phase 'eval'"),
        (
            {"match": "used", "capture": "input_gradient"},
            "the module's input needs no gradient, so that none arrives",
        ),
        ({"match": "frozen", "capture": "gradient"}, "the module's output needs no gradient"),
        ({"match": "unused", "capture": "gradient"}, "no backward pass has reached it"),
        (
            {"match": "frozen", "capture": "parameter_gradient"},
            "the parameter is frozen and gets no gradient",
        ),
    ],
)


@pytest.fixture(autouse=True)
def nothing_is_compiled():
    """What other tests have compiled of `Linear.forward` would be the cause."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x):
        return self.used(x) + self.frozen(x)


@EVERYTHING_UNUSED
def test_a_hook_that_captures_nothing_is_said_with_its_cause(rig, hook, cause):
    model = Model()
    made = rig(model, hook, {"match": "used"})
    for _ in range(3):
        model(torch.randn(2, 4)).sum().backward()
        made.clock.step()
    made.hooker.review()
    messages = made.hooker.notices.messages
    assert len(messages) == 1
    assert cause in messages[0]
    assert "in 3 host steps" in messages[0]
    made.hooker.review()
    assert made.hooker.notices.messages == messages


def test_the_projection_of_an_attention_that_is_never_called_is_named_with_the_fix(rig):
    model = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    made = rig(model, {"match": ["self_attn.out_proj", "linear1"]})
    for _ in range(4):
        model(torch.randn(4, 5, 32))
        made.clock.step()
    made.hooker.review()
    (message,) = made.hooker.notices.messages
    assert message.startswith("hook self_attn.out_proj: nothing was captured in 4 host steps")
    assert "torch.nn.MultiheadAttention uses this module's weights and never calls it" in message


def test_hooks_that_work_are_not_mentioned(rig):
    model = Model()
    made = rig(model, {"match": "used", "capture": ["activation", "input", "gradient"]})
    model(torch.randn(2, 4)).sum().backward()
    made.hooker.review()
    assert made.hooker.notices.messages == ()


@pytest.mark.rest
@pytest.mark.parametrize("backend", ["mp_queue", "numba_ring", "cpp_spmc"])
def test_a_tensor_larger_than_the_bus_is_said_once_and_does_not_lower_the_rate(
    rig, backend, caplog
):
    model = torch.nn.Sequential(torch.nn.Linear(8, 1024), torch.nn.Linear(1024, 4))
    made = rig(model, {"match": ["0", "1"]}, backend=backend, capacity_mib=1)
    for _ in range(100):
        model(torch.randn(512, 8))  # "0" makes 2 MiB a call
        made.clock.step()
        made.packets()
    assert made.value("calls", "0") == made.value("dropped", "0") == 100
    assert made.value("captured", "1") == 100
    made.hooker.review()
    (message,) = made.hooker.notices.messages
    assert "hook 0: a call's tensor ([512, 1024], 2 MiB) is larger than the bus" in message
    assert caplog.text.count("larger than the bus") == 1


def test_a_tensor_larger_than_the_bus_is_said_for_encoders_too(rig):
    model = torch.nn.Sequential(torch.nn.Linear(8, 1024))
    hook = {"match": "0", "preprocess": [{"cast": {"dtype": "bfloat16"}}]}
    made = rig(model, hook, capacity_mib=1, backend="cpp_spmc")
    model(torch.randn(1024, 8))
    (message,) = made.hooker.notices.messages
    assert "([1024, 1024], 2 MiB) is larger than the bus" in message
