"""What a model is asked, and what its answer says."""

from __future__ import annotations

import pytest

from asys_bench.eye.naming.material import Window
from asys_bench.eye.naming.prompts import asking_chat, marked, name_in, naming_chat, yes_or_no

NAN = float("nan")


def window(*tokens: str, at: int = 0, levels: tuple[float, ...] | None = None) -> Window:
    return Window(tokens, at, levels or (0.0,) * len(tokens))


def test_tokens_that_fire_are_marked_where_a_name_is_chosen_and_its_own_where_it_is_scored() -> (
    None
):
    text = window("the", " cat", " sat", " on", " it", at=2, levels=(0.1, 0.6, 1.0, 0.49, NAN))
    assert marked(text) == "the <<cat>> <<sat>> on it"
    assert marked(text, alone=True) == "the cat <<sat>> on it"


def test_a_text_is_one_line_and_its_own_marks_are_none() -> None:
    text = window("a << b >>", "\n", " ", "c", at=2)
    assert marked(text, alone=True) == "a « b »↵ <<·>>c"
    assert "<<↵>>" in marked(window("x", "\n", at=1), alone=True)


def test_every_question_is_answered_by_a_turn_of_the_model_before_the_last() -> None:
    for chat in (naming_chat([window("cat")]), asking_chat("cats", window("cat"))):
        assert [one["role"] for one in chat[:1]] == ["system"]
        assert {one["role"] for one in chat[1::2]} == {"user"}
        assert {one["role"] for one in chat[2::2]} == {"assistant"}
        assert chat[-1]["role"] == "user"


def test_the_texts_and_the_phrase_are_in_the_last_turn_alone() -> None:
    shown = [window("one", " red", at=1), window("two", " blue", at=1)]
    chat = naming_chat(shown)
    assert chat[-1]["content"] == "Text: one <<red>>\nText: two <<blue>>\nTokens: red, blue"
    first, second = (asking_chat("colours", one) for one in shown)
    assert first[:-1] == second[:-1]
    assert first[-1]["content"] == "Text: one <<red>>\nToken: red\nPhrase: colours"


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("words for colours", "words for colours"),
        ('  "Words for colours."\nBecause they are.', "Words for colours"),
        ("Phrase: colours", "colours"),
        ("The name is: colours", "colours"),
        ("\n\n**colours**\n", "colours"),
        ("<<colours>> of things", "colours of things"),
        ("a\u202eb\x1b[31mc\x00d\te", "a b [31mc d e"),
        ("x" * 500, "x" * 80),
        ("", ""),
        ("  \n . \n", ""),
    ],
)
def test_a_name_is_one_bounded_line_of_what_prints(answer: str, name: str) -> None:
    assert name_in(answer) == name


def test_markup_in_a_name_stays_what_it_is() -> None:
    assert name_in("<img src=x onerror=alert(1)>") == "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    ("answer", "chance"),
    [("Yes", 1.0), (" yes, it does", 1.0), ("**No**", 0.0), ("no.", 0.0), ("Nothing", None),
     ("", None), ("1", None), ("It does. Yes", None)],
)  # fmt: skip
def test_yes_and_no_are_the_first_word(answer: str, chance: float | None) -> None:
    assert yes_or_no(answer) == chance
