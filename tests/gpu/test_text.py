"""A text model on a GPU: nothing synchronises, and readers get what a host on the CPU sends."""

from __future__ import annotations

import pytest
import torch

from asys_bench.capture.tags.text_inputs import TextInputs
from asys_bench.config.sections.hooks import HookConfig

from ..unit.capture.conftest import Rig
from ..unit.capture.test_text_inputs import Text, causal, random_batch


@pytest.fixture
def observe():
    made = []

    def make(model):
        rules = [HookConfig.model_validate({"match": "mid"})]
        made.append(Rig(model, rules, text=TextInputs.of(model), capacity_packets=1024))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def arrived(rig):
    streamer = rig.hooker._offload._streamer
    assert streamer is None or streamer.drain(60) == 0
    return sorted(
        (p.name, p.step, p.microbatch, p.text, p.tensor.reshape(-1, p.tensor.shape[-1]).tolist())
        for p in rig.packets()
    )


def forms(mask):
    square = causal(mask, 0)
    lowest = torch.finfo(torch.float32).min
    yield from (mask, mask.bool(), mask.float(), square)
    yield torch.zeros(mask.shape).masked_fill(mask == 0, lowest)
    yield torch.zeros(square.shape).masked_fill(~square, lowest)


def test_ids_and_masks_leave_a_gpu_without_a_synchronisation(observe):
    here, there = Text(), Text().cuda()
    on_cpu, on_gpu = observe(here), observe(there)
    calls = [
        (ids, form) for _ in range(20) for ids, mask in [random_batch()] for form in forms(mask)
    ]
    moved = [(ids.cuda(), mask.cuda()) for ids, mask in calls]
    with torch.no_grad():
        there(*moved[0])  # the allocator's first use
        here(*calls[0])
        torch.cuda.synchronize()
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode(
            "error"
        )  # a call of ours that synchronises raises, and is noted
        try:
            for call in moved[1:]:
                there(*call)
        finally:
            torch.cuda.set_sync_debug_mode(before)
        for call in calls[1:]:
            here(*call)
    found = arrived(on_gpu)
    assert found == arrived(on_cpu)
    assert len(found) == 2 * len(calls)
    assert on_gpu.value("skipped", "mid") == on_gpu.value("skipped", "tokens") == 0
