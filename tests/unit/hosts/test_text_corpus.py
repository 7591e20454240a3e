"""Texts become blocks of tokens: nothing is lost, blocks are full but the last, padding is masked."""

from __future__ import annotations

import gzip
import json
import sys
import types

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from asys_bench.contracts.host import HostError
from asys_bench.hosts.text_corpus import TextCorpus, vocabulary_of
from asys_bench.hosts.text_sources import files_of


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


ROWS = [{"text": "ab", "n": 1}, {"text": None, "n": 2}, {"text": "cd", "n": 3}]


def write_table(path):
    table = pa.Table.from_pylist(ROWS)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
        return
    write = pa.ipc.new_file if path.name.startswith("file") else pa.ipc.new_stream
    with path.open("wb") as out, write(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow"])
def test_tables_hold_a_text_per_row(corpus, name):
    write_table(corpus.folder / name)
    assert texts_of(next(corpus().batches(8, repeat=False))) == ["[ab]", "[cd]"]
    with pytest.raises(HostError, match=r"no text under 'body', only text, n; set .*text_field"):
        next(corpus(text_field="body").batches(8, repeat=False))
    (corpus.folder / name).write_bytes(b"PAR1 and no more")
    with pytest.raises(HostError, match=rf"{name} cannot be read"):
        next(corpus().batches(8, repeat=False))


def test_a_data_set_of_hugging_face_is_read_as_it_was_saved(corpus):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(corpus.folder / "set")
    assert texts_of(next(corpus().batches(8, repeat=False))) == ["[ab]", "[cd]"]


def test_packed_files_are_unpacked(corpus):
    with gzip.open(corpus.folder / "a.jsonl.gz", "wt") as out:
        out.write(json.dumps({"text": "ab"}))
    with gzip.open(corpus.folder / "b.txt.gz", "wt") as out:
        out.write("cd")
    assert texts_of(next(corpus().batches(8, repeat=False))) == ["[ab]", "[cd]"]
    (corpus.folder / "b.txt.gz").write_bytes(gzip.compress(b"x" * 9999)[:40])
    with pytest.raises(HostError, match=r"b.txt.gz cannot be read"):
        list(corpus().batches(1, repeat=False))


def test_what_is_no_text_is_refused_before_it_is_tokenised(corpus):
    (corpus.folder / "a.npy").write_bytes(b"\x93NUMPY\0\1")
    with pytest.raises(HostError, match=r"a.npy is no text in UTF-8; rows are read from .jsonl"):
        corpus(patterns=[str(corpus.folder / "*.npy")])


@pytest.fixture
def function(monkeypatch):
    """function(returns): its name for `texts`, and how often it was called."""
    module = types.ModuleType("texts_of_a_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    calls = []

    def make(returns):
        module.rows = lambda: (calls.append(1), returns())[1]
        return f"function:{module.__name__}:rows"

    make.calls = calls
    return make


@pytest.mark.parametrize("returns", [lambda: ["ab", "cd"], lambda: iter(ROWS)])
def test_a_function_gives_texts_or_rows_and_is_called_anew_each_time_round(
    corpus, function, returns
):
    batches = corpus(patterns=[function(returns)]).batches(2, repeat=True)
    assert [texts_of(next(batches)) for _ in range(3)] == [["[ab]", "[cd]"]] * 3
    assert len(function.calls) == 3


def test_a_streamed_data_set_of_hugging_face_comes_through_a_function(corpus, function):
    datasets = pytest.importorskip("datasets")
    streamed = datasets.IterableDataset.from_generator(lambda: iter(ROWS))
    found = corpus(patterns=[function(lambda: streamed)], shuffle_seed=1)
    assert texts_of(next(found.batches(2, repeat=False))) == ["[ab]", "[cd]"]


def test_a_function_that_gives_no_texts_is_refused(corpus, function):
    with pytest.raises(HostError, match="returned a str, and not texts or rows"):
        next(corpus(patterns=[function(lambda: "ab")]).batches(1, repeat=False))
    with pytest.raises(HostError, match=r"no text under 'text', only body"):
        next(corpus(patterns=[function(lambda: [{"body": 1}])]).batches(1, repeat=False))
    with pytest.raises(HostError, match=r"must be `package.module:function`"):
        corpus(patterns=["function:nothing"])


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
    with pytest.raises(HostError, match="no text in them"):
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


@pytest.mark.rest
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
