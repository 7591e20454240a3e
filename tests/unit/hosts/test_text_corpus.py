"""Files become blocks of tokens: nothing is lost, blocks are full but the last, padding is masked."""

from __future__ import annotations

import json

import pytest

from asys_bench.contracts.host import HostError
from asys_bench.hosts.text_corpus import TextCorpus, files_of, vocabulary_of


class Letters:
    """A tokenizer of letters, with [ before and ] after a sequence."""

    pad_token_id = 0
    eos_token_id = None

    def __call__(self, text, add_special_tokens, verbose):
        return {"input_ids": [ord(c) for c in (f"[{text}]" if add_special_tokens else text)]}

    def get_vocab(self):
        return {chr(i): i for i in range(32, 127)}


@pytest.fixture
def corpus(tmp_path):
    def make(block_tokens=6, patterns=None, **options):
        return TextCorpus(
            patterns or [str(tmp_path)], Letters(), block_tokens=block_tokens, **options
        )

    make.folder = tmp_path
    return make


def texts_of(batch):
    return [
        "".join(chr(i) for i, real in zip(ids, mask, strict=True) if real)
        for ids, mask in zip(batch.input_ids_BT.tolist(), batch.mask_BT.tolist(), strict=True)
    ]


def test_blocks_are_full_and_the_last_of_a_text_is_padded(corpus):
    (corpus.folder / "a.txt").write_text("abcdefghij")
    (corpus.folder / "b.md").write_text("xy")
    batches = list(corpus().batches(2, repeat=False))
    assert [texts_of(b) for b in batches] == [["[abcd]", "[efgh]"], ["[ij]", "[xy]"]]
    assert [b.tokens for b in batches] == [12, 8]
    assert batches[0].input_ids_BT.shape == (2, 6)
    assert batches[1].input_ids_BT.shape == (2, 4), "as wide as the longest"


def test_long_texts_are_cut_at_line_ends_and_nothing_is_lost(corpus):
    text = "".join(f"line {i}\n" for i in range(20_000))
    (corpus.folder / "long.txt").write_text(text)
    made = "".join(
        text[1:-1]
        for b in corpus(block_tokens=130).batches(7, repeat=False)
        for text in texts_of(b)
    )
    assert made == text


def test_json_lines_hold_a_text_each(corpus):
    lines = [json.dumps({"body": "ab"}), "", json.dumps({"body": "cd"})]
    (corpus.folder / "a.jsonl").write_text("\n".join(lines))
    batches = list(corpus(text_field="body").batches(8, repeat=False))
    assert texts_of(batches[0]) == ["[ab]", "[cd]"]
    with pytest.raises(HostError, match=r"a.jsonl:1: no text under 'text'"):
        list(corpus().batches(8, repeat=False))


def test_it_begins_again_if_asked(corpus):
    (corpus.folder / "a.txt").write_text("ab")
    batches = corpus().batches(1, repeat=True)
    assert [texts_of(next(batches)) for _ in range(3)] == [["[ab]"]] * 3


def test_globs_find_files_below(corpus):
    deep = corpus.folder / "x" / "y"
    deep.mkdir(parents=True)
    (deep / "a.rst").write_text("ab")
    found = corpus(patterns=[str(corpus.folder / "**" / "*.rst")])
    assert texts_of(next(found.batches(1, repeat=False))) == ["[ab]"]


def test_what_cannot_work_is_refused(corpus):
    with pytest.raises(HostError, match="matches no file"):
        corpus()
    (corpus.folder / "empty.txt").write_text("")
    with pytest.raises(HostError, match="hold no text"):
        list(corpus().batches(1, repeat=True))
    with pytest.raises(HostError, match="no room beside 2 special tokens"):
        corpus(block_tokens=2)


def test_a_vocabulary_has_each_text_at_its_id():
    texts = vocabulary_of(Letters())
    assert texts[ord("a")] == "a"
    assert texts[0] == ""
    assert len(texts) == 127


def test_shuffled_files_come_by_turns_in_an_order_of_the_seed_and_nothing_is_lost(corpus):
    for name in "abcdef":
        (corpus.folder / f"{name}.txt").write_text(name * 40)

    def blocks(seed, times=1):
        made = corpus(shuffle_seed=seed).batches(1, repeat=times > 1)
        return [texts_of(next(made))[0] for _ in range(60 * times)]

    first = blocks(1)
    assert sorted(first) == sorted(
        block for b in corpus().batches(1, repeat=False) for block in texts_of(b)
    )
    assert first == blocks(1)
    assert first != blocks(2)
    assert len(set(first[:12])) > 3, "several files at a time"
    twice = blocks(1, times=2)
    assert twice[:60] == first
    assert twice[60:] != first, "another order the next time round"
    assert sorted(twice[60:]) == sorted(first)


def test_installed_packages_give_their_descriptions_licences_and_documents(tmp_path, monkeypatch):
    site = tmp_path / "site"
    files = {
        "texts-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: Texts\nVersion: 1.0\n\nhello",
        "texts-1.0.dist-info/licenses/LICENSE": "free",
        "texts-1.0.dist-info/top_level.txt": "texts",
        "texts/guide.md": "guide",
        "texts/license.py": "code",
        "texts/metadata.h": "code",
    }
    files["texts-1.0.dist-info/RECORD"] = "".join(f"{name},,\n" for name in files)
    for name, text in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    monkeypatch.syspath_prepend(str(site))
    assert [path.name for path in files_of("package:texts")] == ["guide.md", "METADATA", "LICENSE"]
    assert set(files_of("package:texts")) < set(files_of("package:*"))
    with pytest.raises(HostError, match=r"texts: 'package:no-such' matches no installed"):
        files_of("package:no-such")
