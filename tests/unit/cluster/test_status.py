"""What receivers count is in the address book, for `top`, `verify` and whoever comes after their end."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import threading
from pathlib import Path

import pytest
from rich.console import Console

from asys_bench.cli.commands import run_top, run_verify
from asys_bench.cluster.accounts import MAX_BYTES, ReceiverAccount
from asys_bench.cluster.book import Book, Entry
from asys_bench.cluster.identities import check_cluster
from asys_bench.cluster.status import (
    Cluster,
    ClusterStatusMonitor,
    ClusterStatusOptions,
    Status,
    StatusBoard,
    plugin,
    read_cluster,
)
from asys_bench.cluster.view import ClusterFrame, cluster_view
from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.monitor import MonitorContext
from asys_bench.contracts.stats import RunState, StatsPage
from tests.conformance.support import eventually

from .documents import forwarder, receiver, reported, sender

QUIET = reported(100, 97, {"slow": 2, "unreachable": 1}, 0)


def entry(name="sae", generation=1, port=7000):
    return Entry(name, f"tcp://10.0.0.1:{port}", "", ("*",), "/runs/r", "gpu-7", generation)


def put(book: Path, document, name="sae", generation=1):
    StatusBoard(Book.open(book)).put(name, generation, json.dumps(document).encode())


def shown(*parts, width=140):
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    console.print(*parts)
    return out.getvalue()


def command(module, *words, width=140):
    parser = argparse.ArgumentParser()
    module.add(parser)
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    return module.main(parser.parse_args(words), console), " ".join(out.getvalue().split())


def test_what_a_receiver_says_is_read_back_by_name_and_generation(tmp_path):
    book = Book.open(tmp_path)
    book.announce(entry())
    put(tmp_path, receiver(sender(97, 0, QUIET), address="tcp://0.0.0.0:7000"))
    put(tmp_path, receiver(sender(3, 0, None, run_id="o"), id="ledger-2", name="b"), "b", 4)
    found = read_cluster(str(tmp_path))
    assert [(one.name, one.generation, one.account.id) for one in found.statuses] == [
        ("b", 4, "ledger-2"),
        ("sae", 1, "ledger-1"),
    ]
    assert found.entry_of(found.statuses[1].account) == entry()
    assert found.entry_of(found.statuses[0].account) is None
    assert found.unreadable == {}
    assert found.check.total("accepted") == 100
    assert (tmp_path / "status").stat().st_mode & 0o777 == 0o700


def test_what_is_no_status_is_named_and_nothing_else_is_lost(tmp_path):
    put(tmp_path, receiver(sender(97, 0, QUIET)))
    put(tmp_path, {"schema": "asys.receiver/9"}, "odd", 2)
    (tmp_path / "status" / "a file").write_text("x")
    found = read_cluster(str(tmp_path))
    assert len(found.statuses) == 1
    assert found.unreadable == {
        f"status/odd/{2:020d}.json": "its schema is 'asys.receiver/9', not asys.receiver/1"
    }


def test_a_status_that_is_too_large_is_named_and_holds_nobody_up(tmp_path):
    put(tmp_path, receiver(sender(97, 0, QUIET)), generation=3)
    put(tmp_path, receiver(sender(50, 0, None)), generation=2)
    large = tmp_path / "status" / "sae" / f"{1:020d}.json"
    large.write_bytes(b" " * (MAX_BYTES + 1))
    board = StatusBoard(Book.open(tmp_path))
    board.forget_earlier("sae", 3, "ledger-1")
    found = board.read()
    assert [(one.generation, one.account.accepted) for one in found.statuses] == [(3, 97)]
    assert found.unreadable == {f"status/sae/{1:020d}.json": "has more than 8388608 bytes"}
    code, said = command(run_verify, "--cluster", str(tmp_path))
    assert (code, "97 accepted: 1 equal" in said, "8388608 bytes" in said) == (1, True, True)


def test_a_later_generation_with_the_same_ledger_takes_the_earlier_ones_place(tmp_path):
    board = StatusBoard(Book.open(tmp_path))
    put(tmp_path, receiver(sender(50, 0, None)), generation=1)
    put(tmp_path, receiver(sender(9, 0, None), id="another machine's"), generation=2)
    put(tmp_path, receiver(sender(60, 0, None), attempt=1), generation=3)
    board.forget_earlier("sae", 3, "ledger-1")
    found = read_cluster(str(tmp_path))
    assert [(one.generation, one.account.accepted) for one in found.statuses] == [(2, 9), (3, 60)]
    assert found.check.total("accepted") == 69


class Rig:
    """The monitor over a run's folder, without a worker."""

    def __init__(self, run_dir: Path, place: object, generation: int | None = 1) -> None:
        self.run_dir, self.beats, self.left_s = run_dir, 0, 5.0
        (run_dir / "cluster").mkdir(parents=True)
        self.page = StatsPage.create(["host"])
        self.monitor = ClusterStatusMonitor(ClusterStatusOptions(interval_s=0.2))
        options = {"book": str(place), "name": "sae", "generation": generation}
        self.monitor.open(
            MonitorContext(
                run_dir, "r", self.page, lambda: BusAccount(0, {}, 0, ()),
                {"host": {"options": {"receiver": options}}}, "step", False,
                heartbeat=self.beat, time_left_s=lambda: self.left_s,
            )
        )  # fmt: skip

    def beat(self) -> None:
        self.beats += 1
        self.left_s -= 0.1

    def write(self, document) -> None:
        (self.run_dir / "cluster" / "receiver.json").write_text(json.dumps(document))

    def end(self) -> None:
        self.monitor.tick(RunState.STOPPED)
        self.monitor.close()
        self.page.close()


