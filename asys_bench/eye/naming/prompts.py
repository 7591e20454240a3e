"""What a model is asked, and what its answer says.

The tokens in question stand between << and >>. A small model follows examples better than instructions, so
that each question comes after two that are answered. What varies comes last: models keep what they have
read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from asys_bench.eye.naming.material import Window
from asys_bench.eye.naming.models import Message
from asys_bench.rundir.feature_names import MOST_NAME

HALF = 0.5
"""Of a text's largest activation: tokens above are marked where a name is chosen."""
_VISIBLE = str.maketrans({"\n": "↵", "\r": "↵", "\t": "⇥"})
_LEAD = re.compile(
    r"^(?:(?:the )?(?:phrase|name|answer|pattern)\s*(?:is)?\s*[:=]\s*)", re.IGNORECASE
)
_WORD = re.compile(r"[^\W\d_]+")

NAMING = (
    "A feature of a neural network fires on some tokens of a text. You see texts in which it fires, with "
    "these tokens between << and >>, and the tokens themselves. Say in at most eight words what they have "
    "in common. Answer with that phrase alone."
)
ASKING = (
    "You see a text with one token between << and >>, that token, and a phrase. Does the phrase describe "
    "the token, as it is used in the text? Answer with Yes or No alone."
)
_NAMED = (
    (
        (
            "she walked <<into>> the room and sat down",
            "the keys are <<under>> the table in the hall",
            "a bird flew <<over>> our heads",
        ),
        ("into", "under", "over"),
        "prepositions of place",
    ),
    (
        (
            "it was founded in <<1984>> by two brothers",
            "the edition of <<2007>> sold out",
            "between <<1789>> and today",
        ),
        ("1984", "2007", "1789"),
        "years",
    ),
    (
        (
            "we met <<Anna>> at the station",
            "then <<Peter>> said that he was tired",
            "a letter from <<Maria>> came in May",
        ),
        ("Anna", "Peter", "Maria"),
        "first names of people",
    ),
)
_ASKED = (
    ("the keys are <<under>> the table in the hall", "under", "prepositions of place", "Yes"),
    ("a letter from <<Maria>> came in May", "Maria", "years", "No"),
    ("the keys are under the <<table>> in the hall", "table", "prepositions of place", "No"),
    ("it was founded in <<1984>> by two brothers", "1984", "years", "Yes"),
    ("then <<Peter>> said that he was tired", "Peter", "first names of people", "Yes"),
    ("the edition of 2007 <<sold>> out", "sold", "first names of people", "No"),
)


def naming_chat(shown: Sequence[Window]) -> list[Message]:
    """What has to be answered with a name."""
    chat = [_message("system", NAMING)]
    for texts, tokens, name in _NAMED:
        chat += [_message("user", _listed(texts, tokens)), _message("assistant", name)]
    told = list(dict.fromkeys(_token(one) for one in shown))
    return [*chat, _message("user", _listed([marked(one) for one in shown], told))]


def asking_chat(name: str, window: Window) -> list[Message]:
    """What has to be answered with yes or no."""
    chat = [_message("system", ASKING)]
    for text, token, phrase, answer in _ASKED:
        chat += [_message("user", _question(text, token, phrase)), _message("assistant", answer)]
    question = _question(marked(window, alone=True), _token(window), name)
    return [*chat, _message("user", question)]


def marked(window: Window, *, alone: bool = False) -> str:
    """The text on one line, with marks. alone: around its own token and no other."""
    known = [level for level in window.levels if math.isfinite(level)]
    least = HALF * max([*known, 0.0])
    parts = []
    for at, token in enumerate(window.tokens):
        level = window.levels[at] if at < len(window.levels) else 0.0
        hit = at == window.at or (not alone and level > 0 and level >= least)
        parts.append(_marked(token) if hit else _plain(token))
    return "".join(parts).strip()


def name_in(answer: str) -> str:
    """The phrase in an answer, on one line, printable and bounded; "" where there is none."""
    lines = [line.strip() for line in answer.strip().splitlines()]
    line = next((line for line in lines if line), "")
    line = _LEAD.sub("", line.replace("<<", "").replace(">>", ""))
    shown = "".join(letter if letter.isprintable() else " " for letter in line)
    shown = " ".join(shown.split()).strip(" \"'`*_.:;-")
    return shown[:MOST_NAME].strip()


def yes_or_no(answer: str) -> float | None:
    """1 or 0, by its first word; None: neither."""
    found = _WORD.search(answer.casefold())
    return None if found is None else {"yes": 1.0, "no": 0.0}.get(found[0])


def _listed(texts: Sequence[str], tokens: Sequence[str]) -> str:
    return "\n".join(f"Text: {text}" for text in texts) + f"\nTokens: {', '.join(tokens)}"


def _question(text: str, token: str, phrase: str) -> str:
    return f"Text: {text}\nToken: {token}\nPhrase: {phrase}"


def _token(window: Window) -> str:
    return _plain(window.token).strip(" ") or "·"


def _marked(token: str) -> str:
    text = _plain(token)
    begin = len(text) - len(text.lstrip(" "))
    inner = text[begin:] or "·"
    return f"{text[:begin]}<<{inner}>>"


def _plain(token: str) -> str:
    """On one line; marks that the text itself has are none."""
    return token.translate(_VISIBLE).replace("<<", "«").replace(">>", "»")


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
