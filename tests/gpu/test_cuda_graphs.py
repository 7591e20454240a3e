"""A host that captures CUDA graphs: its graph holds nothing of ours, and what replays hide is said."""

from __future__ import annotations

import torch

from asys_bench.capture.offload import GRAPHED
from asys_bench.capture.points.out_of_reach import out_of_reach
from asys_bench.config.sections.hooks import HookConfig

from ..unit.capture.conftest import Rig


def test_a_captured_graph_replays_as_without_hooks_and_is_said():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64)).cuda().eval()
    x = torch.randn(8, 64, device="cuda")
    rig = Rig(model, [HookConfig.model_validate({"match": "0"})])
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(3):
                model(x)
        torch.cuda.current_stream().wait_stream(side)
        assert rig.hooker.notices.messages == ()
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            out = model(x)
        assert rig.hooker.notices.messages == (GRAPHED,)
        x.copy_(torch.randn(8, 64))
        for _ in range(3):
            graph.replay()
        with torch.no_grad():
            assert torch.equal(out, model(x))
        assert rig.hooker._offload._streamer.drain(60) == 0
        assert len(rig.packets()) == 4
        (line,) = out_of_reach(rig.points)
        assert line.startswith("this process has captured a CUDA graph")
    finally:
        rig.close()


def test_a_module_that_torch_has_graphed_is_said_at_the_start():
    model = torch.nn.Sequential(
        torch.nn.Sequential(torch.nn.Linear(8, 8)), torch.nn.Linear(8, 8)
    ).cuda()
    x = torch.randn(4, 8, device="cuda", requires_grad=True)
    model[0] = torch.cuda.make_graphed_callables(model[0], (x,))
    rig = Rig(model, [HookConfig.model_validate({"match": ["0", "0.0", "1"]})])
    try:
        (line,) = rig.hooker.notices.messages
        assert line.startswith(
            "hook 0.0: inside of a module that torch.cuda.make_graphed_callables"
        )
        model(x)
        assert rig.hooker._offload._streamer.drain(60) == 0
        assert sorted(p.name for p in rig.packets()) == ["0", "1"]
    finally:
        rig.close()
