"""One SAE's features are named in order, kept as they come, and gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from asys_bench.eye.marks import Mark
from asys_bench.eye.naming import naming as module
from asys_bench.eye.naming.models import NamingError
from asys_bench.eye.naming.naming import NothingToNameError
from asys_bench.rundir.feature_names import names_file, read_names

from .rig import LABEL, WORDS, Truthful, View, WordFeatures, naming


def run(made, most: int = 100, chosen: tuple[int, ...] = ()) -> list:
    return list(made.name(made.candidates(chosen, most)))


def test_every_feature_that_fires_gets_its_name_with_what_it_is_worth(tmp_path: Path) -> None:
    found = run(naming(tmp_path, Truthful()))
    assert [(one.feature, one.proposed.name, one.proposed.score) for one in found] == [
        (feature, word, 1.0) for feature, word in enumerate(WORDS)
    ]
    kept = read_names(tmp_path, LABEL)
    assert {feature: one.name for feature, one in kept.items()} == dict(enumerate(WORDS))
    one = kept[2]
    assert (one.model, one.checkpoint, one.generation, one.graded) == (
        "truthful",
        "step_000000010",
        0,
        True,
    )
    assert (one.shown, one.fires, one.silent, one.baseline) == (10, 10, 10, 1.0)
    assert one.is_good
    assert names_file(tmp_path, LABEL).stat().st_mode & 0o777 == 0o600


def test_pinned_ones_come_first_and_what_a_person_named_is_left_alone(tmp_path: Path) -> None:
    marks = {4: Mark(pin=True), 0: Mark(name="mine"), 1: Mark(note="only a note")}
    found = run(naming(tmp_path, Truthful(), marks=marks), most=3)
    assert [one.feature for one in found] == [4, 1, 2]


def test_it_goes_on_where_it_was_left(tmp_path: Path) -> None:
    model = Truthful()
    model.fail_at = 3
    with pytest.raises(NamingError, match="gone"):
        run(naming(tmp_path, model))
    assert set(read_names(tmp_path, LABEL)) == {0, 1, 2}
    again = Truthful()
    assert [one.feature for one in run(naming(tmp_path, again))] == [3, 4, 5]
    assert again.asked == WORDS[3:]
    assert run(naming(tmp_path, Truthful())) == []


def test_ending_it_keeps_what_was_found(tmp_path: Path) -> None:
    made = naming(tmp_path, Truthful())
    going = made.name(made.candidates((), 9))
    next(going)
    next(going)
    going.close()  # as Ctrl-C does
    assert set(read_names(tmp_path, LABEL)) == {0, 1}


def test_names_are_written_while_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEEP_S", 0.0)
    made = naming(tmp_path, Truthful())
    going = made.name(made.candidates((), 9))
    next(going)
    next(going)  # the first was written before the second was asked for
    assert set(read_names(tmp_path, LABEL)) == {0}
    going.close()


def test_two_processes_do_not_lose_each_others_names(tmp_path: Path) -> None:
    first, second = (naming(tmp_path, Truthful()) for _ in range(2))
    run(first, chosen=(0, 1))
    run(second, chosen=(4,))
    assert set(read_names(tmp_path, LABEL)) == {0, 1, 4}


def test_another_model_is_asked_again_and_the_better_name_stays(tmp_path: Path) -> None:
    run(naming(tmp_path, Truthful()))
    worse = run(naming(tmp_path, Truthful("worse", lambda word: "nothing")))
    assert [one.kept for one in worse] == [False] * len(WORDS)
    assert {one.model for one in read_names(tmp_path, LABEL).values()} == {"truthful"}
    (tmp_path / "names" / f"{LABEL}.json").unlink()
    run(naming(tmp_path, Truthful("worse", lambda word: "nothing")))
    assert not any(one.is_good for one in read_names(tmp_path, LABEL).values())
    run(naming(tmp_path, Truthful()))
    assert {one.model for one in read_names(tmp_path, LABEL).values()} == {"truthful"}


def test_a_feature_that_began_anew_is_named_anew_whatever_its_earlier_score(tmp_path: Path) -> None:
    run(naming(tmp_path, Truthful()))
    view = View(WordFeatures())
    view.lives[2] = 1
    (found,) = run(naming(tmp_path, Truthful(wrong=lambda word: "nothing"), view=view))
    assert (found.feature, found.kept) == (2, True)
    kept = read_names(tmp_path, LABEL)[2]
    assert (kept.name, kept.generation, kept.score) == ("nothing", 1, 0.5)


def test_a_feature_without_enough_texts_and_a_model_without_words_are_said(tmp_path: Path) -> None:
    few = WordFeatures(each=4)
    found = run(naming(tmp_path, Truthful(), few), chosen=(1,))
    assert (found[0].proposed, found[0].top_token) == (None, " and")
    assert "too few other texts" in found[0].why
    silent = run(naming(tmp_path, Truthful(wrong=lambda word: " .. ")), chosen=(1,))
    assert silent[0].why == "the model answered with no name"
    assert not names_file(tmp_path, LABEL).exists()


def test_without_texts_there_is_nothing_to_name(tmp_path: Path) -> None:
    with pytest.raises(NothingToNameError, match="nothing archived"):
        naming(tmp_path, Truthful(), view=View(None))
    with pytest.raises(NothingToNameError, match="no tokens"):
        naming(tmp_path, Truthful(), WordFeatures(words=["", ""]))
