"""README.md and README.zh-CN.md say the same, section by section: headings, commands, figures, links."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = "README.md", "README.zh-CN.md"
HEADING = re.compile(r"^(#+) (.+)$")
FIGURE = re.compile(r"\d+(?:[.,]\d+)*(?:e-?\d+)?(?: ?(?:[KMG]i?B(?:/s)?|us|ms|s|%)(?![A-Za-z]))?")
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAME = re.compile(r"`([^`]+)`")
CJK = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Section:
    level: int
    title: str
    prose: str
    blocks: tuple[str, ...]


def sections_of(text):
    """Its sections in order, with what is in fences apart."""
    found, title, prose, blocks, fenced = [], (0, ""), [], [], None
    for line in [*text.splitlines(), "# end"]:
        heading = HEADING.match(line) if fenced is None else None
        if heading:
            found.append(Section(*title, "\n".join(prose), tuple(blocks)))
            title, prose, blocks = (len(heading[1]), heading[2]), [], []
        elif line.startswith("```"):
            if fenced is None:
                fenced = [line]
            else:
                blocks.append("\n".join(fenced))
                fenced = None
        elif fenced is None:
            prose.append(line)
        else:
            fenced.append(line)
    return found[1:]


def without_comments(block):
    """A block as it is run: comments are in the reader's language."""
    return [re.sub(r"\s*#.*$", "", line) for line in block.splitlines()]


def comments_of(block):
    return " ".join(re.findall(r"#(.*)$", block, re.MULTILINE))


def figures_of(section):
    commented = [comments_of(block) for block in section.blocks]
    return Counter(FIGURE.findall(NAME.sub("", section.prose) + " ".join(commented)))


def links_of(section):
    return Counter(LINK.findall(section.prose)) - Counter([ENGLISH, CHINESE])


def pairs():
    english, chinese = (sections_of((ROOT / name).read_text()) for name in (ENGLISH, CHINESE))
    return [
        pytest.param(ours, theirs, id=ours.title)
        for ours, theirs in zip(english, chinese, strict=True)
    ]


PAIRS = pairs()


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_a_section_has_the_same_level_commands_figures_names_and_links(english, chinese):
    assert english.level == chinese.level
    assert [*map(without_comments, english.blocks)] == [*map(without_comments, chinese.blocks)]
    assert figures_of(english) == figures_of(chinese)
    assert set(NAME.findall(english.prose)) == set(NAME.findall(chinese.prose))
    assert links_of(english) == links_of(chinese)
    assert len(re.findall(r"^\|", english.prose, re.M)) == len(
        re.findall(r"^\|", chinese.prose, re.M)
    )
    assert len(re.findall(r"^- ", english.prose, re.M)) == len(
        re.findall(r"^- ", chinese.prose, re.M)
    )


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_each_is_in_its_language(english, chinese):
    own = english.prose.replace("[中文]", "") + english.title
    assert not CJK.search(own)
    assert chinese.title == english.title or CJK.search(chinese.title)
    for paragraph in re.split(r"\n\s*\n|\n(?=[-|])", chinese.prose):
        words = re.sub(r"`[^`]*`|\[[^\]]*\]\([^)]*\)", "", paragraph)
        assert CJK.search(words) or not re.search(r"[a-z]{4,} [a-z]{2,} [a-z]{2,}", words), (
            paragraph
        )


def test_what_is_compared_is_seen():
    """Two documents that differ in one thing of each kind."""
    first, second = sections_of("# a\n10 s `x` [l](m)\n```sh\nmake run # now\n```\n# b\n2\n")
    assert (first.title, second.title) == ("a", "b")
    assert figures_of(first) == Counter(["10 s"])
    assert without_comments(first.blocks[0]) == ["```sh", "make run"]
    (other,) = sections_of("# a\n11 s `y` [l](n)\n```sh\nmake test # 现在\n```\n")
    assert figures_of(other) != figures_of(first)
    assert links_of(other) != links_of(first)
    assert without_comments(other.blocks[0]) != without_comments(first.blocks[0])
