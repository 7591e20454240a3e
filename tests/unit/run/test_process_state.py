"""Signal handlers and log lines of a command: taken back at its end, and in forked children."""

from __future__ import annotations

import logging
import os
import signal
import time

import pytest

from asys_bench.hosts.forked import children_leave
from asys_bench.run.process_state import SignalHandlers, log_lines

NUMBER = signal.SIGUSR2


@pytest.fixture
def caught():
    """What the host's own handler has caught."""
    numbers = []
    before = signal.signal(NUMBER, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(NUMBER, before)


def ours(number, frame):
    raise KeyboardInterrupt


def end_of(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_child_has_the_handler_of_before(caught):
    handlers = SignalHandlers((NUMBER,), ours)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), NUMBER)

    def work():
        os.kill(os.getpid(), NUMBER)
        os._exit(len(caught))

    assert end_of(work) == 1
    handlers.restore()
    os.kill(os.getpid(), NUMBER)
    assert caught == [NUMBER]


@pytest.mark.filterwarnings("ignore:This process")
def test_a_signal_that_comes_before_the_child_is_ready_ends_up_at_the_old_handler(caught):
    handlers = SignalHandlers((NUMBER,), ours)

    def work():  # as between the fork and the function that runs after it
        signal.signal(NUMBER, handlers._handle)
        handlers._before[NUMBER] = lambda *_: os._exit(5)
        os.kill(os.getpid(), NUMBER)

    assert end_of(work) == 5
    handlers.restore()


def test_a_handler_that_the_host_has_replaced_is_left_alone(caught):
    handlers = SignalHandlers((NUMBER,), ours)
    signal.signal(NUMBER, signal.SIG_DFL)
    handlers.restore()
    assert signal.getsignal(NUMBER) is signal.SIG_DFL


def test_an_ignored_signal_stays_ignored(caught):
    signal.signal(NUMBER, signal.SIG_IGN)
    SignalHandlers((NUMBER,), ours)
    assert signal.getsignal(NUMBER) is signal.SIG_IGN


@pytest.mark.filterwarnings("ignore:This process")
@pytest.mark.parametrize(
    ("end", "code"),
    [
        (None, 0),
        (SystemExit(7), 7),
        (SystemExit(), 0),
        (SystemExit("said"), 1),
        (ValueError("raised"), 1),
        (KeyboardInterrupt(), -signal.SIGINT),
    ],
)
def test_a_child_that_comes_out_of_the_hosts_code_ends_there(end, code, capfd):
    def work():
        if os.fork() == 0:  # a grandchild leaves the block, its parent waits in it
            if end is not None:
                raise end
            return
        os._exit(os.waitstatus_to_exitcode(os.wait()[1]) & 0xFF)

    def host():
        with children_leave():
            work()
        os._exit(98)

    assert end_of(host) == code & 0xFF
    said = capfd.readouterr().err
    assert ("said" in said, "ValueError: raised" in said) == (
        str(end) == "said",
        str(end) == "raised",
    )


def test_exceptions_of_the_host_itself_go_through():
    with pytest.raises(SystemExit, match="4"), children_leave():
        raise SystemExit(4)


def test_log_lines_leave_the_root_logger_to_the_host(capsys):
    root = logging.getLogger()
    before = list(root.handlers)
    with log_lines("ours: %(message)s"):
        assert root.handlers == before
        logging.getLogger("asys_bench.x").warning("a line")
        logging.getLogger("asys_bench.x").info("not this one")
    assert capsys.readouterr().err == "ours: a line\n"
    assert logging.getLogger("asys_bench").propagate


def test_a_signal_in_the_middle_of_a_fork_ends_the_child_and_no_mask_is_left():
    handlers = SignalHandlers((signal.SIGTERM,), lambda *_: None)
    try:
        ends = []
        for _ in range(30):
            pid = os.fork()
            if pid == 0:
                time.sleep(5)
                os._exit(99)
            os.kill(pid, signal.SIGTERM)  # most often before the child's first step
            ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        assert ends == [-signal.SIGTERM] * 30
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        handlers.restore()
