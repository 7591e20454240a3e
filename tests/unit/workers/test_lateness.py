"""A watcher that was late itself judges nobody."""

from __future__ import annotations

from asys_bench.workers.restart import OwnLateness


def test_checks_in_time_can_judge():
    own = OwnLateness(0.2, 10.0, 0.0)
    assert own.can_judge(0.0)
    assert [own.tick(t) for t in (0.2, 0.5, 5.0)] == [0.0, 0.0, 0.0]
    assert own.can_judge(5.0)


def test_a_late_check_gives_everybody_a_whole_timeout():
    own = OwnLateness(0.2, 10.0, 0.0)
    assert own.tick(8.0) == 8.0
    assert not own.can_judge(8.0)
    assert own.tick(8.2) == 0.0
    assert not own.can_judge(17.9)
    assert own.can_judge(18.0)


def test_who_is_late_again_and_again_never_judges():
    own = OwnLateness(0.2, 1.0, 0.0)
    for second in range(2, 20):
        own.tick(float(second))
        assert not own.can_judge(second + 0.9)
