"""The accounts of a cluster: what holds, what is under way, what is in doubt, and what is broken."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.cluster.accounts import (
    AccountError,
    ForwarderAccount,
    ReceiverAccount,
    parse_receiver,
    read_forwarders,
    read_receiver,
)
from asys_bench.cluster.identities import Verdict, check_cluster

from .documents import forwarder, receiver, reported, sender


def check(*receivers, forwarders=()):
    return check_cluster(
        [ReceiverAccount.of(one) for one in receivers],
        [ForwarderAccount.of(one) for one in forwarders],
    )


def verdict_of(*receivers, forwarders=()):
    found = check(*receivers, forwarders=forwarders)
    (one,) = found.senders
    assert found.holds == (one.verdict is not Verdict.BROKEN)
    return one.verdict, one.doubt


def test_while_packets_are_under_way_the_identities_hold():
    assert verdict_of(receiver(sender(95, 5, reported()))) == (Verdict.MOVING, 5)
    # The report is older than the receiver's counts.
    assert verdict_of(receiver(sender(500, 5, reported()))) == (Verdict.MOVING, 410)


def test_quiet_accounts_are_equal():
    quiet = reported(100, 97, {"slow": 3}, 0)
    assert verdict_of(receiver(sender(97, 0, quiet))) == (Verdict.EQUAL, 0)
    assert verdict_of(receiver(sender(97, 0, {**quiet, "final": True}))) == (Verdict.EQUAL, 0)


def test_more_acknowledged_than_accepted_is_broken():
    one = check(receiver(sender(95, 6, reported()))).senders[0]
    assert one.verdict is Verdict.BROKEN
    assert one.problems == ("acked 90 is more than sae accepted and acknowledged: 95 - 6",)
    final = reported(100, 98, {"slow": 2}, 0, final=True)
    assert verdict_of(receiver(sender(97, 0, final), final=True)) == (Verdict.BROKEN, -1)


def test_a_packet_that_a_forwarder_cannot_account_for_is_broken():
    one = check(receiver(sender(95, 5, reported(taken=101)))).senders[0]
    assert one.problems == ("taken 101 is not acked 90 + dropped 0 + in flight 10: +1",)
    arrived = receiver(sender(95, 0, None))
    own = check(arrived, forwarders=[forwarder(dropped={"slow": 4})]).senders[0]
    assert own.problems == ("taken 100 is not acked 95 + dropped 4 + in flight 0: +1",)


def test_packets_that_arrived_and_were_counted_as_dropped_are_in_doubt_and_counted():
    """Acknowledgements were lost in a partition, and the forwarder gave up waiting."""
    ended = reported(100, 90, {"unreachable": 10}, 0, final=True)
    assert verdict_of(receiver(sender(94, 0, ended))) == (Verdict.IN_DOUBT, 4)


def test_more_accepted_than_was_ever_taken_is_broken():
    ended = reported(100, 90, {"unreachable": 10}, 0, final=True)
    assert verdict_of(receiver(sender(101, 0, ended))) == (Verdict.BROKEN, 1)


def test_a_host_whose_own_account_is_later_than_its_last_report_is_believed():
    """The end of a run in a partition: its last report never came."""
    stale = receiver(sender(95, 5, reported()))
    assert verdict_of(stale, forwarders=[forwarder()]) == (Verdict.EQUAL, 0)
    older = forwarder(unix_ns=1, final=False, taken=10, acked=10, dropped={})
    assert verdict_of(stale, forwarders=[older]) == (Verdict.MOVING, 5)


def test_a_forwarder_that_has_not_reported_yet_is_silent():
    assert verdict_of(receiver(sender(0, 0, None))) == (Verdict.SILENT, 0)


def test_a_forwarder_that_moved_to_another_receiver_is_one_sender():
    first = receiver(sender(60, 0, reported(70, 50, {}, 20, unix_ns=1), connected=False), id="a",
                     name="first", final=True)  # fmt: skip
    second = receiver(sender(35, 0, reported(100, 95, {"slow": 5}, 0, True, unix_ns=9)), id="b")
    one = check(first, second).senders[0]
    assert (one.accepted, one.acked, one.verdict) == (95, 95, Verdict.EQUAL)
    assert one.receivers == ("first", "sae")


def test_what_a_lost_receiver_acknowledged_after_its_last_account_is_counted():
    lost = receiver(sender(60, 5, reported(70, 50, {}, 20, unix_ns=1), connected=False), id="a")
    second = receiver(sender(30, 0, reported(100, 95, {"slow": 5}, 0, True, unix_ns=9)), id="b",
                      final=True)  # fmt: skip
    assert verdict_of(lost, second) == (Verdict.LOST, 5)


def test_what_no_known_receiver_has_is_counted_as_lost():
    assert verdict_of(forwarders=[forwarder()]) == (Verdict.LOST, 95)
    assert verdict_of(forwarders=[forwarder(acked=0, dropped={"unreachable": 100})]) == (
        Verdict.EQUAL,
        0,
    )


def test_of_one_ledger_the_newest_document_counts():
    before = receiver(sender(50, 0, reported(60, 50, {}, 10)), unix_ns=1)
    after = receiver(sender(97, 0, reported(100, 97, {"slow": 3}, 0)), unix_ns=2)
    for order in ([before, after], [after, before]):
        assert verdict_of(*order) == (Verdict.EQUAL, 0)
    restarted = receiver(sender(98, 0, reported(100, 97, {"slow": 3}, 0)), attempt=1, unix_ns=0)
    assert check(after, restarted).receivers[0].attempt == 1


def test_a_receiver_that_does_not_know_where_its_packets_came_from_is_broken():
    document = receiver(sender(95, 5, reported()))
    assert check({**document, "accepted": 96}).problems == (
        "sae: accepted 96, over its senders 95",
        "sae: accepted 96, over its streams 95",
    )


def test_totals_are_over_all_hosts():
    found = check(
        receiver(
            sender(97, 0, reported(100, 97, {"slow": 3}, 0)),
            sender(40, 0, reported(50, 40, {"slow": 1, "unreachable": 9}, 0), run_id="other"),
        )
    )
    assert (found.total("taken"), found.total("acked"), found.total("accepted")) == (150, 137, 137)
    assert found.dropped == {"slow": 4, "unreachable": 9}
    assert found.quiet
    assert found.holds


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "asys.receiver/2"}, "its schema is 'asys.receiver/2'"),
        ({"accepted": -1}, "accepted is '-1', not a count"),
        ({"accepted": True}, "accepted is 'True', not a count"),
        ({"accepted": 1 << 63}, "not a count"),
        ({"name": "a\nb"}, "name is"),
        ({"name": None}, "name is"),
        ({"final": 1}, "final is '1', not true or false"),
        ({"refused": {"key": "many"}}, "refused is"),
        ({"senders": {}}, "senders is"),
        ({"senders": [7]}, r"senders\[0\]\. is no JSON object"),
        ({"senders": [{**sender(), "lag_s": float("nan")}]}, r"senders\[0\]\.lag_s"),
        ({"senders": [{**sender(), "reported": {"taken": 1}}]}, r"reported\.acked"),
        ({"streams": [None] * 65_537}, "streams is"),
    ],
)
def test_what_is_no_account_is_refused_by_the_name_of_its_field(change, said):
    with pytest.raises(AccountError, match=said):
        parse_receiver(json.dumps({**receiver(sender()), **change}).encode())


def test_a_forwarder_that_is_not_connected_has_no_node_and_no_lag():
    account = ReceiverAccount.of(receiver(sender(node=None, lag_s=None, connected=False)))
    assert account.senders[0].node == ""
    assert account.senders[0].lag_s != account.senders[0].lag_s


def test_what_is_no_json_is_refused():
    for data in (b"", b"{", b"[" * 100_000, b"\xff\xfe"):
        with pytest.raises(AccountError):
            parse_receiver(data)


def test_accounts_are_read_from_runs(tmp_path):
    assert read_receiver(tmp_path) is None
    assert read_forwarders(tmp_path) == ()
    folder = tmp_path / "cluster"
    folder.mkdir()
    (folder / "receiver.json").write_text(json.dumps(receiver(sender())))
    (folder / "ledger.json").write_text("{}")
    (folder / "ledger.bin").write_bytes(b"x")
    for n in (1, 0):
        (folder / f"remote-{n}.json").write_text(json.dumps(forwarder(worker=f"remote-{n}")))
    assert read_receiver(tmp_path) == ReceiverAccount.of(receiver(sender()))
    assert [one.worker for one in read_forwarders(tmp_path)] == ["remote-0", "remote-1"]
    (folder / "remote-2.json").symlink_to(folder / "remote-0.json")
    with pytest.raises(OSError, match="symbolic link"):
        read_forwarders(tmp_path)
    (folder / "remote-2.json").unlink()
    (folder / "remote-2.json").write_text("{}")
    with pytest.raises(AccountError, match=r"remote-2\.json"):
        read_forwarders(tmp_path)


@given(st.lists(st.tuples(*(st.integers(0, 30),) * 4), min_size=1, max_size=8), st.data())
@settings(max_examples=100, deadline=None)
def test_no_true_history_is_ever_called_broken(batches, data):
    """Batches are taken, arrive or not, are acknowledged or not, are given up or not; looked at anywhere."""
    taken = acked = dropped = accepted = sent_acks = 0
    said = None
    for n, lost_on_the_way, lost_acks, dropped_here in batches:
        lost = min(lost_on_the_way, n)
        taken += n
        accepted += n - lost
        back = max(0, n - lost - lost_acks)
        sent_acks += back
        acked += back
        given_up = min(dropped_here, n - back)
        dropped += given_up
        if data.draw(st.booleans()):
            final = data.draw(st.booleans())
            flying = taken - acked - dropped
            if final:
                dropped += flying
                flying = 0
            said = reported(taken, acked, {"slow": dropped}, flying, final)
        window = accepted - sent_acks
        found = check(receiver(sender(accepted, window, said))).senders[0]
        assert found.problems == ()
        if said is not None and said["final"]:
            break
