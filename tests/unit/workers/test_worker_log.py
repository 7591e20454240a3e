"""What is quoted of a worker's log."""

import re
from pathlib import Path
from types import SimpleNamespace

from asys_bench.workers.supervisor import Supervisor
from asys_bench.workers.worker_log import (
    MOST_CHARACTERS,
    last_line,
    messages_of,
    why_it_ended,
)

LOG = """\
2026-11-28 10:00:00,001 INFO asys_bench.sinks.sae.training: a: resumed at step 3
2026-11-28 10:00:00,002 ERROR asys_bench.sinks.sae.training: a: not trained any more: k 2000 is more
2026-11-28 10:00:01,002 ERROR asys_bench.sinks.sae.training: a: not trained any more: k 2000 is more
2026-11-28 10:00:02,003 ERROR asys_bench.workers.worker: worker trainer-0 failed
Traceback (most recent call last):
  File "x.py", line 1, in f
    raise OSError(28, "No space left")
OSError: [Errno 28] No space left
"""


def write(run_dir, name, text):
    (run_dir / "logs").mkdir(exist_ok=True)
    (run_dir / "logs" / f"{name}.log").write_text(text)


def test_distinct_warnings_and_the_error_of_a_traceback_are_quoted(tmp_path):
    write(tmp_path, "trainer-0", LOG)
    assert messages_of(tmp_path, "trainer-0") == [
        "a: not trained any more: k 2000 is more",
        "worker trainer-0 failed: OSError: [Errno 28] No space left",
    ]
    log = tmp_path / "logs" / "trainer-0.log"
    said = "worker trainer-0 failed: OSError: [Errno 28] No space left"
    assert why_it_ended(tmp_path, "trainer-0") == f"{said} (log: {log})"


def test_of_a_log_that_is_not_there_the_watchdog_is_quoted(tmp_path):
    write(tmp_path, "watchdog", "2026-11-28 10:00:00,001 WARNING trainer-0 died (exit code 1)\n")
    said = why_it_ended(tmp_path, "trainer-0")
    assert said.startswith(
        "it did not come as far as its own log; the watchdog says: trainer-0 died"
    )
    assert said.endswith(f"(log: {tmp_path / 'logs' / 'watchdog.log'})")


def test_without_any_log_nothing_is_quoted_and_nothing_raises(tmp_path):
    assert messages_of(tmp_path, "trainer-0") == []
    assert last_line(tmp_path, "trainer-0") == ""
    assert "the watchdog says: nothing" in why_it_ended(tmp_path, "trainer-0")


def test_what_a_library_printed_is_the_last_word_of_a_worker_without_records(tmp_path):
    write(tmp_path, "trainer-0", "terminate called\n  what(): bad_alloc\n\n")
    assert why_it_ended(tmp_path, "trainer-0").startswith("what(): bad_alloc (log:")


def test_quotes_are_bounded(tmp_path):
    record = "2026-11-28 10:00:00,001 ERROR a.b: "
    lines = "".join(f"{record}{n} {'x' * 10_000}\n" for n in range(100))
    write(tmp_path, "trainer-0", lines)
    messages = messages_of(tmp_path, "trainer-0")
    assert [w.split()[0] for w in messages] == ["96", "97", "98", "99"]
    assert all(len(w) == MOST_CHARACTERS for w in messages)


def test_a_start_that_fails_quotes_each_worker_and_names_a_log_that_exists(tmp_path):
    """As `wait_ready` raises it."""
    write(tmp_path, "trainer-0", LOG)
    write(
        tmp_path, "watchdog", "2026-11-28 10:00:00,001 ERROR archive-0 died again (exit code 1)\n"
    )
    supervisor = Supervisor.__new__(Supervisor)
    supervisor._launch = SimpleNamespace(run_dir=str(tmp_path))
    said = supervisor._explain(["trainer-0", "archive-0"], "keeps dying at its start")
    first, second = said.split("; archive-0: ")
    assert first == (
        "trainer-0: keeps dying at its start: worker trainer-0 failed: OSError: [Errno 28] No space "
        f"left (log: {tmp_path}/logs/trainer-0.log)"
    )
    assert "the watchdog says: archive-0 died again (exit code 1)" in second
    for log in re.findall(r"log: ([^)]*)", said):
        assert Path(log).is_file()
    assert "archive-0 died again" in supervisor._explain_watchdog()
