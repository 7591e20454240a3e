"""Which streams a run has, and which sinks get them."""

from __future__ import annotations

import pytest
import torch

from asys_bench.config.assembly import plan_workers
from asys_bench.config.schema import MasterConfig
from asys_bench.contracts.names import TOKENS
from asys_bench.run.streams import plan_streams


class Reader(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 4)
        self.mid = torch.nn.Linear(4, 3)

    def forward(self, input_ids):
        return self.mid(self.embed(input_ids))


SINKS = {
    "alarm": {"watch": [{"metric": "sae_fvu"}]},
    "probe": {},
    "reservoir": {},
    "sae_trainer": {},
    "sae_watch": {"saes": {"*": "known"}},
}


def config_of(**sinks):
    return MasterConfig.model_validate(
        {"host": {"kind": "synthetic"}, "hooks": [{"match": "mid"}], "sinks": sinks}
    )


@pytest.mark.parametrize("kind", SINKS)
def test_tokens_are_captured_for_no_sink_that_reads_rows_of_hooks_alone(kind):
    config = config_of(one={"kind": kind, "options": SINKS[kind]})
    assert plan_streams(config, Reader()).side == []


def test_a_feature_index_gets_the_tokens_beside_its_hooks():
    config = config_of(index={"kind": "feature_index"}, trainer={"kind": "sae_trainer"})
    streams = plan_streams(config, Reader())
    assert streams.side == [TOKENS]
    groups = streams.with_side_streams(config, plan_workers(config, streams.trained)[0])
    assert {group.name: group.hooks or tuple(streams.names) for group in groups} == {
        "index": ("mid", TOKENS),
        "trainer": ("mid",),
    }


@pytest.mark.parametrize("kind", SINKS)
def test_tokens_for_an_archive_go_to_no_sink_that_reads_rows_of_hooks_alone(kind):
    config = config_of(archive={"kind": "archiver"}, one={"kind": kind, "options": SINKS[kind]})
    streams = plan_streams(config, Reader())
    groups = streams.with_side_streams(config, plan_workers(config, streams.trained)[0])
    assert {group.name: TOKENS in (group.hooks or streams.unhooked) for group in groups} == {
        "archive": True,
        "one": False,
    }