def test_the_monitor_writes_while_the_run_goes_on_and_a_last_time_at_its_end(tmp_path):
    book = tmp_path / "book"
    rig = Rig(tmp_path / "run", book)
    rig.monitor.tick(RunState.RUNNING)
    rig.write(receiver(sender(50, 0, None)))
    eventually(lambda: read_cluster(str(book)).statuses, "a status")
    rig.write(receiver(sender(97, 0, {**QUIET, "final": True}), final=True))
    rig.end()
    (status,) = read_cluster(str(book)).statuses
    assert (status.account.accepted, status.account.final) == (97, True)
    eventually(
        lambda: not {t for t in threading.enumerate() if t.name == "cluster-status"}, "its end"
    )


def test_a_book_that_cannot_be_written_holds_nobody_up(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    rig = Rig(tmp_path / "run", blocked / "book")
    rig.left_s = 1.2
    rig.write(receiver(sender(50, 0, None)))
    eventually(lambda: "address book" in caplog.text, "a warning")
    rig.end()
    assert rig.beats
    assert rig.left_s <= 0.7
    assert caplog.text.count("does not have this receiver's counts") == 1


def test_a_receiver_that_nobody_has_connected_to_says_nothing(tmp_path):
    rig = Rig(tmp_path / "run", tmp_path / "book")
    rig.end()
    assert read_cluster(str(tmp_path / "book")).statuses == ()


def test_the_generation_is_that_of_the_entry_in_the_book(tmp_path):
    """The receiver takes the next one by itself; an entry of another run is another receiver's."""
    book, run_dir = tmp_path / "book", tmp_path / "run"
    Book.open(book).announce(entry(generation=6))
    put(book, receiver(sender(1, 0, None)), generation=5)
    rig = Rig(run_dir, book, generation=None)
    rig.write(receiver(sender(50, 0, None)))
    rig.monitor.tick(RunState.RUNNING)
    mine = dataclasses.replace(entry(generation=7), run_dir=str(run_dir))
    Book.open(book).announce(mine)
    eventually(
        lambda: [one.generation for one in read_cluster(str(book)).statuses] == [7], "a status"
    )
    Book.open(book).withdraw("sae", 7)
    rig.write(receiver(sender(60, 0, None), final=True))
    rig.end()
    (status,) = read_cluster(str(book)).statuses
    assert (status.generation, status.account.accepted) == (7, 60)


def test_a_run_without_an_address_book_is_told_so(tmp_path):
    monitor = ClusterStatusMonitor(ClusterStatusOptions())
    page = StatsPage.create(["host"])
    context = MonitorContext(
        tmp_path, "r", page, lambda: BusAccount(0, {}, 0, ()), {}, "step", False
    )
    with pytest.raises(ValueError, match="book is not set"):
        monitor.open(context)
    page.close()


def test_the_plugin_is_registered():
    from asys_bench.contracts.monitor import MonitorPlugin
    from asys_bench.registry import registry

    assert registry("monitor").get("cluster_status", MonitorPlugin) is plugin


# What is shown.


def frame(*accounts, entries=(), unreadable=None):
    parsed = [ReceiverAccount.of(one) for one in accounts]
    check = check_cluster(parsed)
    statuses = tuple(Status(one.name, 1, one) for one in parsed)
    cluster = Cluster("file:///book", tuple(entries), statuses, unreadable or {})
    return ClusterFrame(cluster, check, check, 2.0)


@pytest.mark.parametrize("width", [80, 110, 140, 200])
def test_the_view_of_a_cluster_fits_and_shows_one_account(width):
    hosts = [
        sender(97, 0, QUIET, run_id=f"20261129-1830{n}-a-long-name", node=f"node{n}")
        for n in (0, 1)
    ]
    text = shown(
        cluster_view(
            frame(
                receiver(*hosts, refused={"key": 3}),
                entries=[entry(), entry("idle", port=7001)],
                unreadable={"bad": "no JSON"},
            ),
            width,
            now_s=3.0,
        ),
        width=width,
    )
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    flat = " ".join(text.split())
    assert "200 taken = 194 acked + 6 dropped (4 slow 2 unreachable) + 0 in flight" in flat
    assert "194 accepted: 2 equal" in flat
    assert "idle" in flat
    assert "unreadable: bad: no JSON" in flat
    if width >= 110:
        assert "gpu-7" in flat


def test_the_view_names_what_does_not_hold():
    text = shown(cluster_view(frame(receiver(sender(95, 6, reported()))), 140, now_s=3.0))
    assert "host/remote-0: acked 90 is more than sae accepted and acknowledged: 95 - 6" in text


def test_a_receiver_that_went_silent_is_told_from_one_that_has_ended():
    text = shown(
        cluster_view(
            frame(
                receiver(sender(1, 0, None), name="ended", final=True, id="a"),
                receiver(sender(1, 0, None), name="lost", id="b"),
            ),
            140,
            now_s=130.5,
        )
    )
    rows = {line.split()[0]: line.split()[1:3] for line in text.splitlines() if line.strip()}
    assert rows["ended"] == ["ended", "last"]
    assert rows["lost"][:2] == ["gone", "2:10"]


def test_top_and_verify_read_a_book(tmp_path, monkeypatch):
    monkeypatch.setattr(run_top, "FIRST_S", 0.01)
    book = str(tmp_path)
    code, said = command(run_top, "--cluster", book, "--once")
    assert (code, "no receiver is or was in this book" in said) == (0, True)
    code, said = command(run_verify, "--cluster", book)
    assert (code, said) == (2, ""), "no receiver yet"
    put(tmp_path, receiver(sender(97, 0, QUIET)))
    code, said = command(run_top, "--cluster", book, "--once")
    assert code == 0
    assert "100 taken = 97 acked + 3 dropped" in said
    code, said = command(run_verify, "--cluster", book)
    assert code == 0
    assert "97 accepted: 1 equal" in said
    put(tmp_path, receiver(sender(97, 1, QUIET)))
    code, said = command(run_verify, "--cluster", book)
    assert code == 1
    assert "acked 97 is more than sae accepted and acknowledged: 97 - 1" in said


def test_verify_says_it_in_json_too(tmp_path, capsys):
    put(tmp_path, receiver(sender(97, 0, QUIET)))
    assert command(run_verify, "--cluster", str(tmp_path), "--json")[0] == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "asys.cluster_verify/1"
    assert (document["taken"], document["acked"], document["accepted"]) == (100, 97, 97)
    assert document["dropped"] == {"slow": 2, "unreachable": 1}
    assert [one["verdict"] for one in document["forwarders"]] == ["equal"]


def test_verify_takes_the_hosts_own_accounts_and_compares_them_with_their_bus(tmp_path):
    book, runs = tmp_path / "book", tmp_path / "runs"
    put(book, receiver(sender(95, 0, reported())))
    run_dir = runs / "host"
    (run_dir / "cluster").mkdir(parents=True)
    attempt = {"attempt": 0}
    (run_dir / "run.json").write_text(
        json.dumps({"schema": "asys.run/1", "run_id": "host", "hooks": [], "host_pid": 1,
                    "attempts": [attempt]})
    )  # fmt: skip
    (run_dir / "cluster" / "remote-0.json").write_text(json.dumps(forwarder()))
    for where in (runs, run_dir):
        code, said = command(run_verify, str(where), "--cluster", str(book))
        assert (code, "1 equal" in said) == (0, True)
    groups = [{"group": "remote", "delivered": 101}]
    (run_dir / "summary.json").write_text(json.dumps({"bus": {"groups": groups}}))
    code, said = command(run_verify, str(runs), "--cluster", str(book))
    assert code == 1
    assert "remote-0 took 100 packets, and the bus delivered 101" in said
    assert command(run_verify, str(tmp_path / "nowhere"), "--cluster", str(book))[0] == 2
    assert command(run_verify, str(runs), "--cluster", str(tmp_path / "other"))[0] == 2, (
        "an empty book"
    )


def test_wrong_words_are_refused(tmp_path):
    assert command(run_verify, "--cluster", str(tmp_path), "--repair")[0] == 2
    assert command(run_top, "a-run", "--cluster", str(tmp_path))[0] == 2
    assert command(run_top, "--cluster", "https://elsewhere")[0] == 2
