"""A checkpoint of the host is gone on from elsewhere when the copy has every row from before it."""

from __future__ import annotations

import json

import pytest

from asys_bench.contracts.bus import BusAccount, GroupAccount
from asys_bench.monitors.upload.covered import archivers_in
from asys_bench.monitors.upload.uploader import Uploader

CONFIG = """
sinks: {trainer: {kind: sae_trainer}, archive: {kind: archiver}, second: {kind: archiver, enabled: false}}
"""


class Machine:
    """A run at work, by hand: what its host offers, its archiver consumes and closes, and is sent."""

    def __init__(self, run, copy):
        self.run, self.copy = run, copy
        (run / "config.yaml").write_text(CONFIG)
        document = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(document | {"result": None}))
        self.offered = self.consumed = 0
        self.uploader = Uploader(run, copy.store, account=self.account)

    def account(self):
        ready = self.offered - self.consumed
        groups = [
            GroupAccount(name, self.offered - left, 0, 0, 0, left)
            for name, left in (("archive", ready), ("trainer", self.offered))
        ]
        return BusAccount(self.offered, {}, 0, tuple(groups))

    def save(self, step):
        """The host's checkpoint; it keeps two."""
        states = self.run / "host-state"
        folder = states / f"step_{step:09d}"
        folder.mkdir(parents=True)
        (folder / "host.json").write_text(f"{step}")
        for old in sorted(states.glob("step_*"))[:-2]:
            (old / "host.json").unlink()
            old.rmdir()

    def shard(self, number, *, closed=False):
        path = self.run / "archive" / "policy.mlp" / f"archive-0-9-{number}.arrows"
        if not path.exists():
            path.write_bytes(b"rows")
        if closed:
            path.with_suffix(".json").write_text("{}")
        return path

    def send(self):
        self.uploader.send()
        found = {n.split("/")[1] for n in self.copy.files() if n.startswith("host-state/")}
        steps = sorted(int(name.removeprefix("step_")) for name in found)
        return self.copy.manifest["covered"].rpartition("_")[2].lstrip("0"), steps


@pytest.fixture
def machine(run, copy):
    return Machine(run, copy)


def test_it_is_covered_when_its_packets_are_consumed_and_the_shards_of_then_are_sent(machine):
    machine.offered, machine.consumed = 10, 9
    machine.shard(0)
    machine.save(8)
    assert machine.send() == ("", [8])
    machine.shard(0, closed=True)
    assert machine.send() == ("", [8]), "a packet of before is on the bus"
    machine.consumed = 10
    machine.shard(1)
    assert machine.send() == ("", [8]), "and its rows are in the next shard"
    machine.shard(2)
    machine.shard(1, closed=True)
    assert machine.send() == ("8", [8]), "the shard that began later is not waited for"


def test_the_copy_keeps_the_covered_one_and_the_next_that_may_become_so(machine):
    """The run has only the newest two by then."""
    machine.shard(0)
    machine.save(8)
    machine.shard(0, closed=True)
    assert machine.send() == ("8", [8])
    machine.shard(1)
    for step in (16, 24, 32, 40, 48):
        machine.save(step)
        steps = machine.send()
    assert steps == ("8", [8, 16, 40, 48])
    machine.shard(1, closed=True)
    assert machine.send() == ("48", [40, 48]), "nothing is open"
    again = Uploader(machine.run, machine.copy.store, account=machine.account)
    machine.uploader = again
    machine.shard(2)
    machine.save(56)
    assert machine.send() == ("48", [48, 56]), "a new process knows it from the manifest"
    machine.shard(2).unlink()
    assert machine.send() == ("56", [48, 56]), "deleted here before it was sent: counted elsewhere"


def test_a_run_that_has_ended_whole_is_covered_up_to_its_last_checkpoint(machine, run, copy):
    machine.offered = 10
    machine.shard(0)
    machine.save(8)
    machine.save(16)
    assert machine.send()[0] == ""
    machine.shard(0, closed=True)
    document = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(document | {"result": {}}))
    assert Uploader(run, copy.store).send(final=True)  # asys-run upload: there is no bus any more
    assert copy.manifest["covered"] == "host-state/step_000000016"


def test_without_an_archive_each_checkpoint_that_is_there_is_covered(machine, run):
    (run / "config.yaml").write_text("sinks: {trainer: {kind: sae_trainer}}\n")
    machine.uploader = Uploader(run, machine.copy.store, account=machine.account)
    machine.offered = 10
    machine.save(8)
    assert machine.send() == ("8", [8])


def test_sinks_that_archive_are_known_from_a_configuration_and_nonsense_has_none():
    sinks = {"a": {"kind": "archiver"}, "b": {"kind": "archiver", "enabled": False}, "c": 1}
    assert archivers_in({"sinks": sinks}) == ["a"]
    assert archivers_in({"sinks": []}) == archivers_in({}) == []
