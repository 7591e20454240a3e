"""The observed process runs where the plan says while it is observed, and nowhere else changed after."""

from __future__ import annotations

import json
import os

import pytest
import torch

from asys_bench.contracts.run_files import PLAN_FILE
from asys_bench.placement.manager import HostPlace, ResourceError
from asys_bench.run.settings import resolve_settings


def place(**resources):
    model = torch.nn.Sequential(torch.nn.Linear(8, 16))
    return HostPlace(resolve_settings(None, {"hooks": "0", "resources": resources}, model).config)


@pytest.fixture
def usable():
    before = os.sched_getaffinity(0)
    yield sorted(before)
    os.sched_setaffinity(0, before)


def test_every_rank_runs_on_the_hosts_cpus_of_the_owners_plan(usable, tmp_path):
    settings = {"pinning": {"host": str(usable[0])}}
    owner, rank = place(**settings), place(**settings)
    manager = owner.own(processes=2)
    assert manager.needs[0].threads == 2 * torch.get_num_threads()
    (tmp_path / PLAN_FILE).write_text(json.dumps(manager.to_dict()))
    owner.release()
    assert os.sched_getaffinity(0) == set(usable)
    rank.join(tmp_path)
    assert os.sched_getaffinity(0) == {usable[0]}
    rank.release()
    rank.release()
    assert os.sched_getaffinity(0) == set(usable)


def test_a_run_without_a_plan_is_named_and_nothing_is_pinned(usable, tmp_path):
    with pytest.raises(ResourceError, match=r"plan\.json: no plan can be read"):
        place().join(tmp_path)
    assert os.sched_getaffinity(0) == set(usable)


def test_threads_are_those_that_were_asked_for_until_it_closes():
    before = torch.get_num_threads()
    wanted = before + 1
    mine = place(host_threads=wanted)
    mine.own(1)
    assert torch.get_num_threads() == wanted
    mine.release()
    assert torch.get_num_threads() == before
    silent = place()
    silent.own(1)
    silent.release()
    assert torch.get_num_threads() == before
