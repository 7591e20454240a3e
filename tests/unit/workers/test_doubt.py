"""A watcher that came late itself accuses nobody."""

from __future__ import annotations

from asys_bench.workers.restart import SelfDoubt


def test_looks_in_time_are_trusted():
    doubt = SelfDoubt(0.2, 10.0, 0.0)
    assert doubt.trusts(0.0)
    assert [doubt.look(t) for t in (0.2, 0.5, 5.0)] == [0.0, 0.0, 0.0]
    assert doubt.trusts(5.0)


def test_a_late_look_gives_everybody_a_whole_timeout():
    doubt = SelfDoubt(0.2, 10.0, 0.0)
    assert doubt.look(8.0) == 8.0
    assert not doubt.trusts(8.0)
    assert doubt.look(8.2) == 0.0
    assert not doubt.trusts(17.9)
    assert doubt.trusts(18.0)


def test_who_is_late_again_and_again_never_judges():
    doubt = SelfDoubt(0.2, 1.0, 0.0)
    for second in range(2, 20):
        doubt.look(float(second))
        assert not doubt.trusts(second + 0.9)
