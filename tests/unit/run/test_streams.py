"""Which streams a run has, and which sinks get them."""

from __future__ import annotations

import json

import pytest
import torch

from asys_bench.capture.points.hookpoints import HookError
from asys_bench.config.assembly import plan_workers
from asys_bench.config.schema import MasterConfig
from asys_bench.contracts.names import LABELS, TOKENS
from asys_bench.run.streams import hooks_differ, plan_streams, tell
from asys_bench.system.launcher import LocalRanks


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


# Ranks whose hooks differ.


class Stage(torch.nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in layers})


def staged(**rule):
    return MasterConfig.model_validate(
        {
            "host": {"kind": "synthetic"},
            "hooks": [{"match": "layers.*", **rule}],
            "sinks": {"archive": {"kind": "archiver"}},
        }
    )


FIRST, SECOND = (LocalRanks(rank, rank, 2, "job", 2) for rank in (0, 1))


def test_the_owner_plans_for_the_hooks_of_every_rank():
    config, other = staged(missing="ok"), Stage("2", "3")
    told = tell(config, other, other, SECOND)
    json.dumps(told)
    own = Stage("0", "1")
    streams = plan_streams(config, own, own, FIRST, [told])
    assert streams.trained == ["layers.0", "layers.1", "layers.2", "layers.3"]
    assert [point.name for point in streams.points] == ["layers.0", "layers.1"]
    assert [one["name"] for one in streams.described] == [*streams.trained, LABELS]
    assert "identity" in streams.encodings
    assert streams.unmatched == []


def test_a_stage_without_any_of_the_modules_has_no_points():
    config, empty = staged(missing="ok"), torch.nn.Linear(4, 4)
    streams = plan_streams(config, empty, empty, SECOND)
    assert streams.points == []
    assert streams.unmatched == ["layers.*"]
    own = Stage("0")
    assert (
        plan_streams(config, own, own, FIRST, [tell(config, empty, empty, SECOND)]).unmatched == []
    )


def test_a_glob_that_matches_nowhere_is_an_error_unless_it_may_be_missing():
    with pytest.raises(HookError, match="matches no module"):
        plan_streams(staged(), torch.nn.Linear(4, 4))
    assert not hooks_differ(staged())
    assert hooks_differ(staged(missing="ok"))


def test_ranks_of_a_rule_capture_and_the_others_know_its_streams():
    config, model = staged(ranks=[1]), Stage("0")
    first, second = (plan_streams(config, model, model, ranks) for ranks in (FIRST, SECOND))
    assert first.points == []
    assert first.trained == second.trained == ["layers.0"]
    assert "identity" in first.encodings
    assert [point.name for point in second.points] == ["layers.0"]


def test_ranks_that_are_none_are_refused():
    with pytest.raises(HookError, match="ranks 2 is no rank of this job of 2 \\(0 to 1\\)"):
        plan_streams(staged(ranks=2), Stage("0"), None, FIRST)
    with pytest.raises(HookError, match=r"ranks 'tp' is no dimension of a device mesh .* none"):
        plan_streams(staged(ranks="tp"), Stage("0"), None, FIRST)
