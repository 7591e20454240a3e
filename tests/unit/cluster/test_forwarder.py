"""What a forwarder makes of its options and of the other sinks of its run."""

from __future__ import annotations

import pytest

from asys_bench.cluster.forwarder import usual_policy
from asys_bench.cluster.options import ForwarderOptions, ReceiverOptions
from asys_bench.config.schema import MasterConfig

HOOKS = {"layer.0", "layer.1"}
ARCHIVE = {"kind": "archiver"}


@pytest.mark.parametrize(
    ("policy", "others"),
    [
        ("sample", {}),
        ("drop", {"archive": ARCHIVE}),
        ("drop", {"archive": {**ARCHIVE, "hooks": ["layer.0", "*.1"]}}),
        ("sample", {"archive": {**ARCHIVE, "hooks": ["layer.0"]}}),
        ("sample", {"archive": {**ARCHIVE, "enabled": False}}),
        ("sample", {"archive": {**ARCHIVE, "delivery": "at_most_once"}}),
        ("sample", {"second": {"kind": "forwarder"}}),
    ],
)
def test_packets_that_another_sink_keeps_are_dropped_when_the_receiver_is_slow(policy, others):
    sinks = {"remote": {"kind": "forwarder"}, **others}
    config = MasterConfig.model_validate(
        {"host": {"kind": "synthetic"}, "hooks": [{"match": "*"}], "sinks": sinks}
    )
    assert usual_policy(config, "remote", HOOKS) == policy


@pytest.mark.parametrize(("port", "misfits"), [(1, 0), (65535, 0), (0, 1), (65536, 1), (99999, 1)])
def test_an_address_whose_port_is_none_is_refused_before_the_run(port, misfits):
    found = list(ForwarderOptions(to=f"tcp://node-3:{port}").misfits(1, ["*"]))
    assert [one.path for one in found] == [("options", "to")] * misfits


def test_a_place_that_is_none_for_a_book_is_refused_before_the_run_on_both_sides(tmp_path):
    for book, refused in (
        (str(tmp_path), False),
        ("s3://bucket/book", False),
        ("https://x/y", True),
    ):
        sender = [one.path for one in ForwarderOptions(book=book).misfits(1, ["*"])]
        receiver = [one.path for one in ReceiverOptions(book=book).misfits()]
        assert (sender, receiver) == (
            ([("options", "book")], [("book",)]) if refused else ([], [])
        ), book
